"""Fused CPU kernels for the methods that are used most; tested against the torch definitions.

`source/` holds them as Python that numba compiles, once per machine and for the processor that is
there; `compiled` calls them. Where numba is missing or fails, the torch definitions do the same.
"""
