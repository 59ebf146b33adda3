"""Merging: mergekit's dialect, the methods, and the engines that run them.

Deliberate deviations from mergekit 0.1.5, each held by a test in `tests/merge/`:

- Unknown keys and unknown parameters are errors; mergekit passes over them.
- Arithmetic is float32 whatever `dtype` says, and the result is cast once; under mergekit
  `dtype: bfloat16` means arithmetic in bfloat16.
- Random masks are seeded by (seed, tensor name); mergekit's depend on the order of visiting.
- Models are taken in file order.
- Entries tied at a trimming threshold are all kept; mergekit's sort decides among them.
- A density above zero keeps at least one entry, values out of range are errors, and so are weights
  that sum to zero where the sum is divided by.
- Tensors are matched by name, not by a list of architectures: models whose names and shapes agree
  merge, whatever they are.
- NaN and infinity in an input are errors unless they are allowed.

Not supported yet, each with a clear error: `modules`, adapters in model references, `union` and
per-token vocabularies.
"""
