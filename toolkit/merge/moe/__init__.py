"""Mixtures of experts made of dense models (sparse upcycling)."""
