"""Adapters merged with each other: the result is an adapter again, and no model is needed, but for
its config where adapters change all experts of a layer (`target_parameters`).

What is merged is each adapter's whole change `scale * B A`, not its factors: factors of two
adapters mean nothing side by side (any `B R` and `R^-1 A` make the same change), so that trimming
or voting on them, as peft's `ties` and `dare` do, depends on how the adapters happen to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from toolkit.adapter.folder import AdapterBase, AdapterWriter, FactorSettings
from toolkit.adapter.lowrank import Factors, LowRankFit, fit_dense, fit_sum
from toolkit.adapter.merge_parameters import (
    MergedParameters,
    StackedChange,
    join_fits,
    read_parameters,
    stack_shape,
)
from toolkit.adapter.report import AdapterReport, LayerRow
from toolkit.checkpoint.lora import AdapterFolder, open_adapter
from toolkit.checkpoint.references import find_folder, parse_reference
from toolkit.errors import ConfigError, MergeError
from toolkit.merge.config import InputModel, MergeConfig
from toolkit.merge.kernels.stream import stream_key
from toolkit.merge.layer_stacks import Layout
from toolkit.merge.methods.checks import weight_total
from toolkit.merge.parameters import check_parameters, resolve_all
from toolkit.merge.registry import Method, ParameterValues, Place, get_method
from toolkit.merge.task import TensorTask
from toolkit.merge.torch_engine import compute_tensor
from toolkit.stage import appearing, refuse_taken

_SUMS = ("linear", "task_arithmetic")
"""Methods that are weighted sums, so that factors are enough and the sum is exact."""

_FOREIGN = ("slices", "modules", "base_model", "tokenizer", "tokenizer_source", "chat_template")


def merge_adapters(
    config: MergeConfig,
    out: Path,
    settings: FactorSettings,
    *,
    advance: Callable[[float, str], None] | None = None,
) -> AdapterReport:
    """Merge LoRA adapters of one model into one.

    Args:
        config: a merge configuration whose models are adapter folders. Every method on task vectors
            will do; the base is zero, as an adapter is a task vector already. An adapter that does
            not change a tensor counts there with a change of zero.
        out: the folder to make; it must not exist, or be empty.
        settings: how changes are written. Without a rank a sum is kept whole, and what another
            method gives is cut to the largest rank among the adapters.
        advance: told of each tensor that is done.

    Returns:
        What is kept of each merged change; it stands in report.json too.

    Raises:
        ConfigError: the configuration has what adapters have not, or the method needs more.
        MergeError: adapters differ in shapes, or cannot be written as one.
        CheckpointError: an adapter cannot be read.
    """
    refuse_taken(out)
    adapter_merge = _open_all(config, settings)
    adapter_report = adapter_merge.begin_report()
    with appearing(out) as work:
        with adapter_merge.open_writer(work) as writer:
            # Parameters come first: those of one module must reach the writer one after the other.
            for tensor_name in adapter_merge.parameters.names:
                adapter_merge.write_parameter(tensor_name, writer, adapter_report)
                if advance is not None:
                    advance(1, tensor_name)
            for tensor_name in adapter_merge.names:
                adapter_merge.write_matrix(tensor_name, writer, adapter_report)
                if advance is not None:
                    advance(1, tensor_name)
            writer.finish(adapter_merge.base)
        adapter_report.sort()
        adapter_report.write(work)
    return adapter_report


def _open_all(config: MergeConfig, settings: FactorSettings) -> _AdapterMerge:
    method, models = _check(config)
    adapters = [_open(item.model) for item in models]
    tensor_names = list(dict.fromkeys(name for adapter in adapters for name in adapter.parts))
    shapes = {name: _shape(adapters, name) for name in tensor_names}
    parameters = read_parameters(adapters)
    layout = Layout([*tensor_names, *parameters.names])
    return _AdapterMerge(config, method, models, adapters, shapes, parameters, layout, settings)


@dataclass(frozen=True)
class _AdapterMerge:
    """Opened adapters that fit each other, and how they are merged.

    Attributes:
        config: what was asked for.
        method: how they are merged.
        models: entries of the configuration, one per adapter.
        adapters: the opened folders.
        shapes: of the changes of matrices, by the model's tensor.
        parameters: what is changed by the names of parameters.
        layout: layers of the model, as far as the adapters change them.
        settings: how the result is written.
    """

    config: MergeConfig
    method: Method
    models: Sequence[InputModel]
    adapters: Sequence[AdapterFolder]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: MergedParameters
    layout: Layout
    settings: FactorSettings

    @property
    def names(self) -> list[str]:
        return list(self.shapes)

    @property
    def base(self) -> AdapterBase:
        first_settings = self.adapters[0].settings
        return AdapterBase(
            first_settings.get("base_model_name_or_path"),
            first_settings.get("revision"),
            is_causal=first_settings.get("task_type") == "CAUSAL_LM",
            is_turned=bool(first_settings.get("fan_in_fan_out")),
        )

    def begin_report(self) -> AdapterReport:
        # Only noted: the same model has other names on other machines, so that names prove nothing.
        base_names = {str(item.settings.get("base_model_name_or_path")) for item in self.adapters}
        return AdapterReport(
            {
                "made_by": "toolkit adapter merge",
                "merge": self.config.model_dump(mode="json", exclude_none=True),
                "bases": sorted(base_names),
                **self.settings.written(),
            }
        )

    def open_writer(self, work: Path) -> AdapterWriter:
        embedding_names = [name for name in self.names if _is_embedding(self.adapters, name)]
        order = self.parameters.order
        return AdapterWriter(work, self.names, embeddings=embedding_names, parameters=order)

    def write_parameter(self, name: str, writer: AdapterWriter, report: AdapterReport) -> None:
        """Merge what adapters change of one parameter (all experts of a layer), and write it."""
        stacks_by_adapter = {
            adapter_index: StackedChange.of(self.adapters[adapter_index], wrapped[name])
            for adapter_index, wrapped in enumerate(self.parameters.owned)
            if name in wrapped
        }
        shape = stack_shape(name, stacks_by_adapter.values())
        fit = _merge_stacks(self.method, self._task(name, shape), stacks_by_adapter, self.settings)
        if fit.factors.rank:
            expert_rank = fit.factors.rank // shape[0]
            writer.add_parameter(name, fit.factors, rank=expert_rank)
            report.layers.append(LayerRow.of(name, shape, expert_rank, fit.norm, fit.error))

    def write_matrix(self, name: str, writer: AdapterWriter, report: AdapterReport) -> None:
        """Merge what adapters change of one matrix, and write it."""
        shape = self.shapes[name]
        fit = _merge(self.method, self._task(name, shape), self.adapters, self.settings)
        if fit.factors.rank:
            writer.add_factors(name, fit.factors)
            report.layers.append(LayerRow.of(name, shape, fit.factors.rank, fit.norm, fit.error))

    def _task(self, name: str, shape: tuple[int, ...]) -> TensorTask:
        stack_place = self.layout.find(name)
        num_layers = self.layout.stacks[stack_place[0]] if stack_place is not None else 0
        # Where between the first layer (0) and the last (1): parameters may be lists over depth.
        t = stack_place[1] / (num_layers - 1) if stack_place is not None and num_layers > 1 else 0.0
        common_settings = self.config.parameters
        owners = [(item.model, [item.parameters, common_settings], name) for item in self.models]
        parameter_values = resolve_all(self.method, owners, [common_settings], name, t)
        tensor_place = Place(name, stack_place[1] if stack_place is not None else None, num_layers)
        return TensorTask(name, shape, (), None, parameter_values, tensor_place)


def _check(config: MergeConfig) -> tuple[Method, Sequence[InputModel]]:
    for foreign_key in _FOREIGN:
        if getattr(config, foreign_key):
            raise ConfigError(f"{foreign_key}: adapters have none; leave it out.")
    method = get_method(config.merge_method)
    check_parameters(config, method)
    if method.name not in _SUMS and not (method.needs_base and "weight" in method.parameters):
        raise ConfigError(
            f"merge_method: {method.name} merges weights, and adapters are changes of weights; "
            "take linear, or a method on task vectors such as ties or dare_ties."
        )
    if method.needs_place or method.needs_thresholds:
        raise ConfigError(
            f"merge_method: {method.name} looks at whole models; merge the adapters into their "
            "model with toolkit merge run (path+adapter), and extract one from the result."
        )
    if not config.models:
        raise ConfigError("models: name the adapter folders to merge.")
    return method, config.models


def _open(name: str) -> AdapterFolder:
    folder = find_folder(parse_reference(name).model)
    adapter = open_adapter(folder)
    advice_text = (
        "merge it into its model (toolkit merge run, path+adapter) and extract an adapter from "
        "the result."
    )
    for tensor_name, own_parts in adapter.parts.items():
        if "lora_magnitude_vector" in own_parts:
            raise MergeError(
                f"{adapter.file}: is a DoRA (at {tensor_name}), whose change depends on the model; "
                + advice_text
            )
    if kept_names := [*adapter.saved, *adapter.rows, *adapter.biases]:
        tensor_name = kept_names[0]
        raise MergeError(
            f"{adapter.file}: stores {tensor_name} whole, which is no change to merge; "
            + advice_text
        )
    return adapter


def _factors(adapter: AdapterFolder, name: str) -> Factors:
    """Of peft's change before its scale, float32: B `[M, r]`, A `[r, N]`."""
    a, b = (adapter.tensors.tensor(own).float() for own in adapter.factor_names(name))
    return Factors(b, a)


def _shape(adapters: Sequence[AdapterFolder], name: str) -> tuple[int, ...]:
    """Of the change to one tensor; all adapters must agree on it, and on how it is written."""
    changing_adapters = [adapter for adapter in adapters if name in adapter.parts]
    shapes: list[tuple[int, ...]] = []
    for adapter in changing_adapters:
        a, b = (adapter.tensors.info(own).shape for own in adapter.factor_names(name))
        if len(a) != 2 or len(b) != 2:
            raise MergeError(
                f"{adapter.file}: the change to {name} is a convolution's, which is not supported."
            )
        shapes.append((b[0], a[1]))
    for adapter, shape in zip(changing_adapters, shapes, strict=True):
        if shape != shapes[0]:
            raise MergeError(
                f"{name}: {changing_adapters[0].folder} changes {list(shapes[0])} and "
                f"{adapter.folder} {list(shape)}; adapters must be of one model."
            )
        if adapter.says_turned(name) != changing_adapters[0].says_turned(name):
            raise MergeError(
                f"{name}: {changing_adapters[0].folder} and {adapter.folder} differ in "
                "fan_in_fan_out; adapters must be of one model."
            )
    return shapes[0]


def _is_embedding(adapters: Sequence[AdapterFolder], name: str) -> bool:
    return any("lora_embedding_A" in item.parts[name] for item in adapters if name in item.parts)


def _merge(
    method: Method,
    task: TensorTask,
    adapters: Sequence[AdapterFolder],
    settings: FactorSettings,
) -> LowRankFit:
    stored_dtype = settings.torch_dtype
    factors_by_adapter = {
        n: _factors(adapter, task.name)
        for n, adapter in enumerate(adapters)
        if task.name in adapter.parts
    }
    scales = {n: adapters[n].scale(task.name) for n in factors_by_adapter}
    if method.name in _SUMS:
        weights = _weights(task.parameters)
        terms = [(weights[n] * scales[n], factors) for n, factors in factors_by_adapter.items()]
        return fit_sum(terms, settings.rank, energy=settings.energy, dtype=stored_dtype)
    zero_change: Tensor = torch.zeros(task.shape)
    dense_changes = [zero_change] * len(adapters)
    for n, factors in factors_by_adapter.items():
        dense_changes[n] = scales[n] * (factors.b @ factors.a)
    merged = compute_tensor(
        method, task, dense_changes, zero_change, seed=settings.seed, dtype=torch.float32
    )  # fmt: skip
    wanted_rank = settings.rank or max(factors.rank for factors in factors_by_adapter.values())
    seed = stream_key(settings.seed, task.name, len(adapters))
    if not bool(merged.any()):  # zeros have no singular vectors: factors of rank 0
        return fit_sum([(0.0, next(iter(factors_by_adapter.values())))], None, dtype=stored_dtype)
    return fit_dense(merged, wanted_rank, seed=seed, energy=settings.energy, dtype=stored_dtype)


def _merge_stacks(
    method: Method,
    task: TensorTask,
    stacks: Mapping[int, StackedChange],
    settings: FactorSettings,
) -> LowRankFit:
    """Merge changes of all experts of a layer; each expert's is then of low rank by itself.

    Args:
        method, task: as for one matrix; the whole parameter is one tensor.
        stacks: changes by the number of the adapter, of those that have one.
        settings: what is written.
    """
    dtype = settings.torch_dtype
    expert_numbers = range(task.shape[0])
    if method.name in _SUMS:
        weight_by_adapter = _weights(task.parameters)
        terms = [
            [(weight_by_adapter[n] * own.scale, own.factors[expert]) for n, own in stacks.items()]
            for expert in expert_numbers
        ]
        fits = [fit_sum(t, settings.rank, energy=settings.energy, dtype=dtype) for t in terms]
        return join_fits(fits)
    zero_change: Tensor = torch.zeros(task.shape)
    num_adapters = len(task.parameters["weight"])
    dense_changes = [stacks[n].whole() if n in stacks else zero_change for n in range(num_adapters)]
    merged_changes = compute_tensor(
        method, task, dense_changes, zero_change, seed=settings.seed, dtype=torch.float32
    )  # fmt: skip
    rank = settings.rank or max(own.factors[0].rank for own in stacks.values())
    sketch_seed = stream_key(settings.seed, task.name, num_adapters)
    fits = []
    for expert in expert_numbers:
        at = (sketch_seed + expert) % (1 << 63)
        if bool(merged_changes[expert].any()):
            # `fit_dense` overwrites what it is given, and experts are views of one tensor.
            change = merged_changes[expert].clone()
            fits.append(fit_dense(change, rank, seed=at, energy=settings.energy, dtype=dtype))
        else:
            unchanged = next(iter(stacks.values())).factors[expert]
            fits.append(fit_sum([(0.0, unchanged)], None, dtype=dtype))
    return join_fits(fits)


def _weights(parameters: ParameterValues) -> list[float]:
    """The factor of each adapter in a weighted sum.

    >>> _weights({"weight": (1.0, 3.0), "normalize": True})
    [0.25, 0.75]
    """
    weights = [float(value) for value in parameters["weight"]]
    weight_sum = weight_total(weights) if parameters.get("normalize") else 1.0
    return [float(parameters.get("lambda_", 1.0)) * value / weight_sum for value in weights]
