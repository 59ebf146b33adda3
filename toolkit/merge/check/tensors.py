"""Differences between the models' tensors, by their headers: names, shapes, types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from toolkit.checkpoint.model_values import tie_setting
from toolkit.checkpoint.read import is_float
from toolkit.checkpoint.tensor_names import is_buffer, is_vocabulary
from toolkit.errors import Fault
from toolkit.merge.check.findings import StructuralFault, kind_of, summarize_names
from toolkit.merge.check.survey import Model, Survey
from toolkit.merge.layer_stacks import Layout, layer_counts

_STACK_ADVICE = "say with slices which layers to merge"
_NAMES_ADVICE = "models must share an architecture; choose others"


def check_tensors(survey: Survey) -> Iterator[Fault]:
    """Compare every model's tensors with the leading model's, and look at how they are stored."""
    for model in survey.models:
        yield from _packed(model)
    yield from _types(survey)
    leader = survey.leader
    if leader is None:
        return
    is_sliced = survey.config is not None and survey.config.models is None
    first = _layout(leader)
    for model in survey.others:
        model_layout = _layout(model)
        if is_sliced:
            yield from _kinds(leader, model, survey)
            continue
        uneven = [s for s in first.stacks if model_layout.stacks.get(s, 0) != first.stacks[s]]
        # What belongs to an uneven stack is said once, with the stack, and not again name by name.
        deeper = {
            tensor_name
            for owner, seen in ((leader, first), (model, model_layout))
            for tensor_name in owner.checkpoint.names
            if (stack_place := seen.find(tensor_name)) is not None and stack_place[0] in uneven
        }
        for stack in uneven:
            yield StructuralFault(
                model.name,
                f"has {model_layout.stacks.get(stack, 0)} layers in {stack}, {leader.name} has "
                f"{first.stacks[stack]}",
                _STACK_ADVICE,
                "error",
                frozenset({stack, *deeper}),
            )
        own = {name: model.shape(name) for name in model.checkpoint.names if name not in deeper}
        leader_shapes = {
            name: leader.shape(name) for name in leader.checkpoint.names if name not in deeper
        }
        yield from _lacking(leader, model, leader_shapes, own)
        yield from _shapes(leader, model, leader_shapes, own, survey)


def _layout(model: Model) -> Layout:
    return Layout(model.checkpoint.names, layer_counts(model.config))


Shapes = Mapping[str, tuple[int, ...]]


def _kinds(leader: Model, model: Model, survey: Survey) -> Iterator[Fault]:
    """Slices take layers from anywhere: what must fit is every kind of tensor, not every tensor."""
    leader_kinds, own_kinds = (
        {kind_of(name): each.shape(name) for name in each.checkpoint.names}
        for each in (leader, model)
    )
    yield from _lacking(leader, model, leader_kinds, own_kinds)
    yield from _shapes(leader, model, leader_kinds, own_kinds, survey)


def _lacking(leader: Model, model: Model, first: Shapes, own: Shapes) -> Iterator[Fault]:
    for owner, other, has, has_not in (
        (leader, model, first, own),
        (model, leader, own, first),
    ):
        missing = [n for n in has if n not in has_not and not is_buffer(n, has[n])]
        tied = [name for name in missing if is_vocabulary(name) and _is_tied(other, has[name])]
        missing = [name for name in missing if name not in tied]
        if missing:
            yield StructuralFault(
                other.name,
                f"lacks {summarize_names(missing)}, which {owner.name} has",
                _NAMES_ADVICE,
                "error",
                frozenset(missing),
            )


def _is_tied(model: Model, shape: tuple[int, ...]) -> bool:
    """Whether a head or embedding that a model lacks is another tensor of it."""
    if tie_setting(model.config) is False:
        return False
    tensor_names = model.checkpoint.names
    return any(is_vocabulary(name) and model.shape(name)[1:] == shape[1:] for name in tensor_names)


def _shapes(
    leader: Model, model: Model, first: Shapes, own: Shapes, survey: Survey
) -> Iterator[Fault]:
    names_by_shapes: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for name, own_shape in own.items():
        if name in first and first[name] != own_shape:
            names_by_shapes.setdefault((kind_of(name), first[name], own_shape), []).append(name)
    for (_, leader_shape, own_shape), kind_names in names_by_shapes.items():
        rows_only = is_vocabulary(kind_names[0]) and leader_shape[1:] == own_shape[1:]
        if rows_only and survey.tokenizer_source is not None:
            continue  # asked for; whether it can be done, the tokenizer's own check says
        yield StructuralFault(
            summarize_names(kind_names),
            f"{list(leader_shape)} in {leader.name}, {list(own_shape)} in {model.name}",
            "the vocabularies differ in size; say with tokenizer_source which one the merge has"
            if rows_only
            else _NAMES_ADVICE,
            "error",
            frozenset(kind_names),
        )


def _packed(model: Model) -> Iterator[Fault]:
    """Weights in integers, or in 8-bit floats, that no quantization_config speaks of."""
    if model.config.get("quantization_config"):
        return
    stored = {name: model.checkpoint.info(name) for name in model.checkpoint.names}
    matrices = {n: i for n, i in stored.items() if len(i.shape) > 1 and not is_buffer(n, i.shape)}
    integer_names = [name for name, info in matrices.items() if not is_float(info.dtype)]
    eight_bit_names = [name for name, info in matrices.items() if info.dtype.startswith("F8")]
    if integer_names:
        stored_types = ", ".join(sorted({stored[name].dtype for name in integer_names}))
        yield Fault(
            model.name,
            f"stores {summarize_names(integer_names)} as {stored_types}, which looks quantized",
            "load it with dequantize=True, save it in bfloat16, and merge that",
        )
    if eight_bit_names:
        stored_types = ", ".join(sorted({stored[name].dtype for name in eight_bit_names}))
        yield Fault(
            model.name,
            f"stores {summarize_names(eight_bit_names)} as {stored_types}: 8 bits a number, and "
            "scales in other tensors are not applied",
            "merge the bfloat16 original",
            "warning",
        )


def _types(survey: Survey) -> Iterator[Fault]:
    """Models stored in different types, and a type to write that holds less than what is read."""
    main_types = {model.name: _main_type(model) for model in survey.models}
    known = {name: dtype for name, dtype in main_types.items() if dtype}
    if len(set(known.values())) > 1:
        yield Fault(
            "dtype",
            f"models are stored differently ({', '.join(f'{n} {d}' for n, d in known.items())})",
            "without dtype or out_dtype the merge gets the type that holds them all"
            if survey.config is None or not (survey.config.dtype or survey.config.out_dtype)
            else "",
            "note",
        )
    wanted = None if survey.config is None else survey.config.out_dtype or survey.config.dtype
    if wanted == "float16" and any(dtype in {"BF16", "F32", "F64"} for dtype in known.values()):
        yield Fault(
            "dtype",
            "float16 ends at 65504, and the models are stored in a type of wider range",
            "write bfloat16 or float32, unless the values are known to be small",
            "warning",
        )


def _main_type(model: Model) -> str | None:
    bytes_by_dtype: Counter[str] = Counter()
    for tensor_name in model.checkpoint.names:
        info = model.checkpoint.info(tensor_name)
        if is_float(info.dtype):
            bytes_by_dtype[info.dtype] += info.num_bytes
    return bytes_by_dtype.most_common(1)[0][0] if bytes_by_dtype else None
