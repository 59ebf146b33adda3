"""Quantized types of GGUF files: which tensor has which, and its bytes by ggml's own quantizer.

The mixtures Q4_K_M, Q5_K_M and Q6_K are llama.cpp's: the output matrix and what attention and the
feed-forward layers read their results from keep more bits. ggml's quantizer is called in whichever
package brings it along; its C function has been the same since 2024.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.gguf.tensors import Array
from toolkit.errors import CheckpointError

K_TYPES = {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K"}
"""Mixtures of quantized types, and what most of their tensors have."""

_LIBRARIES = (
    ("llama_cpp", "lib/libggml-base.*"),
    ("libggml", "lib*/libggml-base.*"),
    ("xllamacpp", "xllamacpp*.so"),
)
"""Packages that bring ggml along, and where in them."""

_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""For rows that are no multiple of 256 entries: the next better type in blocks of 32."""

_LAYER = re.compile(r"^blk\.(\d+)\.")
_FROM_ATTENTION = ("attn_v.weight", "attn_qkv.weight")


@dataclass(frozen=True)
class TensorShape:
    """What the type of a tensor depends on.

    Attributes:
        name: in the file.
        shape: rows last but one, entries of a row last.
    """

    name: str
    shape: tuple[int, ...]


def choose_types(mixture: str, tensors: Sequence[TensorShape], config: Any) -> dict[str, str]:
    """The type of each tensor, as llama.cpp's own quantizer chooses them.

    Args:
        mixture: one of `K_TYPES`.
        tensors: all of the file.
        config: of the model.

    Returns:
        Names of ggml's types by that of the tensor.
    """
    names = {tensor.name for tensor in tensors}
    # Of a tied model the embedding is the output matrix too, and gets the bits of one.
    head = "output.weight" if "output.weight" in names else "token_embd.weight"
    num_values = sum(name.endswith(_FROM_ATTENTION) for name in names)
    types = {}
    for tensor in tensors:
        if not is_quantized(tensor):
            types[tensor.name] = "F32"
            continue
        row_size = tensor.shape[-1]
        if tensor.name == head:
            kind = "Q6_K" if row_size % 256 == 0 else "Q8_0"
        else:
            kind = _layer_type(mixture, tensor.name, num_values, config)
        if row_size % 256 and kind in _FALLBACKS:
            kind = _FALLBACKS[kind]
        types[tensor.name] = kind if row_size % 32 == 0 else "F16"
    return types


def is_quantized(tensor: TensorShape) -> bool:
    """Whether a tensor is stored in fewer bits at all: no vectors, norms and routers of experts."""
    is_kept = tensor.name.endswith("_norm.weight") or "gate_inp" in tensor.name
    return len(tensor.shape) > 1 and tensor.name.endswith(".weight") and not is_kept


def _layer_type(mixture: str, name: str, num_values: int, config: Any) -> str:
    """The type of a tensor that is not the output, where its shape allows every type."""
    kind = K_TYPES[mixture]
    layer = int(match[1]) if (match := _LAYER.match(name)) else -1
    has_eight_experts = getattr(config, "num_local_experts", None) == 8
    is_mixed = mixture.endswith("_M")
    # llama.cpp takes a joined query, key and value (Phi-3) for a value here; its own branch for
    # them, further down, is never reached.
    if name.endswith(_FROM_ATTENTION):
        if is_mixed and _has_more_bits(layer, num_values):
            kind = "Q6_K"
        # Eight heads share each value there: this matrix is an eighth of the queries', so that a
        # better type costs next to nothing. Likewise attention beside eight experts.
        if _is_llama_70b(config) and kind == "Q4_K":
            kind = "Q5_K"
        return "Q8_0" if has_eight_experts else kind
    if has_eight_experts and name.endswith("attn_k.weight"):
        return "Q8_0"
    if has_eight_experts and name.endswith("attn_output.weight") and mixture == "Q4_K_M":
        return "Q5_K"
    if "ffn_down" in name and is_mixed and _has_more_bits(layer, config.num_hidden_layers):
        return "Q6_K"
    return kind


def _has_more_bits(layer: int, num_layers: int) -> bool:
    """Whether a layer is among the first and last eighth, or every third between.

    >>> [layer for layer in range(16) if _has_more_bits(layer, 16)]
    [0, 1, 4, 7, 10, 13, 14, 15]
    """
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _is_llama_70b(config: Any) -> bool:
    is_llama = config.model_type in ("llama", "mistral") and config.num_hidden_layers == 80
    return is_llama and config.num_attention_heads != config.num_key_value_heads


def quantize_tensor(array: Array, kind: str, name: str, importance: Array | None) -> NDArray[Any]:
    """The bytes of a tensor, `[..., bytes of a row]`.

    Args:
        array: its entries, `[rows, row]` or `[experts, rows, row]`.
        kind: ggml's name of the type.
        name: of the tensor, for the error.
        importance: of the entries of a row, `[row]` or `[experts, row]`: the mean square of what
            is multiplied with them. None weighs all alike.

    Raises:
        CheckpointError: it holds what the type cannot, or no package brings ggml along.
    """
    import gguf

    if not np.isfinite(array).all():
        raise CheckpointError(f"{name}: holds NaN or infinity, which cannot be quantized.")
    quantizer = _library().ggml_quantize_chunk
    number = gguf.GGMLQuantizationType[kind]
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[number]
    row_bytes = array.shape[-1] // block_size * block_bytes
    data = np.empty((*array.shape[:-1], row_bytes), np.uint8)
    for rows, out, weights in _parts(array, data, importance):
        weight_pointer = None if weights is None else weights.ctypes.data_as(_FLOATS)
        written = quantizer(
            int(number),
            rows.ctypes.data_as(_FLOATS),
            out.ctypes.data_as(ctypes.c_void_p),
            0,
            rows.shape[0],
            rows.shape[1],
            weight_pointer,
        )
        if written != out.nbytes:
            raise CheckpointError(f"{name}: ggml wrote {written} bytes, not {out.nbytes}.")
    return data


_FLOATS = ctypes.POINTER(ctypes.c_float)


def _parts(
    array: Array, data: NDArray[Any], importance: Array | None
) -> Iterator[tuple[Array, NDArray[Any], Array | None]]:
    """Matrices one by one, each with its own importance."""
    if array.ndim == 2:
        array, data = array[None], data[None]
        importance = None if importance is None else importance[None]
    for number, matrix in enumerate(array):
        weights = None if importance is None else np.ascontiguousarray(importance[number])
        # The C function is given bare pointers: rows must lie one behind the other.
        yield np.ascontiguousarray(matrix), data[number], weights


def check_quantizer() -> None:
    """Refuse before any work what needs ggml's quantizer where no package brings it along.

    Raises:
        CheckpointError: none does.
    """
    _library()


@lru_cache
def _library() -> Any:
    for package, pattern in _LIBRARIES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).glob(pattern)):
                library = ctypes.CDLL(str(path))
                if hasattr(library, "ggml_quantize_chunk"):
                    _declare(library)
                    return library
    raise CheckpointError(
        "K-quants need ggml's quantizer; install a package that brings it along: "
        "pip install 'cpt-toolkit[gguf]' (prebuilt), or 'cpt-toolkit[llama]' (compiled, and reads "
        "the files as well). Q8_0 needs none."
    )


def _declare(library: Any) -> None:
    # Undeclared, ctypes would pass and return C ints, and cut counts of 64 bits in half.
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, _FLOATS, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _FLOATS),
    ]
