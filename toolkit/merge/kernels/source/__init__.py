"""The kernels' own text, for numba; imported with the first kernel (see `kernels.compiled`)."""
