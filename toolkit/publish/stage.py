"""The publish stage: the chosen merge as a bundle, checked, and sent where it was asked to go."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit import __version__
from toolkit.errors import PublishError
from toolkit.progress import say
from toolkit.publish.bundle import (
    BundleRecord,
    bundle_files,
    copy_reports,
    copy_settings,
    copy_weights,
    is_made,
    parent_record,
    weight_sums,
    write_sums,
    write_texts,
)
from toolkit.publish.card import CardFacts, model_card
from toolkit.publish.checks import (
    CheckedBundle,
    CheckResult,
    refuse_failed,
    run_checks,
    show_findings,
)
from toolkit.publish.config import Format
from toolkit.publish.file_scores import FileScorer
from toolkit.publish.formats import write_adapter_files, write_gguf_files
from toolkit.publish.hub import HubTarget, check_credentials, upload_bundle
from toolkit.publish.license_texts import Agreements, find_agreements
from toolkit.publish.licenses import Parent, license_id, merged_license
from toolkit.publish.material import Material, card_facts, find_parents, parent_section
from toolkit.publish.public import (
    public_recipe,
    to_yaml,
)
from toolkit.publish.store import open_store, read_remote_sums, store_errors, upload_to_store
from toolkit.select.results import read_results
from toolkit.stage import appearing, content_hash, hash_bytes, hash_json


def run_publish(
    material: Material,
    kind: Format,
    repository: str,
    *,
    accepted: Mapping[str, str],
    target: HubTarget | str | None,
) -> Path:
    """Make the bundle, check it, and send it.

    Args:
        material: what it is made from.
        kind: of bundle.
        repository: `org/name`.
        accepted: checks that may fail, with the reason.
        target: a hub's repository or the address of a store; None stops after the checks.

    Returns:
        Folder of the bundle.

    Raises:
        PublishError: a check failed, or the upload did.
    """
    folder = make_bundle(material, kind, repository, accepted)
    if isinstance(target, HubTarget):
        say(f"uploading to {target.repository}:")
        say(f"  {upload_bundle(folder, target)}")
    elif target is not None:
        say(f"uploading to {target}:")
        say(f"  {upload_to_store(folder, target)}")
    return folder


def check_target(target: HubTarget | str | None) -> None:
    """Make sure that a target can be reached, before anything is made for it.

    Raises:
        PublishError: it cannot, or there are no credentials.
    """
    if isinstance(target, HubTarget):
        check_credentials()
    elif target is not None:
        with store_errors(target):
            read_remote_sums(*open_store(target), target)


def make_bundle(
    material: Material, kind: Format, repository: str, accepted: Mapping[str, str]
) -> Path:
    """The bundle of a run, made and checked unless it stands there already.

    Raises:
        PublishError: a check failed; what was made stands beside, as `<format>.refused`.
    """
    folder = material.root / "publish" / kind
    parents = find_parents(material.recipe, repository, material.places)
    section = material.recipe.publish
    # License texts first: they are part of what a bundle is made from, so that a changed LICENSE
    # makes it anew.
    agreements = find_agreements(
        parents,
        material.places,
        {
            p.role: (s.license_file, s.notice_file)
            for p in parents
            for s in [parent_section(section, p)]
        },
    )
    made_from = _made_from(material, kind, repository, accepted, agreements)
    if is_made(folder, made_from):
        say(f"publish: up to date ({folder})")
        return folder
    say("publish:")
    with appearing(folder, doing="making this bundle", error=PublishError, replaces=True) as work:
        origin = _Origin(parents, agreements, made_from)
        _make(material, kind, repository, accepted, origin, folder, work)
    say(f"  the bundle is in {folder}")
    return folder


@dataclass(frozen=True)
class _Origin:
    """What a bundle comes from.

    Attributes:
        parents: of the merge.
        agreements: license texts found for them.
        made_from: hashes of the merge and of what was asked for.
    """

    parents: tuple[Parent, ...]
    agreements: Agreements
    made_from: Mapping[str, str]


def _make(
    material: Material,
    kind: Format,
    repository: str,
    accepted: Mapping[str, str],
    origin: _Origin,
    folder: Path,
    work: Path,
) -> None:
    parents, agreements = origin.parents, origin.agreements
    model_figures = _write_model(material, kind, repository, parents, work)
    facts = card_facts(material, kind, repository, parents, model_figures)
    # Written twice: the checks look at what is written, and the reasons that were needed go into
    # the card after them.
    _write_around(material, work, agreements, facts, accepted)
    make_record = _record(material, kind, repository, parents, origin.made_from, model_figures)
    make_record().write(work)
    say(f"  {len(bundle_files(work))} files")
    subject = _subject(material, kind, repository, parents, agreements, work)
    # The model and all around it stand: from here on it is looked at, not written.
    file_faults = [fault for row in model_figures.values() for fault in _faults(row)]
    findings = run_checks(replace(subject, file_faults=file_faults), accepted)
    show_findings(findings)
    if any(finding.state == "failed" for finding in findings):
        refused_folder = folder.with_name(f"{folder.name}.refused")
        shutil.rmtree(refused_folder, ignore_errors=True)
        # Kept for people to look at, under a name that no later command takes for a bundle.
        work.rename(refused_folder)
        refuse_failed(findings, refused_folder)
    # A reason that was given for a check that passed is not published.
    used_reasons = {f.check: f.reason for f in findings if f.state == "accepted" and f.reason}
    _write_around(material, work, agreements, facts, used_reasons)
    make_record(findings).write(work)
    # Last, as they mark a whole bundle, and hash the card with its final reasons.
    write_sums(work)


def _faults(row: Mapping[str, object]) -> list[str]:
    faults = row.get("faults", [])
    return list(faults) if isinstance(faults, list) else []


def _made_from(
    material: Material,
    kind: Format,
    repository: str,
    accepted: Mapping[str, str],
    agreements: Agreements,
) -> dict[str, str]:
    asked_values = {
        "repository": repository,
        "format": kind,
        "accepted": dict(accepted),
        "recipe": material.recipe.model_dump(mode="json"),
        "agreements": {name: hash_bytes(text) for name, text in agreements.files.items()},
        "toolkit": __version__,
    }
    return {"merge": content_hash(material.merged), "wishes": hash_json(asked_values)}


def _write_model(
    material: Material, kind: Format, repository: str, parents: tuple[Parent, ...], work: Path
) -> dict[str, dict[str, object]]:
    """The model files; returns the figures of those that are not the merged model bit for bit."""
    section, merged = material.recipe.publish, material.merged
    # `find_parents` puts the general model first.
    general_parent = parents[0]
    # GGUF files hold their config themselves, and an adapter's is its base's.
    copy_settings(merged, work, with_config=kind == "safetensors")
    if kind == "safetensors":
        copy_weights(merged, work)
        return {}
    if kind == "adapter":
        return write_adapter_files(
            merged,
            material.general,
            work,
            rank=section.adapter_rank,
            seed=material.recipe.seed,
            base=general_parent.name,
            revision=general_parent.revision,
            extract=_extract,
        )
    merged_terms, _ = merged_license(parents)
    gguf_facts = {
        "license": license_id(section.license) or (merged_terms.id if merged_terms else None),
        "languages": section.language,
        "base_models": [parent.name for parent in parents if parent.is_published],
    }
    # The custom of the hub: the repository is NAME-GGUF, its files are NAME-TYPE.gguf.
    file_stem = repository.rsplit("/", 1)[-1].removesuffix("-GGUF")
    score = None
    if section.gguf_tolerance is not None:
        score = FileScorer(material, section.gguf_tolerance).losses_of
    return write_gguf_files(
        merged,
        work,
        section.gguf,
        file_stem,
        gguf_facts,
        documents=material.data / "validation.jsonl",
        score=score,
    )


def _extract(merged: Path, base: Path, out: Path, rank: int, seed: int, dtype: str) -> None:
    from toolkit.adapter.extract import run_extract
    from toolkit.adapter.extract_plan import ExtractSettings
    from toolkit.progress import progress

    extract_settings = ExtractSettings(rank=rank, seed=seed, dtype=dtype)
    with progress("extracting a LoRA", 1) as advance:
        run_extract(str(merged), str(base), out, extract_settings)
        advance(1, "")


def _write_around(
    material: Material,
    work: Path,
    agreements: Agreements,
    facts: CardFacts,
    accepted: Mapping[str, str],
) -> None:
    """Card, merge, recipe, reports and licenses."""
    copy_reports(material.merged, work)
    # What the author wrote, without defaults: those belong to the version in bundle.json.
    general_parent = facts.parents[0]
    recipe_values = public_recipe(
        material.recipe.model_dump(mode="json", exclude_unset=True),
        material.recipe.publish,
        general_parent.name,
        general_parent.revision,
    )
    write_texts(
        work,
        {
            "README.md": model_card(replace(facts, accepted=accepted)),
            "merge.yaml": facts.merge_yaml,
            "recipe.yaml": to_yaml(recipe_values),
            **agreements.files,
        },
    )


def _record(
    material: Material,
    kind: Format,
    repository: str,
    parents: tuple[Parent, ...],
    made_from: Mapping[str, str],
    figures: Mapping[str, Mapping[str, object]],
) -> Any:
    """A function of the findings, so that the files are hashed once only."""
    # Once, outside the function: hashing the weights takes minutes.
    parent_records = [parent_record(p, weight_sums(material.places[p.role])) for p in parents]
    merge_record = {"seed": material.recipe.seed, "weights": weight_sums(material.merged)}

    def record(findings: list[CheckResult] | None = None) -> BundleRecord:
        made_checks = findings or []
        return BundleRecord(
            repository=repository,
            format=kind,
            parents=parent_records,
            merge=merge_record,
            made_from=made_from,
            files={name: row["record"] for name, row in figures.items()},
            checks={f.check: f.state for f in made_checks},
            accepted={f.check: f.reason for f in made_checks if f.state == "accepted" and f.reason},
        )

    return record


def _subject(
    material: Material,
    kind: Format,
    repository: str,
    parents: tuple[Parent, ...],
    agreements: Agreements,
    work: Path,
) -> CheckedBundle:
    section = material.recipe.publish
    return CheckedBundle(
        folder=work,
        repository=repository,
        format=kind,
        parents=parents,
        agreements=agreements,
        license=(section.license, section.license_name),
        results=read_results(material.merged),
        withheld=[name for name, source in section.sources.items() if source.not_for_publication],
        scores_files=section.gguf_tolerance is not None,
        base=material.merged if kind == "gguf" else material.general,
    )
