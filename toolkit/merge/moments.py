"""Statistics of a model on texts, for merges that weigh entries by them: second moments of what
each linear layer reads (RegMean), or of the loss's gradient (Fisher).

They are added up in the file itself, text by text, so that memory holds no second model of them.
Legend: T tokens, I inputs of a layer, O its outputs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from toolkit.errors import MergeError
from toolkit.json_lines import iterate_rows
from toolkit.leftovers import appearing_file
from toolkit.progress import progress
from toolkit.tokenizer_files import load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from toolkit.merge.task import TensorTask

MomentKind = Literal["regmean", "fisher"]
"""Called after the methods that use them."""

Sums = np.memmap[Any, np.dtype[np.float32]]
"""A tensor that lies in the file."""

_TOKEN_CHARS, _SLACK_TOKENS = 8, 256
"""Characters that are read for a token at first, and tokens beyond those that are wanted: where a
text is cut off, its last tokens are others than they would be."""

# The loss is that of the next token, which a single token does not have.
_LEAST_TOKENS = 2


def write_moments(
    model_folder: Path,
    texts: Path,
    out: Path,
    *,
    kind: MomentKind,
    num_tokens: int,
    window_tokens: int,
) -> int:
    """Write the statistics of a model to a file that appears whole.

    Args:
        model_folder: folder of the model.
        texts: UTF-8 text, or `.jsonl` with a field `text`: what the model was made for.
        out: safetensors file to write.
        kind: method that it is for.
        num_tokens: tokens to read at most.
        window_tokens: tokens that are read together.

    Returns:
        Number of tokens that were read.

    Raises:
        MergeError: there are no texts.
        CheckpointError: the folder holds no causal language model.
    """
    import torch

    from toolkit.checkpoint.load import load_causal_model

    tokenizer = load_tokenizer(model_folder)
    # Before the model is loaded: a file without text is refused at once, and progress has a total.
    windows = list(cut_windows(tokenizer, _read_texts(texts), num_tokens, window_tokens))
    if not windows:
        raise MergeError(f"{texts}: holds no text of {_LEAST_TOKENS} tokens; give another file.")
    model = load_causal_model(model_folder, torch.float32).eval()
    shapes = _moment_shapes(model, kind)
    with (
        appearing_file(out) as temporary,
        progress("statistics, tokens", sum(map(len, windows))) as advance,
    ):
        sums = _open_sums(temporary, kind, shapes)
        add = _input_moments if kind == "regmean" else _gradient_moments
        with add(model, sums) as read:
            for window in windows:
                read(torch.tensor([window]))
                advance(len(window), "")
        for array in sums.values():
            # Fisher is a mean over losses, of which a window has one; XᵀX a mean over tokens.
            array /= len(windows) if kind == "fisher" else sum(map(len, windows))
            array.flush()
    return sum(map(len, windows))


def _read_texts(path: Path) -> Iterator[str]:
    if path.suffix == ".jsonl":
        for where, row in iterate_rows(path, MergeError, "give a field `text` in every line"):
            if not isinstance(row.get("text"), str):
                raise MergeError(f"{where}: has no field `text`; give one in every line.")
            yield row["text"]
        return
    try:
        yield path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MergeError(f"{path}: cannot be read as UTF-8 text ({error}).") from error


def cut_windows(
    tokenizer: Any, texts: Iterator[str], num_tokens: int, window_tokens: int
) -> Iterator[list[int]]:
    """Windows of the first tokens of all texts; those of less than two tokens are left out."""
    left = num_tokens
    for text in texts:
        tokens = _first_tokens(tokenizer, text, left)
        for first in range(0, len(tokens), window_tokens):
            window = tokens[first : first + window_tokens]
            if len(window) >= _LEAST_TOKENS:
                yield window
        left -= len(tokens)
        if left <= 0:
            return


def _first_tokens(tokenizer: Any, text: str, count: int) -> list[int]:
    """The first tokens of a text, of which no more is tokenized than they take."""
    wanted = count + _SLACK_TOKENS
    num_chars = wanted * _TOKEN_CHARS
    while True:
        tokens: list[int] = list(tokenizer(text[:num_chars])["input_ids"])
        if num_chars >= len(text) or len(tokens) >= wanted:
            return tokens[:count]
        num_chars *= 2


def _moment_shapes(model: Any, kind: MomentKind) -> dict[str, tuple[int, ...]]:
    """Shape of the statistics of each tensor, by its name in files."""
    from toolkit.checkpoint.stored_names import parameters_by_name

    named = parameters_by_name(model)
    if kind == "fisher":
        return {name: tuple(parameter.shape) for name, parameter in named.items()}
    # By identity, as layers have other names in memory than in files.
    inputs = {id(layer.weight): layer.in_features for layer in _linear_layers(model)}
    return {
        name: (inputs[id(parameter)],) * 2
        for name, parameter in named.items()
        if id(parameter) in inputs
    }


def _linear_layers(model: Any) -> Iterator[Any]:
    """Linear layers whose weight is theirs alone: a head that is the embedding too is none."""
    from torch import nn

    embedding = model.get_input_embeddings().weight
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight is not embedding:
            yield module


def _open_sums(
    path: Path, kind: MomentKind, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Sums]:
    """A safetensors file of zeros, and each of its tensors as an array that lies in the file."""
    header: dict[str, object] = {"__metadata__": {"kind": kind}}
    start = 0
    for name, shape in shapes.items():
        stop = start + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    header_bytes = json.dumps(header).encode()
    # safetensors allows spaces after the header; with them data begins at a multiple of 8 bytes.
    header_bytes += b" " * (-len(header_bytes) % 8)
    with path.open("wb") as file:
        file.write(len(header_bytes).to_bytes(8, "little") + header_bytes)
        # Zeros without writing them: the file is sparse until sums are added to it.
        file.truncate(8 + len(header_bytes) + start)
    sums: dict[str, Sums] = {}
    place = 8 + len(header_bytes)
    for name, shape in shapes.items():
        sums[name] = np.memmap(path, np.float32, "r+", place, shape)
        place += 4 * int(np.prod(shape))
    return sums


@contextlib.contextmanager
def _input_moments(model: Any, sums: Mapping[str, Sums]) -> Iterator[Callable[[Tensor], None]]:
    """Adds `XᵀX` of each linear layer's inputs `X`, `[T, I]`."""
    import torch

    from toolkit.checkpoint.stored_names import parameters_by_name

    names = {id(parameter): name for name, parameter in parameters_by_name(model).items()}

    def catch(module: Any, given: tuple[Tensor, ...]) -> None:
        rows = given[0].reshape(-1, module.in_features)
        sums[names[id(module.weight)]] += (rows.T @ rows).numpy()

    # What transformers holds in another form than files do has no statistics, and no name here.
    layers = [layer for layer in _linear_layers(model) if names.get(id(layer.weight)) in sums]
    handles = [layer.register_forward_pre_hook(catch) for layer in layers]

    @torch.no_grad()
    def read(window: Tensor) -> None:
        model(input_ids=window)

    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _gradient_moments(model: Any, sums: Mapping[str, Sums]) -> Iterator[Callable[[Tensor], None]]:
    """Adds the squares of the gradient of a text's loss: the empirical Fisher information's
    diagonal."""
    from toolkit.checkpoint.stored_names import parameters_by_name

    named = parameters_by_name(model)

    def read(window: Tensor) -> None:
        model(input_ids=window, labels=window).loss.backward()
        for name, array in sums.items():
            gradient = named[name].grad
            if gradient is not None:
                array += gradient.square().numpy()
        # `backward` adds to gradients; squares are of each window by itself.
        model.zero_grad()

    yield read


def read_moments(kind: str, task: TensorTask) -> list[Tensor | None]:
    """The statistics of each model for one tensor; None of all where none has any for it.

    Args:
        kind: method that they are for.
        task: tensor, with the files of the models under `statistics`.

    Raises:
        MergeError: a file cannot be read, is for another method or model, or lacks what others
            have.
    """
    files: Sequence[str] = task.parameters["statistics"]
    # Of regmean a square of the layer's inputs, of fisher one an entry.
    wanted_shape = task.shape if kind == "fisher" else task.shape[-1:] * 2
    moments = [
        _read_moment(kind, Path(file), source.tensor, wanted_shape)
        for file, source in zip(files, task.sources, strict=True)
    ]
    lacking = [file for file, moment in zip(files, moments, strict=True) if moment is None]
    if lacking and len(lacking) < len(files):
        raise MergeError(
            f"{task.name}: {lacking[0]} has no statistics of it, and those of other models have; "
            "write them anew (toolkit merge statistics)."
        )
    return moments


def _read_moment(kind: str, path: Path, tensor: str, shape: tuple[int, ...]) -> Tensor | None:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if (written_for := (file.metadata() or {}).get("kind")) != kind:
                raise MergeError(
                    f"{path}: holds statistics for {written_for}, and the merge is {kind}; write "
                    f"them with toolkit merge statistics --kind {kind}."
                )
            found = file.get_tensor(tensor) if tensor in file.keys() else None  # noqa: SIM118
    except MergeError:
        raise
    except Exception as error:  # absent, or damaged in one of the ways that safetensors finds
        raise MergeError(
            f"statistics: {path}: cannot be read ({error}); write it with toolkit merge statistics."
        ) from error
    if found is not None and tuple(found.shape) != shape:
        raise MergeError(
            f"{tensor}: its statistics in {path} are {list(found.shape)}, and must be "
            f"{list(shape)}; they are of another model. Write them anew (toolkit merge statistics)."
        )
    return found
