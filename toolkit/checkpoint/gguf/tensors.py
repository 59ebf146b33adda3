"""Which tensors a GGUF file has, of which of the model's, and how one becomes the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.checkpoint.gguf.families import GgufFamily, head_dim, rope_values
from toolkit.checkpoint.own_head import own_head
from toolkit.checkpoint.read import Checkpoint
from toolkit.errors import CheckpointError

Array = NDArray[np.float32]
_HEAD = "lm_head.weight"
_EXPERT = re.compile(r"^(?P<start>.*\.experts)\.(?P<number>\d+)\.(?P<end>.*)$")


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file.

    Attributes:
        name: in the file.
        sources: names of the model's tensors: one, or those of all experts in their order.
        num_heads: heads whose rows are permuted; 0 for none.
        shift: what is added to every entry.
        values: entries that no tensor of the model has: factors of rotary frequencies.
    """

    name: str
    sources: tuple[str, ...]
    num_heads: int = 0
    shift: float = 0.0
    values: Array | None = field(default=None, compare=False)

    def read(self, checkpoint: Checkpoint) -> Array:
        """The entries as the file has them, before they are quantized."""
        if self.values is not None:
            return self.values
        arrays = [_array(checkpoint, source) for source in self.sources]
        # GGUF has one tensor for all experts of a layer, `[experts, rows, row]`.
        array = arrays[0] if len(arrays) == 1 else np.stack(arrays)
        if self.num_heads:
            array = permute_rows(array, self.num_heads)
        return array + np.float32(self.shift) if self.shift else array

    def undo(self, array: Array) -> Iterator[tuple[str, Array]]:
        """The model's tensors, by name, of the entries that the file has."""
        # In the opposite order of `read`: what was added last is taken off first.
        if self.shift:
            array = array - np.float32(self.shift)
        if self.num_heads:
            array = unpermute_rows(array, self.num_heads)
        if len(self.sources) == 1:
            yield self.sources[0], array
        else:
            yield from zip(self.sources, array, strict=True)


def plan_tensors(checkpoint: Checkpoint, config: Any, family: GgufFamily) -> list[GgufTensor]:
    """All tensors of the file, in its order.

    Args:
        checkpoint: the model's tensors.
        config: of the model.
        family: of the model.

    Raises:
        CheckpointError: a tensor of the model has no place in a file of its family.
    """
    import gguf

    architecture = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[family.architecture]
    gguf_names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    sources_by_name: dict[str, list[str]] = {}
    for name in _written_names(checkpoint, config):
        match = _EXPERT.match(name)
        joined_name = f"{match['start']}.{match['end']}" if match else name
        gguf_name = gguf_names.get_name(joined_name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise CheckpointError(
                f"{checkpoint.folder}: {name} has no place in a GGUF file of llama.cpp's "
                f"{family.architecture}; publish the model as safetensors."
            )
        sources_by_name.setdefault(gguf_name, []).append(name)
    tensors = list(_rope_tensors(config))
    for gguf_name, sources in sources_by_name.items():
        # By number: by name, as files list them, expert 10 comes before expert 2.
        in_order = tuple(sorted(sources, key=_expert_number))
        # Gemma multiplies with one more than the stored weight, llama.cpp with what is stored. The
        # norms of queries and keys end so too, and are meant.
        shift = family.norm_shift if gguf_name.endswith("norm.weight") else 0.0
        num_heads = _permuted_heads(in_order[0], config) if family.interleaved else 0
        tensors.append(GgufTensor(gguf_name, in_order, num_heads, shift))
    return tensors


def _written_names(checkpoint: Checkpoint, config: Any) -> Iterator[str]:
    # A head that differs from the embedding is the model's own, whatever the config says of ties.
    is_copy = config.tie_word_embeddings and own_head(checkpoint) is None
    for name in checkpoint.names:
        # llama.cpp takes the embedding where there is no output.
        if name != _HEAD or not is_copy:
            yield name


def _expert_number(name: str) -> int:
    match = _EXPERT.match(name)
    return int(match["number"]) if match else 0


def _permuted_heads(name: str, config: Any) -> int:
    head_counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return next((n for projection, n in head_counts.items() if f".{projection}." in name), 0)


def permute_rows(array: Array, num_heads: int) -> Array:
    """Bring entry i and entry i + half of each head next to each other.

    >>> permute_rows(np.arange(4, dtype=np.float32).reshape(4, 1), 1).ravel().tolist()
    [0.0, 2.0, 1.0, 3.0]
    """
    half_rows = array.shape[0] // num_heads // 2
    split_heads = array.reshape(num_heads, 2, half_rows, *array.shape[1:])
    return np.ascontiguousarray(split_heads.swapaxes(1, 2).reshape(array.shape))


def unpermute_rows(array: Array, num_heads: int) -> Array:
    """Undo `permute_rows`.

    >>> unpermute_rows(np.array([[0.0], [2.0], [1.0], [3.0]], np.float32), 1).ravel().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    half_rows = array.shape[0] // num_heads // 2
    pairs = array.reshape(num_heads, half_rows, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(array.shape))


def _array(checkpoint: Checkpoint, name: str) -> Array:
    float_array: Array = checkpoint.tensor(name).to(torch.float32).numpy()
    return float_array


def _rope_tensors(config: Any) -> Iterator[GgufTensor]:
    """By what llama.cpp divides each rotary frequency, where a model's are scaled one by one."""
    rope_type = rope_values(config).get("rope_type")
    if rope_type == "llama3":
        yield GgufTensor("rope_freqs.weight", (), values=_llama3_factors(config))
    if rope_type == "longrope":
        # llama.cpp takes one of the two by the length of the context that it is opened with.
        for length in ("long", "short"):
            factors = np.array(rope_values(config)[f"{length}_factor"], np.float32)
            yield GgufTensor(f"rope_factors_{length}.weight", (), values=factors)


def _llama3_factors(config: Any) -> Array:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled_frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = head_dim(config)
    rope_theta = float(rope_values(config)["rope_theta"])
    # As transformers computes them, in float32: the quotient must not differ in its last bit.
    plain = 1.0 / rope_theta ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    factors: Array = (plain / scaled_frequencies.float()).numpy().astype(np.float32)
    return factors
