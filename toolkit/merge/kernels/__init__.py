"""Fused CPU kernels for the methods that are used most; tested against the torch definitions.

Nothing here is imported before a kernel is needed: numba takes a second to load.
"""
