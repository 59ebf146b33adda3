"""Which tensor of a mixture comes from which tensor of which model; nothing is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.checkpoint.load import load_model_config
from toolkit.checkpoint.models import Models, Source
from toolkit.checkpoint.read import TORCH_NAMES, is_float, item_bytes
from toolkit.checkpoint.tokens import read_tokens
from toolkit.errors import MergeError
from toolkit.merge.layer_stacks import ModelView
from toolkit.merge.moe.config import ExpertSection, MoeConfig
from toolkit.merge.moe.layouts import (
    LAYOUTS,
    PROJECTIONS,
    MoeLayout,
    choose_layout,
    mixture_values,
)
from toolkit.merge.output import promote

_STORED = {torch_name: name for name, torch_name in TORCH_NAMES.items()}
_FEED_FORWARD = re.compile(r"model\.layers\.\d+\.mlp\.")


@dataclass(frozen=True)
class MoeTensor:
    """One tensor of a mixture.

    Attributes:
        name: in the mixture.
        shape: of it.
        source: where it is copied from; None for rows of a router.
        layer: of a router.
        is_shared: whether it is the gate of a shared expert.
        noise_scale: standard deviation of noise to add.
        scale: to multiply with, after the noise.
    """

    name: str
    shape: tuple[int, ...]
    source: Source | None = None
    layer: int = 0
    is_shared: bool = False
    noise_scale: float = 0.0
    scale: float = 1.0

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class MoePlan:
    """A mixture as it will be written.

    Attributes:
        layout: of it.
        dtype: of all its tensors, by the format's name.
        tensors: in the order of the file.
        values: its config.json.
        sparse_layers: layers that have experts.
        num_active: parameters that one token uses.
    """

    layout: MoeLayout
    dtype: str
    tensors: tuple[MoeTensor, ...]
    values: Mapping[str, Any] = field(repr=False)
    sparse_layers: tuple[int, ...]
    num_active: int

    @property
    def num_parameters(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    @property
    def num_bytes(self) -> int:
        return self.num_parameters * item_bytes(self.dtype)


def plan_moe(config: MoeConfig, models: Models) -> MoePlan:
    """Plan a mixture of experts and check that its models fit each other.

    Args:
        config: what to make.
        models: where its models stand.

    Raises:
        MergeError: the base has no counterpart among mixtures, or models differ in shapes, layers,
            activation or tokens.
        CheckpointError: a model cannot be read.
    """
    views = {
        name: ModelView(name, models.shapes(name), models.config(name)) for name in config.models
    }
    settings = {
        name: load_model_config(models.checkpoint(name).folder).to_dict() for name in config.models
    }
    base = settings[config.base_model]
    layout = choose_layout(config, str(base["model_type"]))
    _check_settings(config, settings, layout)
    _check_tokens(config, models)
    num_layers = int(base["num_hidden_layers"])
    sparse = tuple(n for n in range(num_layers) if (n + 1) % config.sparse_step == 0)
    if not sparse:
        raise MergeError(
            f"sparse_step: {config.sparse_step} leaves no layer of {num_layers} with experts."
        )
    maker = _Maker(config, layout, models, views, sparse)
    tensors, spared = maker.tensors(num_layers, bool(base.get("tie_word_embeddings")))
    dtype = _STORED[config.dtype] if config.dtype else _widest(tensors, models)
    shapes = views[config.base_model].shapes
    values = mixture_values(layout, config, base, shapes, TORCH_NAMES[dtype])
    total = sum(tensor.size for tensor in tensors)
    return MoePlan(layout, dtype, tuple(tensors), values, sparse, total - spared)


@dataclass(frozen=True)
class _Maker:
    config: MoeConfig
    layout: MoeLayout
    models: Models
    views: Mapping[str, ModelView]
    sparse: tuple[int, ...]

    def tensors(self, num_layers: int, is_tied: bool) -> tuple[list[MoeTensor], int]:
        """All tensors, and how many parameters a token is spared by the choice of experts."""
        config, base = self.config, self.views[self.config.base_model]
        made: list[MoeTensor] = []
        for name, shape in base.shapes.items():
            if _FEED_FORWARD.match(name) or (is_tied and name == "lm_head.weight"):
                continue
            if not self.layout.takes(name):
                raise MergeError(
                    f"{name}: {config.base_model} has it, but {self.layout.name} has no place for "
                    f"it. Layouts: {', '.join(layout.name for layout in LAYOUTS)}."
                )
            made.append(MoeTensor(name, shape, Source(config.base_model, name)))
        hidden = base.shapes["model.embed_tokens.weight"][1]
        spared = 0
        for layer in range(num_layers):
            if layer not in self.sparse:
                own = ExpertSection(source_model=config.base_model)
                dense = "model.layers.{}.mlp.{}.weight"
                made += [self._copied(dense.format(layer, p), own, layer, p) for p in PROJECTIONS]
                continue
            made.append(MoeTensor(self.layout.router(layer), (len(config.experts), hidden),
                                  layer=layer))  # fmt: skip
            for number, expert in enumerate(config.experts):
                parts = [
                    self._copied(self.layout.expert(layer, number, p), expert, layer, p)
                    for p in PROJECTIONS
                ]
                made += parts
                if number >= config.experts_per_token:
                    spared += sum(part.size for part in parts)
            if self.layout.shared:
                made += self._shared(layer, hidden)
        return made, spared

    def _shared(self, layer: int, hidden: int) -> list[MoeTensor]:
        nothing = ExpertSection(source_model=self.config.base_model, residual_scale=0.0)
        expert = self.config.shared_experts[0] if self.config.shared_experts else nothing
        gate = MoeTensor(self.layout.shared_gate(layer), (1, hidden), layer=layer, is_shared=True)
        parts = (
            self._copied(self.layout.shared_expert(layer, p), expert, layer, p) for p in PROJECTIONS
        )
        return [gate, *parts]

    def _copied(self, name: str, expert: ExpertSection, layer: int, projection: str) -> MoeTensor:
        tensor = f"model.layers.{layer}.mlp.{projection}.weight"
        base, own = self.views[self.config.base_model], self.views[expert.source_model]
        for view in (base, own):
            if tensor not in view.shapes:
                folder = self.models.checkpoint(view.name).folder
                raise MergeError(
                    f"{tensor}: {folder} has no such tensor; experts are copied from dense "
                    "feed-forward layers."
                )
        if extra := next((t for t in (f"{tensor[:-6]}bias",) if t in own.shapes), None):
            raise MergeError(f"{extra}: experts have no biases in {self.layout.name}.")
        if own.shapes[tensor] != base.shapes[tensor]:
            file = self.models.checkpoint(expert.source_model).info(tensor).file
            raise MergeError(
                f"{tensor}: base_model is {list(base.shapes[tensor])} but {file} is "
                f"{list(own.shapes[tensor])}; experts must have the base's shapes."
            )
        is_last = projection == "down_proj"
        scale = expert.residual_scale if is_last and expert.residual_scale is not None else 1.0
        return MoeTensor(
            name,
            own.shapes[tensor],
            Source(expert.source_model, tensor),
            noise_scale=expert.noise_scale or 0.0,
            scale=scale,
        )


def _widest(tensors: list[MoeTensor], models: Models) -> str:
    widest = ""
    for tensor in tensors:
        if tensor.source is not None and is_float(stored := models.dtype(tensor.source)):
            widest = promote(widest, stored) if widest else stored
    return widest or "F32"


def _check_settings(
    config: MoeConfig, settings: Mapping[str, Mapping[str, Any]], layout: MoeLayout
) -> None:
    base = settings[config.base_model]
    for name, values in settings.items():
        if values["model_type"] not in layout.bases:
            raise MergeError(
                f"{name}: is a {values['model_type']!r} model; experts of {layout.name} come from "
                f"{', '.join(layout.bases)}."
            )
        for key in ("num_hidden_layers", "hidden_act"):
            if values.get(key) != base.get(key):
                raise MergeError(
                    f"{name}: {key} is {values.get(key)!r}, but the base has {base.get(key)!r}; "
                    "experts must be models of one architecture."
                )


def _check_tokens(config: MoeConfig, models: Models) -> None:
    found: dict[str, Mapping[str, Any]] = {}
    for name in config.models:
        folder = models.token_folder(name)
        if any((folder / f).is_file() for f in ("tokenizer.json", "vocab.json", "tokenizer.model")):
            found[name] = read_tokens(folder).ids
    first = found.get(config.base_model)
    for name, ids in found.items():
        if first is not None and ids != first:
            odd = sorted(t for t in {*ids, *first} if ids.get(t) != first.get(t))
            raise MergeError(
                f"{name}: its tokenizer is not the base's ({odd[0]!r} is {ids.get(odd[0])} against "
                f"{first.get(odd[0])}, and {len(odd) - 1} more); experts must read the same tokens."
            )
    table = "model.embed_tokens.weight"
    wanted = models.shapes(config.base_model).get(table)
    for name in config.models:
        if models.shapes(name).get(table) != wanted:
            raise MergeError(
                f"{table}: base_model is {wanted} but {name} is {models.shapes(name).get(table)}; "
                "experts must have the base's vocabulary and width."
            )
