"""Merging: mergekit's dialect, the methods, and the engines that run them.

Deliberate deviations from mergekit 0.1.5, each held by a test in `tests/merge/`:

- Words that nobody knows, as keys or as parameters, are errors, all at once; mergekit passes over
  them. Parameters of other methods, `name` and `random_seed` are passed over with a warning.
- Arithmetic is float32 whatever `dtype` says, and the result is cast once; mergekit 0.1.5 does so
  for linear and slerp, and computes other methods in `dtype`.
- `rounding: stochastic` rounds the result to one of its two neighbors in the 16-bit type, so that
  the mean of what is stored is what was computed; mergekit does not know the key. Without it, and
  with `nearest`, the bytes are those of rounding to the nearest, as mergekit's.
- Random masks are seeded by (seed, tensor name, number of the model); mergekit's depend on the
  order of visiting.
- Models are taken in file order, and the first is the leading one where there is no base model.
- Entries tied at a trimming threshold are all kept; mergekit's sort decides among them.
- A density above zero keeps at least one entry, values out of range are errors, and so are weights
  that sum to zero where the sum is divided by.
- Tensors are matched by name, not by a list of architectures: models whose names and shapes agree
  merge, whatever they are, and a tensor that only some have is an error, never passed over. Tied
  and untied heads merge, and the config then says untied; buffers that were never trained are
  copied. `override_architecture` and `residual_weight` have no effect.
- Modules are found by the names of tensors; tensors that no module has are an error, where
  mergekit leaves them out.
- The config of the merged model follows its layers (types, lists and thresholds by layer too, as
  transformers derives them), and does not say where the leading model was loaded from. Layers that
  are stored beyond those of the config are merged with whole models and left out of slices.
- A head that is stored and differs from the embedding is the model's own, whatever
  `tie_word_embeddings` says, as in transformers 5.
- A merge that transformers would load with random, unread or misshapen tensors is refused before
  anything is written, and so is one whose values do not fit into the type written.
- Quantized models, tensors without entries and integers that differ are errors.
- Adapters are merged as peft computes them unmerged: a saved or changed embedding leaves a head
  that was tied to it as it was, and the merge is then untied.
- Filters match the experts of Mixtral by either of their names (`mlp`, `block_sparse_moe`).
- `tokenizer_source: union` keeps the ids of the base (or first) model and appends what others have;
  learned tokens join the tokenizer's own model with their merges or scores, where mergekit makes
  added tokens of them, which are then found within words. Rows without a token are dropped where
  vocabularies differ, and kept where all models have one vocabulary.
- NaN and infinity in an input are errors unless they are allowed.

As in mergekit, tensors outside the layers read a gradient at its start, and a slice of one layer
reads it at its end.
"""
