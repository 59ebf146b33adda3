"""Verifying what was published: files against their checksums, and the merge made again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel

from toolkit.errors import ConfigError, PublishError, ToolkitError
from toolkit.leftovers import scratch_folder
from toolkit.load_yaml import parse_yaml
from toolkit.machine import cache_folder, check_cache
from toolkit.merge.config import parse_merge_config
from toolkit.progress import progress, say
from toolkit.publish.bundle import RECORD, weight_sums
from toolkit.publish.public import public_reference
from toolkit.publish.verify import BundleVerdict, verify_files
from toolkit.section import parse_section
from toolkit.stage import MANIFEST, read_manifest


class _ParentRecord(BaseModel):
    """What `bundle.json` says of a parent, as far as it is needed to find it."""

    role: str
    name: str
    revision: str | None = None
    weights: dict[str, str]


class _MergeRecord(BaseModel):
    seed: int
    weights: dict[str, str]


class _ReplayRecord(BaseModel):
    parents: list[_ParentRecord]
    merge: _MergeRecord


def run_verify(
    where: str, *, revision: str | None, parents: Mapping[str, Path], runs: Path | None
) -> bool:
    """Check a bundle and say what was found.

    Args:
        where: folder, repository or address of a store.
        revision: of a repository.
        parents: folders of parents, by public name or by role.
        runs: folder in which parents are looked for by the hashes of their weights.

    Returns:
        Whether everything that could be checked holds.

    Raises:
        PublishError: there is no whole bundle there.
    """
    # Files first: what is made again follows bundle.json and merge.yaml, which are believed only if
    # they are the published ones.
    verdict = verify_files(where, revision)
    for fault in verdict.faults:
        say(f"  {fault}")
    if verdict.faults:
        say(f"{where}: {len(verdict.faults)} files are not as published")
        return False
    say(f"{where}: all {len(verdict.sums)} files are as published")
    return replay(verdict, parents, runs)


def replay(verdict: BundleVerdict, parents: Mapping[str, Path], runs: Path | None) -> bool:
    """Make the merge again from its parents, where they are at hand, and compare the bytes.

    Raises:
        PublishError: a parent that was given is not the one that was merged.
        ConfigError: `bundle.json` or `merge.yaml` is not what a bundle holds.
    """
    merge_text = verdict.merge_yaml
    if not merge_text or not verdict.record.get("parents"):
        say("the merge was not made again: the bundle does not say of what")
        return True
    record = parse_section(_ReplayRecord, verdict.record, where=RECORD, what="record of a bundle")
    folders: dict[str, Path] = {}
    for parent in record.parents:
        parent_name = public_reference(parent.name, parent.revision)
        parent_folder = _find(parent, parent_name, parents, runs)
        if parent_folder is None:
            say(
                f"the merge was not made again: {parent_name} is not at hand; give its folder with "
                f"--parent {parent.role}=FOLDER"
            )
            return True
        folders[parent_name] = parent_folder
    merge_config = parse_merge_config(parse_yaml(merge_text, "merge.yaml"), where="merge.yaml")
    # Not at the top: it takes seconds, and most calls end before they merge.
    from toolkit.merge.to_disk import run_merge

    check_cache()
    # Not in the system's temporary folder, which may be memory: a merge takes gigabytes.
    with scratch_folder(cache_folder() / "verify") as scratch:
        out = scratch / "again"
        with progress("merging again", 1) as advance:
            run_merge(merge_config, out, folders=folders, seed=record.merge.seed)
            advance(1, "")
        made_sums, wanted_sums = weight_sums(out), record.merge.weights
    other = sorted(n for n in {*made_sums, *wanted_sums} if made_sums.get(n) != wanted_sums.get(n))
    if other:
        say(f"the merge made again differs: {', '.join(other)}")
        return False
    # Bundles of GGUF files and adapters hold no weights of the merge; of those there is only the
    # record to compare with.
    is_published = all(
        verdict.sums.get(parent_name, digest) == digest
        for parent_name, digest in wanted_sums.items()
    )
    if not is_published:
        say("the merge made again is what the record says, but the published weights are others")
        return False
    here = "published weights" if set(wanted_sums) <= set(verdict.sums) else "merge of the record"
    say(f"the merge made again from its parents has the same bytes as the {here}")
    return True


def _find(
    parent: _ParentRecord, name: str, given: Mapping[str, Path], runs: Path | None
) -> Path | None:
    for parent_key in (parent.role, name, parent.name):
        if parent_key in given:
            if weight_sums(given[parent_key]) != parent.weights:
                raise PublishError(
                    f"{given[parent_key]}: is not the {parent.role} model that was merged; its "
                    "weights have other hashes."
                )
            return given[parent_key]
    for folder in _stages(runs):
        # What a manifest says costs nothing; only the folder that it fits is read.
        if _weights_of(folder) == parent.weights == weight_sums(folder):
            return folder
    return None


def _stages(runs: Path | None) -> Iterable[Path]:
    if runs is None or not runs.is_dir():
        return
    for manifest_path in sorted(runs.glob(f"*/*/{MANIFEST}")):
        yield manifest_path.parent


def _weights_of(folder: Path) -> dict[str, str]:
    """Hashes of a stage's weight files as its manifest has them; none where it is a stranger's."""
    try:
        outputs = read_manifest(folder)["outputs"]
        return {n: entry["sha256"] for n, entry in outputs.items() if n.endswith(".safetensors")}
    except (ToolkitError, AttributeError, LookupError, TypeError):
        return {}


def parse_parents(words: Iterable[str]) -> dict[str, Path]:
    """Read `name=folder` as the command line gives it.

    Raises:
        ConfigError: it is not of that form, or the folder is not there.
    """
    parents: dict[str, Path] = {}
    for word in words:
        # At the last sign of equality: a name may hold one, and folders seldom do.
        parent_name, _, folder = word.rpartition("=")
        if not parent_name:
            raise ConfigError(f"--parent {word}: must be NAME=FOLDER, or general=FOLDER.")
        if not Path(folder).is_dir():
            raise ConfigError(f"--parent {word}: {folder} is no folder.")
        parents[parent_name] = Path(folder)
    return parents
