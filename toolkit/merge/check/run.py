"""A configuration, checked from its keys to the disk it is to be written to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.read import item_bytes
from toolkit.checkpoint.write import bytes_text
from toolkit.errors import ConfigError, MergeError, ToolkitError
from toolkit.load_yaml import JsonView, load_yaml
from toolkit.merge.check.configs import check_configs
from toolkit.merge.check.findings import Finding, from_message, in_order
from toolkit.merge.check.samples import check_samples
from toolkit.merge.check.settings import check_filters, check_settings
from toolkit.merge.check.survey import Survey, check_adapters, survey_models
from toolkit.merge.check.tensors import check_tensors
from toolkit.merge.check.tokens import check_tokens
from toolkit.merge.config import MergeConfig, parse_merge_config
from toolkit.merge.fallback import needs_mergekit
from toolkit.merge.loadable import refuse_unloadable_merge
from toolkit.merge.output import merged_config, out_dtype
from toolkit.merge.parameters import (
    ignored_parameters,
    mistyped_parameters,
    parameter_places,
    unknown_parameters,
)
from toolkit.merge.plan import MergePlan, plan_merge
from toolkit.merge.registry import Method, all_methods, get_method
from toolkit.merge.vocab.tokenizer import check_tokenizer
from toolkit.merge.vocab.vocabulary import plan_vocabulary
from toolkit.stage import refuse_taken


def check_merge(
    path: Path, *, out: Path | None = None, folders: Mapping[str, Path] | None = None
) -> list[Finding]:
    """Find everything that is wrong or doubtful with a merge, without running it.

    Headers, configs and tokenizers are read, and a few thousand entries of every tensor.

    Args:
        path: of the merge configuration.
        out: the folder that is to be made, for the room on its disk; else the one we are in.
        folders: where models stand whose name in the configuration is not their path.

    Returns:
        Errors first, then warnings, then notes; empty where nothing is wrong.

    Raises:
        ConfigError: the file cannot be read, or is not YAML.
    """
    data = load_yaml(path)
    findings: list[Finding] = []
    config: MergeConfig | None = None
    try:
        config = parse_merge_config(data, where=str(path))
    except ConfigError as error:
        findings += [from_message(line.strip()) for line in str(error).splitlines()[1:]]
    models = Models(folders)
    survey, missing = survey_models(config, data, models)
    findings += missing
    findings += _compare(survey)
    faults, method = _check_method(data, survey)
    findings += faults
    if config is not None and len(survey.models) == len(survey.names):
        faults_of_tokens, seen = _check_tokenizer(config, models)
        findings += faults_of_tokens
        is_plannable = method is not None and all(f.severity != "error" for f in faults)
        if is_plannable:
            findings += _check_plan(config, seen, models, findings, out)
    return in_order(findings)


def compare_models(config: MergeConfig, models: Models) -> list[Finding]:
    """Find what keeps the models of a configuration from being merged, whatever the method."""
    survey, missing = survey_models(config, {}, models)
    return in_order([*missing, *_compare(survey)])


def _compare(survey: Survey) -> Iterator[Finding]:
    yield from check_adapters(survey)
    yield from check_configs(survey)
    yield from check_tensors(survey)
    yield from check_tokens(survey)
    yield from check_samples(survey)


def _check_method(data: JsonView, survey: Survey) -> tuple[list[Finding], Method | None]:
    """The method and its parameters, by plain values: other faults of a configuration do not hide
    these. The method is None where it is unknown or mergekit's."""
    name = data.get("merge_method")
    places = list(parameter_places(data))
    findings = list(check_filters(places, survey))
    if not isinstance(name, str):
        return findings, None  # said when the configuration was parsed
    if needs_mergekit(name):
        known = f"known here: {', '.join(sorted(all_methods()))}"
        what = f"{name} is mergekit's, whose own engine will check its parameters"
        return [*findings, Finding("note", "merge_method", what, known)], None
    try:
        method = get_method(name)
    except ConfigError as error:
        return [*findings, from_message(str(error))], None
    faults = [*unknown_parameters(places, method), *mistyped_parameters(places, method)]
    findings += [from_message(line, "warning") for line in ignored_parameters(places, method)]
    return [*findings, *map(from_message, faults)], method


def _check_tokenizer(config: MergeConfig, models: Models) -> tuple[list[Finding], Models]:
    """Faults of the vocabulary, and the models as they look with their rows in its order."""
    try:
        check_tokenizer(config, models)
        vocabulary = plan_vocabulary(config, models)
    except ToolkitError as error:
        return [from_message(str(error))], models
    return [], vocabulary.models if vocabulary is not None else models


def _check_plan(
    config: MergeConfig,
    models: Models,
    stored: Models,
    known: Sequence[Finding],
    out: Path | None,
) -> Iterator[Finding]:
    try:
        plan = plan_merge(config, models.shapes, models.config, models.file)
    except ToolkitError as error:
        if not _is_said(str(error), known):
            yield from_message(str(error))
        return
    yield from check_settings(plan)
    yield from _output(config, plan, models, stored, out)


def _is_said(message: str, known: Sequence[Finding]) -> bool:
    return any(
        message.startswith(f"{text}:")
        for finding in known
        if finding.severity == "error"
        for text in finding.covers
    )


def _output(
    config: MergeConfig, plan: MergePlan, models: Models, stored: Models, out: Path | None
) -> Iterator[Finding]:
    dtypes = {task.name: out_dtype(config, task, models) for task in plan.tasks}
    try:
        values = merged_config(config, plan, models, dtypes)
        shapes = {task.name: task.shape for task in plan.tasks}
        refuse_unloadable_merge(values, shapes, stored, config.model_names())
    except ToolkitError as error:
        yield from_message(str(error))
    target = (out or Path.cwd() / "out").absolute()
    if out is not None:
        try:
            refuse_taken(out)
        except MergeError as error:
            yield from_message(str(error))
    needed = sum(task.size * item_bytes(dtypes[task.name]) for task in plan.tasks)
    parent = next(folder for folder in target.parents if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed:
        yield Finding(
            "error",
            str(parent),
            f"the merge takes {bytes_text(needed)}, and the disk has {bytes_text(free)} free",
            "make room, or write to another disk (--out)",
        )
