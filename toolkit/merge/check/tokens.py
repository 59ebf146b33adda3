"""Differences between the models' vocabularies, special tokens, templates and generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.checkpoint.tokens import SENTENCEPIECE, read_tokens
from toolkit.errors import Fault, ToolkitError
from toolkit.load_yaml import JsonObject, JsonView, read_object
from toolkit.merge.check.survey import Model, Survey

_EXAMPLES = 3
"""Tokens shown of those that differ."""

_FOREIGN = 0.1
"""Share of ids with other tokens from which on the vocabularies are unrelated. Fine-tuning adds or
renames a handful of special tokens, far below a hundredth; another tokenizer shares next to no id
beyond its first few hundred bytes."""

_SPECIAL = {"eos_token_id": "warning", "bos_token_id": "note", "pad_token_id": "note"}
_GENERATION = ("temperature", "top_p", "top_k", "repetition_penalty", "max_length", "do_sample")


def check_tokens(survey: Survey) -> Iterator[Fault]:
    """Compare every model's tokenizer and settings with those of the leading model."""
    leader = survey.leader
    if leader is None:
        return
    ids_by_model = {model.name: _vocabulary(model.folder) for model in survey.models}
    for model in survey.models:
        model_ids = ids_by_model[model.name]
        if model_ids is None:
            yield Fault(
                model.name,
                "has no tokenizer that can be read",
                "the merge will have none; put it there"
                if model is leader
                else "make sure that it has the tokens of " + leader.name,
                "warning",
            )
        else:
            yield from _rows(model, model_ids)
    leader_ids = ids_by_model[leader.name]
    for model in survey.others:
        own_ids = ids_by_model[model.name]
        if leader_ids is not None and own_ids is not None and own_ids != leader_ids:
            yield from _vocabularies(leader, model, leader_ids, own_ids, survey)
        yield from _special(leader, model)
        yield from _generation(leader, model)
    yield from _templates(survey)


def _vocabulary(folder: Path) -> JsonView | None:
    try:
        return read_tokens(folder).ids
    except (ToolkitError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # a damaged tokenizer is as good as none


def _rows(model: Model, found: JsonView) -> Iterator[Fault]:
    """Tokens for which the model has no row."""
    text_part = model.config.get("text_config")
    num_rows = model.config.get("vocab_size", text_part.get("vocab_size") if text_part else None)
    token_ids = [number for number in found.values() if isinstance(number, int)]
    if isinstance(num_rows, int) and token_ids and max(token_ids) >= num_rows:
        tokens_beyond = sorted(
            (n, token) for token, n in found.items() if isinstance(n, int) and n >= num_rows
        )
        yield Fault(
            model.name,
            f"has {num_rows} rows of embeddings, and {len(tokens_beyond)} tokens beyond them "
            f"({tokens_beyond[0][1]!r} is {tokens_beyond[0][0]})",
            "resize its embeddings to its tokenizer, or remove the tokens",
            "warning",
        )


def _vocabularies(
    leader: Model,
    model: Model,
    first: JsonView,
    own: JsonView,
    survey: Survey,
) -> Iterator[Fault]:
    theirs = {number: token for token, number in first.items() if isinstance(number, int)}
    ours = {number: token for token, number in own.items() if isinstance(number, int)}
    moved_ids = sorted(n for n in ours if n in theirs and ours[n] != theirs[n])
    is_asked_for = survey.tokenizer_source is not None
    if moved_ids:
        shown = ", ".join(f"{n} is {ours[n]!r}, there {theirs[n]!r}" for n in moved_ids[:_EXAMPLES])
        is_foreign = len(moved_ids) > _FOREIGN * max(len(ours), 1)
        yield Fault(
            model.name,
            f"{len(moved_ids)} of {len(ours)} ids stand for other tokens than in {leader.name} "
            f"({shown})",
            "rows are matched by token as tokenizer_source says"
            if is_asked_for
            else "rows of different tokens would be mixed; say with tokenizer_source whose "
            "vocabulary the merge has, or merge models of one vocabulary",
            "note" if is_asked_for else "error" if is_foreign else "warning",
        )
    # Where there is a sentencepiece model alone, `read_tokens` gives its hash under the file's
    # name, and which tokens it has is not known.
    if SENTENCEPIECE in own or SENTENCEPIECE in first:
        if own.get(SENTENCEPIECE) != first.get(SENTENCEPIECE) and not moved_ids:
            yield Fault(
                model.name,
                f"its tokenizer.model is not that of {leader.name}",
                "make sure that the tokens are the same; a tokenizer.json would tell",
                "warning",
            )
        return
    if extra_tokens := [token for token in own if token not in first]:
        yield Fault(
            model.name,
            f"has {len(extra_tokens)} tokens that {leader.name} has not ({_some(extra_tokens)})",
            "" if is_asked_for else f"the merge gets the tokenizer of {leader.name}, without them",
            "note" if is_asked_for else "warning",
        )
    if lacking_tokens := [token for token in first if token not in own]:
        yield Fault(
            model.name,
            f"lacks {len(lacking_tokens)} tokens of {leader.name} ({_some(lacking_tokens)})",
            "" if is_asked_for else "their rows are merged with rows that it never trained",
            "note",
        )


def _some(tokens: Sequence[str]) -> str:
    more_dots = ", …" if len(tokens) > _EXAMPLES else ""
    return ", ".join(map(repr, tokens[:_EXAMPLES])) + more_dots


def _special(leader: Model, model: Model) -> Iterator[Fault]:
    for id_key, severity in _SPECIAL.items():
        leader_ids, own_ids = (_ids(each, id_key) for each in (leader, model))
        if leader_ids and own_ids and leader_ids != own_ids:
            yield Fault(
                model.name,
                f"{id_key} is {_listed(own_ids)}, in {leader.name} {_listed(leader_ids)}",
                "the merge keeps the latter; where it does not stop, set generation_config.json"
                if id_key == "eos_token_id"
                else "the merge keeps the latter",
                "warning" if severity == "warning" else "note",
            )


def _ids(model: Model, key: str) -> set[int]:
    """Ids of a special token: generation_config.json counts before config.json, as in use."""
    for values in (_json(model.folder / "generation_config.json"), model.config):
        special_ids = values.get(key)
        if special_ids is not None:
            return set(special_ids) if isinstance(special_ids, list) else {special_ids}
    return set()


def _listed(ids: set[int]) -> str:
    return " and ".join(map(str, sorted(ids)))


def _generation(leader: Model, model: Model) -> Iterator[Fault]:
    first, own = (_json(each.folder / "generation_config.json") for each in (leader, model))
    differing_keys = [key for key in _GENERATION if first.get(key) != own.get(key)]
    if first and own and differing_keys:
        shown = ", ".join(f"{key} {own.get(key)} and {first.get(key)}" for key in differing_keys)
        yield Fault(
            model.name,
            f"generates with other settings than {leader.name} ({shown})",
            "the merge keeps the latter",
            "note",
        )


def _templates(survey: Survey) -> Iterator[Fault]:
    leader = survey.leader
    if leader is None or (survey.config is not None and survey.config.chat_template):
        return
    template_by_model = {model.name: _template(model.folder) for model in survey.models}
    leader_template = template_by_model[leader.name]
    models_having = [model_name for model_name, text in template_by_model.items() if text]
    if not leader_template and models_having:
        yield Fault(
            leader.name,
            f"has no chat template, {', '.join(models_having)} has one",
            "the merge will have none; set chat_template: auto",
            "warning",
        )
    for model_name in models_having:
        if leader_template and template_by_model[model_name] != leader_template:
            yield Fault(
                model_name,
                f"its chat template is not that of {leader.name}",
                "the merge gets the latter, and what was tuned on the other may not answer; set "
                "chat_template to the one to keep",
                "warning",
            )


def _template(folder: Path) -> str | None:
    template_file = folder / "chat_template.jinja"
    if template_file.is_file():
        return template_file.read_text(encoding="utf-8", errors="replace").strip()
    found = _json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):
        # Several templates by name: transformers takes the one called default.
        named = [item for item in found if isinstance(item, dict)]
        found = next((i.get("template") for i in named if i.get("name") == "default"), None)
    return found.strip() if isinstance(found, str) else None


def _json(path: Path) -> JsonObject:
    try:
        return read_object(path)
    except ToolkitError:
        return {}
