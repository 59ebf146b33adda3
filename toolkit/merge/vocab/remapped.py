"""A model whose embedding rows stand in another vocabulary's order, with rows of other models for
tokens that it lacks.

Rows are gathered as they are asked for, a block at a time, so a vocabulary of any size takes no
memory of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.read import (
    TORCH_NAMES,
    Checkpoint,
    Entries,
    TensorInfo,
    has_array,
    item_bytes,
)
from toolkit.checkpoint.write import tensor_bytes
from toolkit.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ZERO, AVERAGE, PADDING = -1, -2, -3
"""In place of a donor: a row of zeros, the mean of several rows, the mean of all tokens' rows."""

_STEP = 4096  # rows that the mean of all is summed over at a time


@dataclass(frozen=True)
class RowMap:
    """Where each row of one model's remapped tensors comes from. V: rows, D: donors.

    Attributes:
        donor: number of the donor, or one of ZERO, AVERAGE, PADDING; `[V]`.
        row: the row within the donor's tensor, or within `averages`; `[V]`.
        averages: the donors' rows that are averaged, -1 where a donor has none; `[A, D]`.
        num_tokens: rows that have a token, or could have; those from here on are padding.
    """

    donor: NDArray[np.int16]
    row: NDArray[np.int64]
    averages: NDArray[np.int64]
    num_tokens: int

    def is_whole(self, donor: int, num_rows: int) -> bool:
        """Whether nothing is to be done: every row is the donor's own, in its own place."""
        size = len(self.row)
        return (
            size == num_rows
            and bool((self.donor == donor).all())
            and bool((self.row == np.arange(size)).all())
        )


@dataclass(frozen=True)
class RemappedTensor:
    """One tensor with a row a token, as it will be seen.

    Attributes:
        rows: where its rows come from.
        donors: checkpoint and name of each donor's tensor, by the donor's number; None where a
            donor has no such tensor.
        dtype: a type that holds every donor's values, by the format's name.
        shape: of the remapped tensor.
    """

    rows: RowMap
    donors: Sequence[tuple[Checkpoint, str] | None]
    dtype: str
    shape: tuple[int, ...]


class RemappedCheckpoint(Checkpoint):
    """A checkpoint with some tensors remapped; the others are as they were.

    Args:
        model: the model's own checkpoint.
        tensors: the remapped ones. A name that the model has not is a head beside its embedding,
            which it shares no longer.
    """

    def __init__(self, model: Checkpoint, tensors: Mapping[str, RemappedTensor]) -> None:
        infos = {name: model.info(name) for name in model.names}
        for tensor_name, remapped in tensors.items():
            # A head that only the merge has is reported under the file of the first donor's.
            donor_file = next(
                checkpoint.info(donor_name).file
                for checkpoint, donor_name in filter(None, remapped.donors)
            )
            file = infos[tensor_name].file if tensor_name in infos else donor_file
            num_bytes = math.prod(remapped.shape) * item_bytes(remapped.dtype)
            infos[tensor_name] = TensorInfo(file, remapped.dtype, remapped.shape, 0, num_bytes)
        super().__init__(model.folder, infos, model.unheld)
        self._model, self._remapped = model, tensors
        self._gathered: dict[str, GatheredRows] = {}

    def array(self, name: str) -> Entries | None:
        if name not in self._remapped:
            return self._model.array(name)
        return self._rows(name) if has_array(self.info(name).dtype) else None

    def raw(self, name: str) -> NDArray[np.uint8]:
        if name not in self._remapped:
            return self._model.raw(name)
        gathered_rows = self._rows(name)
        return np.ascontiguousarray(gathered_rows[0 : gathered_rows.size]).view(np.uint8)

    def tensor(self, name: str) -> Tensor:
        if name not in self._remapped:
            return self._model.tensor(name)
        import torch

        info = self.info(name)
        dtype: torch.dtype = getattr(torch, TORCH_NAMES[info.dtype])
        whole = self.raw(name)
        whole = whole if whole.flags.writeable else whole.copy()  # torch warns of such
        return torch.from_numpy(whole).view(dtype).view(info.shape)

    def give_back(self, name: str) -> None:
        if name not in self._remapped:
            self._model.give_back(name)
            return
        self._gathered.pop(name, None)
        for checkpoint, donor_name in filter(None, self._remapped[name].donors):
            checkpoint.give_back(donor_name)

    def damaged_file(self, name: str) -> Path:
        if name not in self._remapped:
            return self._model.damaged_file(name)
        import torch

        donors = list(filter(None, self._remapped[name].donors))
        for checkpoint, donor_name in donors:
            if not bool(torch.isfinite(checkpoint.tensor(donor_name).float()).all()):
                return checkpoint.damaged_file(donor_name)
        return self.info(name).file

    def _rows(self, name: str) -> GatheredRows:
        if name not in self._gathered:
            self._gathered[name] = GatheredRows(name, self._remapped[name])
        return self._gathered[name]


class GatheredRows:
    """The entries of a remapped tensor, flat, gathered a block at a time; see `Checkpoint.array`.

    Raises:
        CheckpointError: a row is wanted from a donor that lacks the tensor.
    """

    def __init__(self, name: str, tensor: RemappedTensor) -> None:
        self._map, self._kind = tensor.rows, tensor.dtype
        self._width = math.prod(tensor.shape[1:])
        self.size = math.prod(tensor.shape)
        self.dtype = _kind(tensor.dtype)
        donor_codes = set(np.unique(self._map.donor).tolist())
        donor_codes |= set(np.nonzero((self._map.averages >= 0).any(axis=0))[0].tolist())
        self._tables = {
            donor_number: _table(name, tensor.donors[donor_number], tensor.dtype, self._width)
            for donor_number in sorted(donor_codes)
            if donor_number >= 0
        }
        # A run is a stretch of rows that follow one another in one donor; reads within one need no
        # copy.
        run_begins = (np.diff(self._map.row) != 1) | (np.diff(self._map.donor) != 0)
        self._starts = np.concatenate([[0], np.nonzero(run_begins)[0] + 1, [len(self._map.row)]])
        if PADDING in donor_codes:
            self._padding = self._mean()  # here, before threads come

    def __getitem__(self, key: slice, /) -> NDArray[Any]:
        start, stop, _ = key.indices(self.size)
        if stop <= start:
            return np.empty(0, self.dtype)
        width = self._width
        first, last = start // width, -(-stop // width)
        next_run = int(np.searchsorted(self._starts, first, "right"))
        donor_table = self._tables.get(int(self._map.donor[first]))
        # All within one run and stored in the wanted type: a view of the donor's file serves.
        if self._starts[next_run] >= last and donor_table is not None and donor_table.is_ready:
            # Within a run all rows lie as far from their place in the donor's file as the first
            # one.
            row_shift = (int(self._map.row[first]) - first) * width
            return donor_table.rows.reshape(-1)[start + row_shift : stop + row_shift]
        return self._gather(first, last).reshape(-1)[start - first * width : stop - first * width]

    def _gather(self, first: int, last: int) -> NDArray[Any]:
        donor_codes, donor_rows = self._map.donor[first:last], self._map.row[first:last]
        gathered_rows = np.zeros((last - first, self._width), self.dtype)
        for donor_code in np.unique(donor_codes).tolist():
            is_chosen = donor_codes == donor_code
            if donor_code >= 0:
                gathered_rows[is_chosen] = self._tables[donor_code].stored(donor_rows[is_chosen])
            elif donor_code == AVERAGE:
                gathered_rows[is_chosen] = self._averaged(donor_rows[is_chosen])
            elif donor_code == PADDING:
                gathered_rows[is_chosen] = self._padding
        return gathered_rows

    def _averaged(self, which: NDArray[np.int64]) -> NDArray[Any]:
        source_rows = self._map.averages[which]
        exact_dtype = np.float64 if self._kind == "F64" else np.float32
        row_sums = np.zeros((len(which), self._width), exact_dtype)
        # Donors are added in their order, whatever the rows, so that a sum is the same in every
        # block.
        for donor_number, donor_table in self._tables.items():
            has_row = source_rows[:, donor_number] >= 0
            if has_row.any():
                row_sums[has_row] += donor_table.decoded(source_rows[has_row, donor_number])
        num_sources = (source_rows >= 0).sum(axis=1).astype(exact_dtype)
        return _encode(row_sums / num_sources[:, None], self._kind)

    def _mean(self) -> NDArray[Any]:
        num_tokens = self._map.num_tokens
        # float64: the sum of a hundred thousand rows in float32 would lose what tells rows apart.
        row_sum = np.zeros(self._width, np.float64)
        for first_row in range(0, num_tokens, _STEP):
            rows = self._gather(first_row, min(first_row + _STEP, num_tokens))
            row_sum += _decode(rows, self._kind).sum(axis=0, dtype=np.float64)
        mean_row = row_sum / max(num_tokens, 1)
        return _encode(mean_row if self._kind == "F64" else mean_row.astype(np.float32), self._kind)


@dataclass(frozen=True)
class _Table:
    """One donor's tensor, `[rows, width]` of its stored bits."""

    rows: NDArray[Any]
    stored_as: str
    wanted_as: str

    @property
    def is_ready(self) -> bool:
        """Whether its bits are those of the remapped tensor."""
        return self.stored_as == self.wanted_as

    def stored(self, which: NDArray[np.int64]) -> NDArray[Any]:
        return self.rows[which] if self.is_ready else _encode(self.decoded(which), self.wanted_as)

    def decoded(self, which: NDArray[np.int64]) -> NDArray[Any]:
        return _decode(self.rows[which], self.stored_as)


def _table(name: str, donor: tuple[Checkpoint, str] | None, wanted: str, width: int) -> _Table:
    if donor is None:
        raise CheckpointError(
            f"{name}: a model that tokens are taken from has no such tensor; models must share an "
            "architecture."
        )
    checkpoint, donor_name = donor
    info = checkpoint.info(donor_name)
    if math.prod(info.shape[1:]) != width:
        raise CheckpointError(
            f"{checkpoint.folder}: {donor_name} is {list(info.shape)}, but the tokens' rows are "
            f"wanted {width} wide; models must share an architecture."
        )
    stored_rows = checkpoint.raw(donor_name).view(_kind(info.dtype)).reshape(info.shape[0], width)
    return _Table(stored_rows, info.dtype, wanted)


def _kind(dtype: str) -> np.dtype[Any]:
    """How numpy holds a stored type; bfloat16 and 8-bit ones as their bits."""
    if dtype in {"F64", "F32", "F16"}:
        return np.dtype(TORCH_NAMES[dtype])
    return np.dtype(f"u{item_bytes(dtype)}")


def _decode(rows: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Stored bits as float32, or float64 where they are that; the shape stays."""
    if dtype == "BF16":
        return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype in {"F64", "F32", "F16"}:
        return rows if dtype == "F64" else rows.astype(np.float32)
    import torch

    bits = torch.from_numpy(np.ascontiguousarray(rows))
    decoded: NDArray[Any] = bits.view(getattr(torch, TORCH_NAMES[dtype])).float().numpy()
    return decoded


def _encode(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values rounded to a stored type, as its bits; the shape stays."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        is_odd = (bits >> np.uint32(16)) & np.uint32(1)  # halves go to the even neighbor
        # 0x7FFF plus the lowest kept bit carries into it exactly where the rest is above half, or
        # half and the bit odd. A NaN whose bits would carry into the sign gets the plain one.
        rounded_bits = ((bits + np.uint32(0x7FFF) + is_odd) >> np.uint32(16)).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FC0), rounded_bits)
    if dtype in {"F64", "F32", "F16"}:
        return values.astype(_kind(dtype))
    import torch

    exact = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    bits = np.frombuffer(tensor_bytes(exact.to(getattr(torch, TORCH_NAMES[dtype]))), np.uint8)
    return bits.view(_kind(dtype)).reshape(values.shape)
