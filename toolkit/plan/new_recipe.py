"""`toolkit init`: a recipe that runs, from a model and documents, each setting with why.

What the files say is looked up in them; the rest is a default. Nothing is trained, and the recipe
is read as any other before it has its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError
from toolkit.load_yaml import load_yaml, read_text
from toolkit.pipeline.run import Run
from toolkit.plan.new_data import RecipeDraft, set_data
from toolkit.plan.new_model import DraftModel, draft_model, draft_specialist
from toolkit.plan.new_sources import DraftSource, describe, draft_sources
from toolkit.plan.ready_recipe import recipe_text, write_checked
from toolkit.plan.settings import Setting
from toolkit.plan.shape import count_parameters
from toolkit.plan.verdict import words_of
from toolkit.progress import say
from toolkit.recipe.load import find_recipe

_TAKEN_APART = ("data", "train", "evaluate", "search", "select")
"""Sections of another recipe that parts are left out of."""

READ_SECONDS = 20.0
"""For the documents of all sources together."""


@dataclass(frozen=True)
class InitRequest:
    """What the command line says.

    Attributes:
        name: of the recipe, or a path that ends in .yaml.
        model: folder or hub name of the general model.
        specialists: the same of finished specialists, or adapters' folders, several of them as
            `NAME=PATH`; without any, the recipe trains one.
        documents: files, folders and globs of the domain; of several specialists `NAME=PATH`.
        general: the same of general text.
        start_from: another recipe, whose other settings are kept.
        force: whether a recipe that stands there is replaced.
    """

    name: str
    model: str | None = None
    documents: tuple[str, ...] = ()
    general: tuple[str, ...] = ()
    specialists: tuple[str, ...] = ()
    start_from: str | None = None
    force: bool = False


def recipe_path(name: str) -> Path:
    """Where a new recipe goes.

    Raises:
        ConfigError: it cannot be called so.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        stem = path.stem
    else:
        path, stem = Path("recipes") / f"{name}.yaml", name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", stem):
        raise ConfigError(
            f"{name!r}: a recipe's name has letters, digits, dots, dashes and underscores only, "
            "and begins with a letter or digit; runs and published models are called by it."
        )
    return path


def init_recipe(request: InitRequest) -> Path:
    """Write a recipe, and say what was seen and what to call next.

    Raises:
        ConfigError: something is missing or cannot be read, or a recipe of this name stands there.
    """
    path = recipe_path(request.name)
    if path.exists() and not request.force:
        raise ConfigError(f"{path}: is there already; give another name, or --force to replace it.")
    check_request(request)
    # Nothing is replaced: the file is copied with the comments that its author wrote.
    if not (request.model or request.specialists or request.documents or request.general):
        text = _copied_text(str(request.start_from), path)
    else:
        text = _drafted_text(request, path)
    # As a run, which checks libraries and the runs that its models are of as well.
    write_checked(text, path, lambda trial_file: Run.open(str(trial_file)))
    return path


def check_request(request: InitRequest) -> None:
    """Refuse what no recipe can be made of.

    Raises:
        ConfigError: with the option that is missing, or the path that has two roles.
    """
    if both := set(request.documents) & set(request.general):
        raise ConfigError(
            f"{sorted(both)[0]}: is given as --documents and as --general; what is to be learned "
            "cannot show what is forgotten."
        )
    if request.start_from is not None:
        find_recipe(request.start_from)
        return
    missing = {
        "--model (a folder or a name on the hub)": request.model,
        "--documents (files, folders or globs of your domain)": request.documents,
    }
    absent = [option for option, given in missing.items() if not given]
    if absent:
        raise ConfigError(
            f"toolkit init: give {' and '.join(absent)}, or --from with a recipe to start from."
        )


def _copied_text(name: str, path: Path) -> str:
    """Another recipe as it stands, its own comments included."""
    source = find_recipe(name)
    heading = f"# {path.stem}: begun by `toolkit init` as a copy of {source.name}.\n"
    return heading + read_text(source)


def _drafted_text(request: InitRequest, path: Path) -> str:
    draft = RecipeDraft()
    opening = [f"{path.stem}: written by `toolkit init`, {date.today().isoformat()}."]
    model: DraftModel | None = None
    if request.model is not None:
        say("init: looking at the model")
        model = draft_model(request.model)
    places = name_specialists(request)
    specialists = {name: draft_specialist(place, model) for name, place in places.items()}
    if request.start_from is not None:
        opening += _start_from(draft, request, model)
    if request.documents or request.general:
        say("init: looking at the documents")
    # Those of the recipe that is taken over: new sources get names beside them.
    names = list(draft.values.get("data", {}).get("sources", {}))
    domain = _draft_domain(request, list(places), names)
    names += [source.name for source in domain]
    general = draft_sources(request.general, "general", names, seconds=READ_SECONDS / 2)
    _set_model(draft, model, [source.name for source in domain])
    if specialists:
        _set_specialists(draft, specialists)
    sources = [*domain, *general]
    set_data(draft, model, domain, general, is_new=request.start_from is None)
    opening += [describe(source) for source in sources]
    parts = (model, *specialists.values(), *sources)
    notes = [note for part in parts if part is not None for note in part.notes]
    opening += [f"Note: {note}." for note in notes]
    for line in opening[1:]:
        say(f"  {line}")
    settings = [
        Setting(key, _at(draft.values, key), None, why) for key, why in draft.reasons.items()
    ]
    return _spaced(recipe_text(draft.values, settings, opening))


def _at(values: Mapping[str, Any], key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return values


def _spaced(text: str) -> str:
    """A blank line before every section, its comment included."""
    lines: list[str] = []
    for line in text.splitlines():
        is_outer = bool(line) and not line.startswith((" ", "-"))
        is_below_comment = bool(lines) and lines[-1].startswith("#") and not line.startswith("#")
        was_outer = bool(lines) and not lines[-1].startswith((" ", "-"))
        begins = is_outer and bool(lines) and not is_below_comment
        if begins and (not was_outer or line.endswith(":")):
            lines.append("")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _start_from(draft: RecipeDraft, request: InitRequest, model: DraftModel | None) -> list[str]:
    """Take over another recipe, without what speaks of its documents or model where these are
    replaced; returns what was left out, in words."""
    source = find_recipe(str(request.start_from))
    values = load_yaml(source)
    _refuse_other_shapes(values, source)
    left_out = [key for key in ("study", "sft", "variants", "scales") if values.pop(key, None)]
    data = dict(values.get("data") or {})
    if data.pop("stages", None) is not None:
        left_out.append("data.stages")
        values["train"] = {k: v for k, v in (values.get("train") or {}).items() if k != "stages"}
    replaced = {
        role
        for role, given in (("domain", request.documents), ("general", request.general))
        if given
    }
    data["sources"] = {
        name: section
        for name, section in (data.get("sources") or {}).items()
        if section.get("role") not in replaced
    }
    if "domain" in replaced:
        evaluate = dict(values.get("evaluate") or {})
        for key in ("prompts", "infilling", "multiple_choice", "tasks"):
            if evaluate.pop(key, None) is not None:
                left_out.append(f"evaluate.{key}")
        values |= {"evaluate": evaluate} if evaluate else {}
        if not evaluate:
            values.pop("evaluate", None)
        search = dict(values.get("search") or {})
        search.pop("weights", None)
        values |= {"search": search} if search else {}
    if replaced and isinstance(values.get("publish"), dict):
        values["publish"] = {k: v for k, v in values["publish"].items() if k != "sources"}
        (values.get("select") or {}).pop("tolerances", None)
    if model is not None:
        for key in ("models", "tokenizer"):
            if values.pop(key, None) is not None:
                left_out.append(key)
        data.pop("end_of_document", None)
        if "models" in left_out and isinstance(values.get("search"), dict):
            values["search"].pop("merges", None)
    draft.values = {**values, "data": data}
    lines = [f"Started from {source.name}."]
    if left_out:
        lines.append(f"Left out, as it speaks of what was replaced: {', '.join(left_out)}.")
    return lines


def _refuse_other_shapes(values: Mapping[str, Any], source: Path) -> None:
    """Refuse a recipe whose sections cannot be taken apart; all else is read with the whole recipe.

    Raises:
        ConfigError: with the key.
    """
    sections = {key: values.get(key) or {} for key in _TAKEN_APART}
    if isinstance(sections["data"], dict):
        sections["data.sources"] = sources = sections["data"].get("sources") or {}
        if isinstance(sources, dict):
            sections |= {f"data.sources.{name}": section for name, section in sources.items()}
    for key, section in sections.items():
        if not isinstance(section, dict):
            raise ConfigError(f"{source}: {key}: must hold keys and values (got {section!r:.60}).")


def _set_model(draft: RecipeDraft, model: DraftModel | None, names: Sequence[str]) -> None:
    if model is None:
        return
    if names:
        draft.values["description"] = f"{model.name} on {', '.join(names)}"
    draft.values.setdefault("seed", 0)
    draft.values["model"] = model.values
    draft.reasons |= {f"model.{key}": why for key, why in model.reasons.items()}
    shape = model.located.shape
    if shape is not None:
        size = words_of(count_parameters(shape).total)
        draft.reasons["model"] = (
            f"{size} parameters, {shape.max_position_embeddings:,} positions, "
            f"{'a' if model.has_chat_template else 'no'} chat template"
        )


def name_specialists(request: InitRequest) -> dict[str, str]:
    """The specialists by name: `NAME=PATH` says it, else the path's last part.

    Raises:
        ConfigError: two have one name, or what one of several knows is not said.
    """
    pairs = [_split_name(given) for given in request.specialists]
    names = [name or re.sub(r"[^A-Za-z0-9_-]+", "_", Path(place).name) for name, place in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--specialist {twice}: two have this name; write NAME=PATH for each.")
    if len(names) > 1:
        owners = [_split_name(given)[0] for given in request.documents]
        for given, owner in zip(request.documents, owners, strict=True):
            if owner not in names:
                raise ConfigError(
                    f"--documents {given}: say which specialist's domain it is, as NAME=PATH; "
                    f"specialists: {', '.join(names)}."
                )
        without = [name for name in names if name not in owners]
        if request.start_from is None and without:
            raise ConfigError(
                f"--specialist {without[0]}: has no documents that show what it knows; give "
                f"--documents {without[0]}=PATH."
            )
    return dict(zip(names, (place for _, place in pairs), strict=True))


def _split_name(given: str) -> tuple[str | None, str]:
    """`NAME=PATH` as name and path; a path that is there as it stands has no name.

    >>> _split_name("law=models/law"), _split_name("models/law")
    (('law', 'models/law'), (None, 'models/law'))
    """
    match = re.fullmatch(r"([A-Za-z0-9_-]+)=(.+)", given)
    # A folder may be called `a=b`.
    if match is None or Path(given).exists():
        return None, given
    return match.group(1), match.group(2)


def _draft_domain(
    request: InitRequest, specialists: Sequence[str], taken_names: Sequence[str]
) -> list[DraftSource]:
    """The sources of the domain, those of several specialists with whose they are."""
    seconds = READ_SECONDS / 2
    if len(specialists) < 2:
        return draft_sources(request.documents, "domain", taken_names, seconds=seconds)
    sources: list[DraftSource] = []
    for specialist in specialists:
        pairs = map(_split_name, request.documents)
        patterns = [pattern for owner, pattern in pairs if owner == specialist]
        names = [*taken_names, *(source.name for source in sources)]
        found = draft_sources(patterns, "domain", names, seconds=seconds / len(specialists))
        for source in found:
            source.values["specialist"] = specialist
        sources += found
    return sources


def _set_specialists(draft: RecipeDraft, specialists: Mapping[str, DraftModel]) -> None:
    """Name finished specialists, and leave out what would train one."""
    for key in ("train", "tokenizer"):
        draft.values.pop(key, None)
    data = draft.values.get("data", {})
    for key in ("stages", "replay_fraction"):
        data.pop(key, None)
    if len(specialists) == 1:
        keys = {"specialist": next(iter(specialists.values()))}
        draft.reasons["specialist"] = "nothing is trained: the merge is chosen with this model"
    else:
        keys = {f"specialists.{name}": model for name, model in specialists.items()}
        draft.reasons["specialists"] = "nothing is trained: merges are over all of these"
    for key, model in keys.items():
        draft.set(key, model.values)
        draft.reasons |= {f"{key}.{inner}": why for inner, why in model.reasons.items()}
