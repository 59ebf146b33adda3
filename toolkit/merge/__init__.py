"""Merging: mergekit's dialect, the methods, and the engines that run them."""
