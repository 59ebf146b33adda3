"""Differences between the models' vocabularies, special tokens, templates and generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.checkpoint.tokens import read_tokens
from toolkit.errors import ToolkitError
from toolkit.load_yaml import JsonObject, JsonView, read_object
from toolkit.merge.check.findings import Finding
from toolkit.merge.check.survey import Model, Survey

_EXAMPLES = 3
"""Tokens shown of those that differ."""

_FOREIGN = 0.1
"""Share of ids with other tokens from which on the vocabularies are unrelated. Fine-tuning adds or
renames a handful of special tokens, far below a hundredth; another tokenizer shares next to no id
beyond its first few hundred bytes."""

_SPECIAL = {"eos_token_id": "warning", "bos_token_id": "note", "pad_token_id": "note"}
_GENERATION = ("temperature", "top_p", "top_k", "repetition_penalty", "max_length", "do_sample")


def check_tokens(survey: Survey) -> Iterator[Finding]:
    """Compare every model's tokenizer and settings with those of the leading model."""
    leader = survey.leader
    if leader is None:
        return
    words = {model.name: _vocabulary(model.folder) for model in survey.models}
    for model in survey.models:
        found = words[model.name]
        if found is None:
            yield Finding(
                "warning",
                model.name,
                "has no tokenizer that can be read",
                "the merge will have none; put it there"
                if model is leader
                else "make sure that it has the tokens of " + leader.name,
            )
        else:
            yield from _rows(model, found)
    first = words[leader.name]
    for model in survey.others:
        own = words[model.name]
        if first is not None and own is not None and own != first:
            yield from _vocabularies(leader, model, first, own, survey)
        yield from _special(leader, model)
        yield from _generation(leader, model)
    yield from _templates(survey)


def _vocabulary(folder: Path) -> JsonView | None:
    try:
        return read_tokens(folder).ids
    except (ToolkitError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # a damaged tokenizer is as good as none


def _rows(model: Model, found: JsonView) -> Iterator[Finding]:
    """Tokens for which the model has no row."""
    text = model.config.get("text_config")
    size = model.config.get("vocab_size", text.get("vocab_size") if text else None)
    ids = [number for number in found.values() if isinstance(number, int)]
    if isinstance(size, int) and ids and max(ids) >= size:
        beyond = sorted(
            (n, token) for token, n in found.items() if isinstance(n, int) and n >= size
        )
        yield Finding(
            "warning",
            model.name,
            f"has {size} rows of embeddings, and {len(beyond)} tokens beyond them "
            f"({beyond[0][1]!r} is {beyond[0][0]})",
            "resize its embeddings to its tokenizer, or remove the tokens",
        )


def _vocabularies(
    leader: Model,
    model: Model,
    first: JsonView,
    own: JsonView,
    survey: Survey,
) -> Iterator[Finding]:
    theirs = {number: token for token, number in first.items() if isinstance(number, int)}
    ours = {number: token for token, number in own.items() if isinstance(number, int)}
    moved = sorted(n for n in ours if n in theirs and ours[n] != theirs[n])
    is_asked_for = survey.tokenizer_source is not None
    if moved:
        shown = ", ".join(f"{n} is {ours[n]!r}, there {theirs[n]!r}" for n in moved[:_EXAMPLES])
        is_foreign = len(moved) > _FOREIGN * max(len(ours), 1)
        yield Finding(
            "note" if is_asked_for else "error" if is_foreign else "warning",
            model.name,
            f"{len(moved)} of {len(ours)} ids stand for other tokens than in {leader.name} "
            f"({shown})",
            "rows are matched by token as tokenizer_source says"
            if is_asked_for
            else "rows of different tokens would be mixed; say with tokenizer_source whose "
            "vocabulary the merge has, or merge models of one vocabulary",
        )
    if extra := [token for token in own if token not in first]:
        yield Finding(
            "note" if is_asked_for else "warning",
            model.name,
            f"has {len(extra)} tokens that {leader.name} has not ({_some(extra)})",
            "" if is_asked_for else f"the merge gets the tokenizer of {leader.name}, without them",
        )
    if lacking := [token for token in first if token not in own]:
        yield Finding(
            "note",
            model.name,
            f"lacks {len(lacking)} tokens of {leader.name} ({_some(lacking)})",
            "" if is_asked_for else "their rows are merged with rows that it never trained",
        )
    if own.get("tokenizer.model") != first.get("tokenizer.model") and not moved:
        yield Finding(
            "warning",
            model.name,
            f"its tokenizer.model is not that of {leader.name}",
            "make sure that the tokens are the same; a tokenizer.json would tell",
        )


def _some(tokens: Sequence[str]) -> str:
    more = ", …" if len(tokens) > _EXAMPLES else ""
    return ", ".join(map(repr, tokens[:_EXAMPLES])) + more


def _special(leader: Model, model: Model) -> Iterator[Finding]:
    for key, severity in _SPECIAL.items():
        a, b = (_ids(each, key) for each in (leader, model))
        if a and b and a != b:
            yield Finding(
                "warning" if severity == "warning" else "note",
                model.name,
                f"{key} is {_listed(b)}, in {leader.name} {_listed(a)}",
                "the merge keeps the latter; where it does not stop, set generation_config.json"
                if key == "eos_token_id"
                else "the merge keeps the latter",
            )


def _ids(model: Model, key: str) -> set[int]:
    """Ids of a special token: generation_config.json counts before config.json, as in use."""
    for values in (_json(model.folder / "generation_config.json"), model.config):
        found = values.get(key)
        if found is not None:
            return set(found) if isinstance(found, list) else {found}
    return set()


def _listed(ids: set[int]) -> str:
    return " and ".join(map(str, sorted(ids)))


def _generation(leader: Model, model: Model) -> Iterator[Finding]:
    first, own = (_json(each.folder / "generation_config.json") for each in (leader, model))
    differ = [key for key in _GENERATION if first.get(key) != own.get(key)]
    if first and own and differ:
        shown = ", ".join(f"{key} {own.get(key)} and {first.get(key)}" for key in differ)
        yield Finding(
            "note",
            model.name,
            f"generates with other settings than {leader.name} ({shown})",
            "the merge keeps the latter",
        )


def _templates(survey: Survey) -> Iterator[Finding]:
    leader = survey.leader
    if leader is None or (survey.config is not None and survey.config.chat_template):
        return
    own = {model.name: _template(model.folder) for model in survey.models}
    first = own[leader.name]
    having = [name for name, text in own.items() if text]
    if not first and having:
        yield Finding(
            "warning",
            leader.name,
            f"has no chat template, {', '.join(having)} has one",
            "the merge will have none; set chat_template: auto",
        )
    for name in having:
        if first and own[name] != first:
            yield Finding(
                "warning",
                name,
                f"its chat template is not that of {leader.name}",
                "the merge gets the latter, and what was tuned on the other may not answer; set "
                "chat_template to the one to keep",
            )


def _template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace").strip()
    found = _json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):
        named = [item for item in found if isinstance(item, dict)]
        found = next((i.get("template") for i in named if i.get("name") == "default"), None)
    return found.strip() if isinstance(found, str) else None


def _json(path: Path) -> JsonObject:
    try:
        return read_object(path)
    except ToolkitError:
        return {}
