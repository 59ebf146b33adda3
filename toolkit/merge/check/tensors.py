"""Differences between the models' tensors, by their headers: names, shapes, types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from toolkit.checkpoint.read import is_float
from toolkit.checkpoint.tensor_names import is_buffer, is_vocabulary
from toolkit.merge.check.findings import Finding, kind_of, summarize_names
from toolkit.merge.check.survey import Model, Survey
from toolkit.merge.layer_stacks import Layout, layer_counts

_STACK_ADVICE = "say with slices which layers to merge"
_NAMES_ADVICE = "models must share an architecture; choose others"


def check_tensors(survey: Survey) -> Iterator[Finding]:
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
        layout = _layout(model)
        if is_sliced:
            yield from _kinds(leader, model, survey)
            continue
        uneven = [s for s in first.stacks if layout.stacks.get(s, 0) != first.stacks[s]]
        deeper = {
            name
            for owner, seen in ((leader, first), (model, layout))
            for name in owner.checkpoint.names
            if (place := seen.find(name)) is not None and place[0] in uneven
        }
        for stack in uneven:
            yield Finding(
                "error",
                model.name,
                f"has {layout.stacks.get(stack, 0)} layers in {stack}, {leader.name} has "
                f"{first.stacks[stack]}",
                _STACK_ADVICE,
                frozenset({stack, *deeper}),
            )
        own = {name: model.shape(name) for name in model.checkpoint.names if name not in deeper}
        theirs = {
            name: leader.shape(name) for name in leader.checkpoint.names if name not in deeper
        }
        yield from _lacking(leader, model, theirs, own)
        yield from _shapes(leader, model, theirs, own, survey)


def _layout(model: Model) -> Layout:
    return Layout(model.checkpoint.names, layer_counts(model.config))


Shapes = Mapping[str, tuple[int, ...]]


def _kinds(leader: Model, model: Model, survey: Survey) -> Iterator[Finding]:
    """Slices take layers from anywhere: what must fit is every kind of tensor, not every tensor."""
    first, own = (
        {kind_of(name): each.shape(name) for name in each.checkpoint.names}
        for each in (leader, model)
    )
    yield from _lacking(leader, model, first, own)
    yield from _shapes(leader, model, first, own, survey)


def _lacking(leader: Model, model: Model, first: Shapes, own: Shapes) -> Iterator[Finding]:
    for owner, other, has, has_not in (
        (leader, model, first, own),
        (model, leader, own, first),
    ):
        missing = [n for n in has if n not in has_not and not is_buffer(n, has[n])]
        tied = [name for name in missing if is_vocabulary(name) and _is_tied(other, has[name])]
        missing = [name for name in missing if name not in tied]
        if missing:
            yield Finding(
                "error",
                other.name,
                f"lacks {summarize_names(missing)}, which {owner.name} has",
                _NAMES_ADVICE,
                frozenset(missing),
            )


def _is_tied(model: Model, shape: tuple[int, ...]) -> bool:
    """Whether a head or embedding that a model lacks is another tensor of it."""
    text = model.config.get("text_config")
    nested = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
    if model.config.get("tie_word_embeddings", nested) is False:
        return False
    names = model.checkpoint.names
    return any(is_vocabulary(name) and model.shape(name)[1:] == shape[1:] for name in names)


def _shapes(
    leader: Model, model: Model, first: Shapes, own: Shapes, survey: Survey
) -> Iterator[Finding]:
    by_kind: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for name, shape in own.items():
        if name in first and first[name] != shape:
            by_kind.setdefault((kind_of(name), first[name], shape), []).append(name)
    for (_, theirs, shape), names in by_kind.items():
        rows_only = is_vocabulary(names[0]) and theirs[1:] == shape[1:]
        if rows_only and survey.tokenizer_source is not None:
            continue  # asked for; whether it can be done, the tokenizer's own check says
        yield Finding(
            "error",
            summarize_names(names),
            f"{list(theirs)} in {leader.name}, {list(shape)} in {model.name}",
            "the vocabularies differ in size; say with tokenizer_source which one the merge has"
            if rows_only
            else _NAMES_ADVICE,
            frozenset(names),
        )


def _packed(model: Model) -> Iterator[Finding]:
    """Weights in integers, or in 8-bit floats, that no quantization_config speaks of."""
    if model.config.get("quantization_config"):
        return
    stored = {name: model.checkpoint.info(name) for name in model.checkpoint.names}
    matrices = {n: i for n, i in stored.items() if len(i.shape) > 1 and not is_buffer(n, i.shape)}
    integers = [name for name, info in matrices.items() if not is_float(info.dtype)]
    eighths = [name for name, info in matrices.items() if info.dtype.startswith("F8")]
    if integers:
        types = ", ".join(sorted({stored[name].dtype for name in integers}))
        yield Finding(
            "error",
            model.name,
            f"stores {summarize_names(integers)} as {types}, which looks quantized",
            "load it with dequantize=True, save it in bfloat16, and merge that",
        )
    if eighths:
        types = ", ".join(sorted({stored[name].dtype for name in eighths}))
        yield Finding(
            "warning",
            model.name,
            f"stores {summarize_names(eighths)} as {types}: 8 bits a number, and scales in other "
            "tensors are not applied",
            "merge the bfloat16 original",
        )


def _types(survey: Survey) -> Iterator[Finding]:
    """Models stored in different types, and a type to write that holds less than what is read."""
    main = {model.name: _main_type(model) for model in survey.models}
    known = {name: dtype for name, dtype in main.items() if dtype}
    if len(set(known.values())) > 1:
        yield Finding(
            "note",
            "dtype",
            f"models are stored differently ({', '.join(f'{n} {d}' for n, d in known.items())})",
            "without dtype or out_dtype the merge gets the type that holds them all"
            if survey.config is None or not (survey.config.dtype or survey.config.out_dtype)
            else "",
        )
    wanted = None if survey.config is None else survey.config.out_dtype or survey.config.dtype
    if wanted == "float16" and any(dtype in {"BF16", "F32", "F64"} for dtype in known.values()):
        yield Finding(
            "warning",
            "dtype",
            "float16 ends at 65504, and the models are stored in a type of wider range",
            "write bfloat16 or float32, unless the values are known to be small",
        )


def _main_type(model: Model) -> str | None:
    sizes: Counter[str] = Counter()
    for name in model.checkpoint.names:
        info = model.checkpoint.info(name)
        if is_float(info.dtype):
            sizes[info.dtype] += info.num_bytes
    return sizes.most_common(1)[0][0] if sizes else None
