"""A configuration, checked from its keys to the disk it is to be written to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from toolkit.checkpoint.models import Models
from toolkit.checkpoint.read import item_bytes
from toolkit.checkpoint.write import bytes_text
from toolkit.errors import ConfigError, Fault, MergeError, ToolkitError
from toolkit.load_yaml import JsonView, load_yaml
from toolkit.merge.check.configs import check_configs
from toolkit.merge.check.findings import StructuralFault, faults_of, from_message, in_order
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
) -> list[Fault]:
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
    findings: list[Fault] = []
    config: MergeConfig | None = None
    try:
        config = parse_merge_config(data, where=str(path))
    except ConfigError as error:
        findings += faults_of(error)
    models = Models(folders)
    survey, missing = survey_models(config, data, models)
    findings += missing
    findings += _compare(survey)
    # Plain values and headers are checked whatever the configuration's faults; what follows needs
    # a configuration, all of its models, and at last a method that takes its parameters.
    method_findings, method = _check_method(data, survey)
    findings += method_findings
    if config is not None and len(survey.models) == len(survey.names):
        token_findings, seen_models = _check_tokenizer(config, models)
        findings += token_findings
        is_plannable = method is not None and all(f.severity != "error" for f in method_findings)
        if is_plannable:
            findings += _check_plan(config, seen_models, models, findings, out)
    return in_order(findings)


def compare_models(config: MergeConfig, models: Models) -> list[Fault]:
    """Find what keeps the models of a configuration from being merged, whatever the method."""
    survey, missing = survey_models(config, {}, models)
    return in_order([*missing, *_compare(survey)])


def _compare(survey: Survey) -> Iterator[Fault]:
    yield from check_adapters(survey)
    yield from check_configs(survey)
    yield from check_tensors(survey)
    yield from check_tokens(survey)
    yield from check_samples(survey)


def _check_method(data: JsonView, survey: Survey) -> tuple[list[Fault], Method | None]:
    """The method and its parameters, by plain values: other faults of a configuration do not hide
    these. The method is None where it is unknown or mergekit's."""
    method_name = data.get("merge_method")
    places = list(parameter_places(data))
    findings = list(check_filters(places, survey))
    if not isinstance(method_name, str):
        return findings, None  # said when the configuration was parsed
    if needs_mergekit(method_name):
        known_methods = f"known here: {', '.join(sorted(all_methods()))}"
        what = f"{method_name} is mergekit's, whose own engine will check its parameters"
        return [*findings, Fault("merge_method", what, known_methods, "note")], None
    try:
        method = get_method(method_name)
    except ConfigError as error:
        return [*findings, *faults_of(error)], None
    parameter_faults = [*unknown_parameters(places, method), *mistyped_parameters(places, method)]
    findings += [from_message(line, "warning") for line in ignored_parameters(places, method)]
    return [*findings, *map(from_message, parameter_faults)], method


def _check_tokenizer(config: MergeConfig, models: Models) -> tuple[list[Fault], Models]:
    """Faults of the vocabulary, and the models as they look with their rows in its order."""
    try:
        check_tokenizer(config, models)
        vocabulary = plan_vocabulary(config, models)
    except ToolkitError as error:
        return [*faults_of(error)], models
    return [], vocabulary.models if vocabulary is not None else models


def _check_plan(
    config: MergeConfig,
    models: Models,
    stored: Models,
    known: Sequence[Fault],
    out: Path | None,
) -> Iterator[Fault]:
    try:
        plan = plan_merge(config, models.shapes, models.config, models.file)
    except ToolkitError as error:
        if not _is_said(str(error), known):
            yield from faults_of(error)
        return
    yield from check_settings(plan)
    yield from _output(config, plan, models, stored, out)


def _is_said(message: str, known: Sequence[Fault]) -> bool:
    return any(
        message.startswith(f"{text}:")
        for finding in known
        if isinstance(finding, StructuralFault) and finding.severity == "error"
        for text in finding.covers
    )


def _output(
    config: MergeConfig, plan: MergePlan, models: Models, stored: Models, out: Path | None
) -> Iterator[Fault]:
    dtypes_by_name = {task.name: out_dtype(config, task, models) for task in plan.tasks}
    try:
        config_values = merged_config(config, plan, models, dtypes_by_name)
        shapes_by_name = {task.name: task.shape for task in plan.tasks}
        refuse_unloadable_merge(config_values, shapes_by_name, stored, config.model_names())
    except ToolkitError as error:
        yield from faults_of(error)
    target_folder = (out or Path.cwd() / "out").absolute()
    if out is not None:
        try:
            refuse_taken(out)
        except MergeError as error:
            yield from faults_of(error)
    needed_bytes = sum(task.size * item_bytes(dtypes_by_name[task.name]) for task in plan.tasks)
    # The target first: an empty folder may be the place where another disk is mounted.
    places = (target_folder, *target_folder.parents)
    existing_parent = next(folder for folder in places if folder.is_dir())
    free_bytes = shutil.disk_usage(existing_parent).free
    if free_bytes < needed_bytes:
        yield Fault(
            str(existing_parent),
            f"the merge takes {bytes_text(needed_bytes)}, and the disk has "
            f"{bytes_text(free_bytes)} free",
            "make room, or write to another disk (--out)",
        )
