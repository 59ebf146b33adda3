"""Writing an adapter folder that peft loads."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from toolkit.adapter.lowrank import Factors
from toolkit.checkpoint.append import AppendWriter
from toolkit.checkpoint.lora import PREFIX, SETTINGS_FILE, WEIGHTS_FILE
from toolkit.errors import ConfigError, MergeError
from toolkit.load_yaml import JsonObject
from toolkit.stage import write_json

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class FactorSettings:
    """How changes are written as factors.

    Attributes:
        rank: most columns of the factors.
        energy: with it, each tensor gets the smallest rank that keeps this share of its squared
            norm, up to `rank`; in (0, 1].
        seed: of random methods and sketches; each tensor's own follows from it and its name.
        dtype: of what is stored.

    Raises:
        ConfigError: names the setting, its value and what it may be.
    """

    rank: int | None = None
    energy: float | None = None
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank: must be at least 1 (got {self.rank}).")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise ConfigError(f"energy: must be above 0 and at most 1 (got {self.energy:g}).")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype: must be one of {', '.join(DTYPES)} (got {self.dtype!r}).")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of what is stored."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def written(self) -> JsonObject:
        """The settings as they stand in report.json."""
        return {
            "rank": self.rank,
            "energy": self.energy,
            "seed": self.seed,
            "dtype": self.dtype,
        }


_FIXED_SETTINGS = {
    "use_rslora": False,
    "use_dora": False,
    "lora_dropout": 0.0,
    "bias": "none",
    "init_lora_weights": True,
    "inference_mode": True,
}
"""Settings that say: the change is `B A` and nothing else."""


@dataclass(frozen=True)
class AdapterBase:
    """The model that an adapter belongs to, as the adapter's settings describe it.

    Attributes:
        path: folder, or name on the hub.
        revision: of it on the hub.
        is_causal: whether it predicts the next token.
        is_turned: whether its linear weights are `[inputs, outputs]`.
        modules: names of all its modules; with them, targets that are all modules of one last name
            are written by that name.
    """

    path: str | None
    revision: str | None = None
    is_causal: bool = True
    is_turned: bool = False
    modules: Sequence[str] | None = None


class AdapterWriter(AppendWriter):
    """Writes factors and whole tensors as they come; the settings follow from what was written.

    Use as a context manager, and call `finish` at its end.

    Args:
        folder: where the files go; it must exist.
        factored: the model's tensors that may get factors.
        saved: the model's tensors that may be stored whole.
        embeddings: those of `factored` that are embeddings, whose factors have other names.
        parameters: parameters that peft reaches by their own names, by their module, in the order
            in which it wraps them.
    """

    def __init__(
        self,
        folder: Path,
        factored: Collection[str],
        saved: Collection[str] = (),
        embeddings: Collection[str] = (),
        parameters: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.folder = folder
        self._embeddings = set(embeddings)
        self._parameters = dict(parameters or {})
        tensor_keys = [key for name in factored for key in self._keys(name)]
        for module, own_parameters in self._parameters.items():
            # Room for every depth: how deep one lies depends on which of the others differ, and
            # that is known only after the header's room was left.
            for depth in range(len(own_parameters)):
                tensor_keys += _wrapper_keys(module, depth)
        super().__init__(folder / WEIGHTS_FILE, [*tensor_keys, *(PREFIX + n for n in saved)])
        self._ranks: dict[str, int] = {}
        self._parameter_ranks: dict[str, int] = {}
        self._pending: dict[str, Factors] = {}
        self._saved: list[str] = []

    def add_factors(self, name: str, factors: Factors) -> None:
        """Store the change of one of the model's tensors; its scale will be 1."""
        self._write_factors(self._keys(name), factors)
        self._ranks[name.removesuffix(".weight")] = factors.rank

    def add_parameter(self, name: str, factors: Factors, *, rank: int) -> None:
        """Store the change of a parameter that peft reaches by its own name.

        What stands in the file depends on which other parameters of its module are changed, so
        those of one module are to come one after the other.

        Args:
            name: of the parameter in memory.
            factors: of all its experts, as peft lays them out (see `stacked`).
            rank: of the change to one expert.
        """
        module_name = name.rpartition(".")[0]
        if any(other.rpartition(".")[0] != module_name for other in self._pending):
            self._flush()
        self._pending[name] = factors
        self._parameter_ranks[name] = rank

    def _flush(self) -> None:
        """Write the changes of one module's parameters: the one wrapped first lies deepest."""
        if not self._pending:
            return
        module_name = next(iter(self._pending)).rpartition(".")[0]
        changed_names = [name for name in self._parameters[module_name] if name in self._pending]
        for depth, name in enumerate(reversed(changed_names)):
            self._write_factors(_wrapper_keys(module_name, depth), self._pending[name])
        self._pending = {}

    def _write_factors(self, keys: tuple[str, str], factors: Factors) -> None:
        self.append(keys[0], factors.a)
        self.append(keys[1], factors.b)

    def add_saved(self, name: str, tensor: Tensor, *, key: str | None = None) -> None:
        """Store what takes the place of one of the model's tensors.

        Args:
            name: of the model's tensor.
            tensor: in the type that it is to have.
            key: peft's name, where it is not the usual one.
        """
        self.append(key or PREFIX + name, tensor)
        if key is None:
            self._saved.append(name.rpartition(".")[0])

    def finish(self, base: AdapterBase, *, tied: Collection[str] = ()) -> None:
        """Write adapter_config.json.

        Args:
            base: the model it belongs to.
            tied: saved modules that are another saved one once more.

        Raises:
            MergeError: there is nothing in it, so that peft would refuse it.
        """
        self._flush()
        ranks = {**self._ranks, **self._parameter_ranks}
        if not ranks:
            raise MergeError(
                f"{self.folder.name.strip('.').removesuffix('.partial')}: no linear weight is "
                "changed, so there is no adapter to write; save the tensors otherwise."
            )
        # Factors carry their scale, so alpha is the rank, and what has another rank is listed.
        rank = max(ranks.values())
        other_ranks = {name: own_rank for name, own_rank in ranks.items() if own_rank != rank}
        # A tied one is not named: peft finds it by `ensure_weight_tying`.
        saved_modules = [name for name in dict.fromkeys(self._saved) if name not in tied]
        adapter_settings: JsonObject = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM" if base.is_causal else None,
            "base_model_name_or_path": base.path,
            "revision": base.revision,
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": other_ranks,
            "alpha_pattern": other_ranks,
            "target_modules": _short_targets(list(self._ranks), base.modules),
            "target_parameters": _short_parameters(self._parameter_ranks, self._parameters) or None,
            "modules_to_save": saved_modules or None,
            "ensure_weight_tying": bool(tied),
            "fan_in_fan_out": base.is_turned,
            **_FIXED_SETTINGS,
        }
        write_json(self.folder / SETTINGS_FILE, adapter_settings)

    def _keys(self, name: str) -> tuple[str, str]:
        module_name = PREFIX + name.removesuffix(".weight")
        if name in self._embeddings:
            return f"{module_name}.lora_embedding_A", f"{module_name}.lora_embedding_B"
        return f"{module_name}.lora_A.weight", f"{module_name}.lora_B.weight"


def _wrapper_keys(module: str, depth: int) -> tuple[str, str]:
    """peft's names of A and B of a wrapped parameter, with so many wrappers around its own."""
    wrapper_path = PREFIX + module + ".base_layer" * depth
    return f"{wrapper_path}.lora_A.weight", f"{wrapper_path}.lora_B.weight"


def _short_parameters(names: Collection[str], everything: Mapping[str, Sequence[str]]) -> list[str]:
    """Parameters as peft matches them: without the layer where all layers' are meant.

    >>> known = {"h.0.moe": ["h.0.moe.up"], "h.1.moe": ["h.1.moe.up"]}
    >>> _short_parameters(["h.0.moe.up", "h.1.moe.up"], known)
    ['moe.up']
    >>> _short_parameters(["h.0.moe.up"], known)
    ['h.0.moe.up']
    """
    all_names = [name for own in everything.values() for name in own]
    short_names: dict[str, None] = {}
    for name in names:
        name_end = re.split(r"\.\d+\.", name)[-1]
        meant = {other for other in all_names if other.endswith(f".{name_end}")}
        is_short = name_end != name and not name_end.endswith(".weight") and meant <= set(names)
        short_names[name_end if is_short else name] = None
    return list(short_names)


def _short_targets(names: Sequence[str], everything: Sequence[str] | None) -> list[str]:
    """Module names as peft matches them: a last name where it means no module besides.

    >>> _short_targets(["h.0.q", "h.1.q", "h.0.k"], ["h", "h.0.q", "h.1.q", "h.0.k", "h.1.k"])
    ['q', 'h.0.k']
    """
    short_names: dict[str, None] = {}
    for name in names:
        last_name = name.rpartition(".")[2]
        meant_names = {other for other in everything or () if other.rpartition(".")[2] == last_name}
        short_names[last_name if meant_names and meant_names <= set(names) else name] = None
    return list(short_names)
