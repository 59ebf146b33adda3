"""The kernels' own text, for numba; imported only to compile (see `kernels.native`)."""
