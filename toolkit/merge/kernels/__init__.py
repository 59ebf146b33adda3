"""Fused CPU kernels for the methods that are used most; tested against the torch definitions.

`source/` holds them as Python that numba compiles, once a machine; `native` keeps the machine code
and calls it without loading numba, which would take longer than merging half a gigabyte.
"""
