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
        name: tensor name in the mixture.
        shape: shape of the tensor.
        source: where it is copied from; None for rows of a router.
        layer: layer of a router.
        is_shared: whether it is the gate of a shared expert.
        noise_scale: standard deviation of noise to add.
        scale: factor to multiply with, after the noise.
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
    views_by_model = {
        name: ModelView(name, models.shapes(name), models.config(name)) for name in config.models
    }
    settings_by_model = {
        name: load_model_config(models.checkpoint(name).folder).to_dict() for name in config.models
    }
    base_values = settings_by_model[config.base_model]
    layout = choose_layout(config, str(base_values["model_type"]))
    _check_settings(config, settings_by_model, layout)
    _check_tokens(config, models)
    num_layers = int(base_values["num_hidden_layers"])
    # transformers counts `decoder_sparse_step` this way: the last layer of each group is sparse.
    sparse_layers = tuple(n for n in range(num_layers) if (n + 1) % config.sparse_step == 0)
    if not sparse_layers:
        raise MergeError(
            f"sparse_step: {config.sparse_step} leaves no layer of {num_layers} with experts."
        )
    maker = _Maker(config, layout, models, views_by_model, sparse_layers)
    tensors, num_spared = maker.tensors(num_layers, bool(base_values.get("tie_word_embeddings")))
    dtype = _STORED[config.dtype] if config.dtype else _widest(tensors, models)
    base_shapes = views_by_model[config.base_model].shapes
    values = mixture_values(layout, config, base_values, base_shapes, TORCH_NAMES[dtype])
    num_total = sum(tensor.size for tensor in tensors)
    return MoePlan(layout, dtype, tuple(tensors), values, sparse_layers, num_total - num_spared)


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
        for tensor_name, shape in base.shapes.items():
            # A tied head is the embedding; written out it would be trained apart from it.
            if _FEED_FORWARD.match(tensor_name) or (is_tied and tensor_name == "lm_head.weight"):
                continue
            if not self.layout.takes(tensor_name):
                raise MergeError(
                    f"{tensor_name}: {config.base_model} has it, but {self.layout.name} has no "
                    f"place for it. Layouts: {', '.join(layout.name for layout in LAYOUTS)}."
                )
            made.append(MoeTensor(tensor_name, shape, Source(config.base_model, tensor_name)))
        hidden_size = base.shapes["model.embed_tokens.weight"][1]
        num_spared = 0
        for layer in range(num_layers):
            if layer not in self.sparse:
                own = ExpertSection(source_model=config.base_model)
                dense = "model.layers.{}.mlp.{}.weight"
                made += [self._copied(dense.format(layer, p), own, layer, p) for p in PROJECTIONS]
                continue
            made.append(MoeTensor(self.layout.router(layer), (len(config.experts), hidden_size),
                                  layer=layer))  # fmt: skip
            for number, expert in enumerate(config.experts):
                expert_tensors = [
                    self._copied(self.layout.expert(layer, number, p), expert, layer, p)
                    for p in PROJECTIONS
                ]
                made += expert_tensors
                # Experts beyond the number chosen: a token passes as many as that, whichever they
                # are.
                if number >= config.experts_per_token:
                    num_spared += sum(part.size for part in expert_tensors)
            if self.layout.shared:
                made += self._shared(layer, hidden_size)
        return made, num_spared

    def _shared(self, layer: int, hidden: int) -> list[MoeTensor]:
        silent_expert = ExpertSection(source_model=self.config.base_model, residual_scale=0.0)
        expert = self.config.shared_experts[0] if self.config.shared_experts else silent_expert
        gate = MoeTensor(self.layout.shared_gate(layer), (1, hidden), layer=layer, is_shared=True)
        expert_tensors = (
            self._copied(self.layout.shared_expert(layer, p), expert, layer, p) for p in PROJECTIONS
        )
        return [gate, *expert_tensors]

    def _copied(self, name: str, expert: ExpertSection, layer: int, projection: str) -> MoeTensor:
        dense_name = f"model.layers.{layer}.mlp.{projection}.weight"
        base_view, expert_view = self.views[self.config.base_model], self.views[expert.source_model]
        for view in (base_view, expert_view):
            if dense_name not in view.shapes:
                folder = self.models.checkpoint(view.name).folder
                raise MergeError(
                    f"{dense_name}: {folder} has no such tensor; experts are copied from dense "
                    "feed-forward layers."
                )
        if extra := next((t for t in (f"{dense_name[:-6]}bias",) if t in expert_view.shapes), None):
            raise MergeError(f"{extra}: experts have no biases in {self.layout.name}.")
        # One config describes all experts of a layer, so that none can be wider than the base's.
        if expert_view.shapes[dense_name] != base_view.shapes[dense_name]:
            file = self.models.checkpoint(expert.source_model).info(dense_name).file
            raise MergeError(
                f"{dense_name}: base_model is {list(base_view.shapes[dense_name])} but {file} is "
                f"{list(expert_view.shapes[dense_name])}; experts must have the base's shapes."
            )
        # The last projection alone: scaling all three would pass through the activation.
        is_output = projection == "down_proj"
        scale = expert.residual_scale if is_output and expert.residual_scale is not None else 1.0
        return MoeTensor(
            name,
            expert_view.shapes[dense_name],
            Source(expert.source_model, dense_name),
            noise_scale=expert.noise_scale or 0.0,
            scale=scale,
        )


def _widest(tensors: list[MoeTensor], models: Models) -> str:
    widest_dtype = ""
    for tensor in tensors:
        if tensor.source is not None and is_float(stored_dtype := models.dtype(tensor.source)):
            widest_dtype = promote(widest_dtype, stored_dtype) if widest_dtype else stored_dtype
    return widest_dtype or "F32"


def _check_settings(
    config: MoeConfig, settings: Mapping[str, Mapping[str, object]], layout: MoeLayout
) -> None:
    base_values = settings[config.base_model]
    for model_name, values in settings.items():
        if values["model_type"] not in layout.bases:
            raise MergeError(
                f"{model_name}: is a {values['model_type']!r} model; experts of {layout.name} come "
                f"from {', '.join(layout.bases)}."
            )
        for key in ("num_hidden_layers", "hidden_act"):
            if values.get(key) != base_values.get(key):
                raise MergeError(
                    f"{model_name}: {key} is {values.get(key)!r}, but the base has "
                    f"{base_values.get(key)!r}; experts must be models of one architecture."
                )


def _check_tokens(config: MoeConfig, models: Models) -> None:
    ids_by_model: dict[str, Mapping[str, object]] = {}
    for model_name in config.models:
        folder = models.token_folder(model_name)
        if any((folder / f).is_file() for f in ("tokenizer.json", "vocab.json", "tokenizer.model")):
            ids_by_model[model_name] = read_tokens(folder).ids
    base_ids = ids_by_model.get(config.base_model)
    for model_name, ids in ids_by_model.items():
        if base_ids is not None and ids != base_ids:
            odd_tokens = sorted(t for t in {*ids, *base_ids} if ids.get(t) != base_ids.get(t))
            raise MergeError(
                f"{model_name}: its tokenizer is not the base's ({odd_tokens[0]!r} is "
                f"{ids.get(odd_tokens[0])} against {base_ids.get(odd_tokens[0])}, and "
                f"{len(odd_tokens) - 1} more); experts must read the same tokens."
            )
    table_name = "model.embed_tokens.weight"
    base_shape = models.shapes(config.base_model).get(table_name)
    for model_name in config.models:
        if models.shapes(model_name).get(table_name) != base_shape:
            raise MergeError(
                f"{table_name}: base_model is {base_shape} but {model_name} is "
                f"{models.shapes(model_name).get(table_name)}; experts must have the base's "
                "vocabulary and width."
            )
