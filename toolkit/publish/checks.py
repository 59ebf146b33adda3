"""What must hold of a bundle before it leaves: every check is made, and all are shown at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.checkpoint.read import read_header
from toolkit.errors import CheckpointError, ConfigError, PublishError, ToolkitError, sentence_end
from toolkit.evaluate.config import BEHAVIOR_TITLES
from toolkit.library_errors import computing, first_line
from toolkit.progress import say
from toolkit.publish.bundle import bundle_files
from toolkit.publish.config import Format
from toolkit.publish.license_texts import Agreements
from toolkit.publish.licenses import (
    Parent,
    built_with,
    find_license,
    license_id,
    merged_license,
    name_fits,
    notices,
)
from toolkit.publish.privacy import find_leaks
from toolkit.select.results import MergeResults

# NumPy's files are among them, as they may hold pickled objects.
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib"}
_CODE = {".py", ".so", ".sh", ".ipynb"}


@dataclass(frozen=True)
class CheckedBundle:
    """What is checked.

    Attributes:
        folder: the bundle, as yet without checksums.
        repository: name it is to be published under.
        format: kind of bundle.
        parents: of the merge.
        agreements: license texts found for them.
        license: the recipe's own identifier and name for the terms.
        results: what the merge stage found.
        withheld: sources that are marked as not for publication and were used.
        file_faults: what quantized files lose beyond what is accepted.
        scores_files: whether what quantized files lose was asked.
        base: folder of the model that an adapter belongs to, or that GGUF files were made from.
    """

    folder: Path
    repository: str
    format: Format
    parents: Sequence[Parent]
    agreements: Agreements
    license: tuple[str | None, str | None]
    results: MergeResults
    withheld: Sequence[str]
    base: Path
    file_faults: Sequence[str] = ()
    scores_files: bool = True


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        check: its name.
        faults: what does not hold; none where it passed.
        note: what was seen.
        reason: why its faults are accepted.
    """

    check: str
    faults: tuple[str, ...]
    note: str
    reason: str | None = None

    @property
    def state(self) -> str:
        return "passed" if not self.faults else "accepted" if self.reason else "failed"


def _parents(subject: CheckedBundle) -> tuple[list[str], str]:
    general = next(parent for parent in subject.parents if parent.role == "general")
    if not general.is_published:
        return [f"the general model ({general.name}) has no public name; give model.name"], ""
    pinned_text = general.revision or general.origin or "its revision is not pinned"
    return [], f"{general.name}: {pinned_text}"


def _licenses(subject: CheckedBundle) -> tuple[list[str], str]:
    merged, faults = merged_license(subject.parents)
    given, given_name = subject.license
    given = license_id(given)
    if given and merged and given != merged.id and merged.family != "permissive":
        faults.append(f"publish.license is {given!r}, but the parents' terms ask for {merged.id!r}")
    if given and find_license(given) is None and given_name is None:
        faults.append(
            f"publish.license {given!r} is not in the table of licenses; give publish.license_name"
        )
    parent_terms = ", ".join(f"{p.name}: {p.license}" for p in subject.parents if p.license)
    return faults, f"{parent_terms}; the merge is under {given or (merged.id if merged else '?')}"


def _duties(subject: CheckedBundle) -> tuple[list[str], str]:
    faults: list[str] = []
    # Read from the disk, as what counts is what leaves, and not what should have been written.
    card = _text(subject.folder / "README.md")
    notice = _text(subject.folder / "NOTICE")
    for parent in subject.parents:
        known = find_license(parent.license)
        if known is None:
            continue
        if parent.role not in subject.agreements.licenses:
            faults.append(
                f"the text of {known.id} is not at hand for {parent.name}; put it into its "
                f"folder as LICENSE or name it in {parent.recipe_key}.license_file"
            )
        if known.name_begins and not name_fits(subject.repository, known):
            faults.append(f"{known.id} asks for a name that begins with {known.name_begins!r}")
    faults += [f"the card does not say {t!r}" for t in built_with(subject.parents) if t not in card]
    faults += [f"NOTICE does not say {t!r}" for t in notices(subject.parents) if t not in notice]
    shipped_names = [name for name in subject.agreements.files if (subject.folder / name).is_file()]
    missing_names = set(subject.agreements.files) - set(shipped_names)
    faults += [f"{name} is not in the bundle" for name in sorted(missing_names)]
    return faults, f"shipped: {', '.join(sorted(shipped_names)) or 'nothing'}"


def _private(subject: CheckedBundle) -> tuple[list[str], str]:
    text_files = bundle_files(subject.folder)
    return list(find_leaks(text_files)), "no path, name, secret or address in the text files"


def _pickles(subject: CheckedBundle) -> tuple[list[str], str]:
    faults = []
    for bundle_path in bundle_files(subject.folder):
        file_name = bundle_path.relative_to(subject.folder).as_posix()
        if bundle_path.suffix in _PICKLES:
            faults.append(f"{file_name}: is or may be a pickle, which can carry code")
        elif bundle_path.suffix in _CODE:
            faults.append(f"{file_name}: is code, and a model needs none")
        elif _begins_as_pickle(bundle_path) and not _is_safetensors(bundle_path):
            faults.append(f"{file_name}: begins as a pickle does, whatever it is called")
    return faults, "neither pickles nor code"


def _begins_as_pickle(path: Path) -> bool:
    """By the first bytes: protocol 2 and later begin with 0x80 and the protocol, zip with PK."""
    with path.open("rb") as file:
        head = file.read(4)
    return head[:2] in {bytes((0x80, protocol)) for protocol in range(2, 6)} or head[:2] == b"PK"


def _is_safetensors(path: Path) -> bool:
    """Whether a file of this name opens as one; its first bytes are a length, and may be any."""
    if path.suffix != ".safetensors":
        return False
    try:
        read_header(path)
    except CheckpointError:
        return False
    return True


def _weights(subject: CheckedBundle) -> tuple[list[str], str]:
    # Not at the top: the command line reads the names of checks, and torch takes seconds.
    from toolkit.publish.weights import weight_faults

    return weight_faults(subject.folder, subject.format)


def _loads(subject: CheckedBundle) -> tuple[list[str], str]:
    from toolkit.publish.weights import generation_faults

    return generation_faults(subject.folder, subject.format, subject.base)


def _tokenizer(subject: CheckedBundle) -> tuple[list[str], str]:
    from toolkit.publish.weights import tokenizer_faults

    return tokenizer_faults(subject.folder)


def _test(subject: CheckedBundle) -> tuple[list[str], str]:
    num_scorings = subject.results.test_scorings
    if num_scorings == 1:
        return [], "scored once"
    return [
        f"the test sets were scored {num_scorings} times; what was chosen after the first look is "
        "biased"
    ], ""


def _behavior(subject: CheckedBundle) -> tuple[list[str], str]:
    """Whether the merge surely answers worse than the general model, where answers were counted."""
    counted = [row for row in subject.results.sets if row.name in BEHAVIOR_TITLES.values()]
    changes = subject.results.models.merge.set_changes
    faults = [
        f"{row.name}: their share rose by {changes[row.name].estimate:.0%}, at least by "
        f"{changes[row.name].low:.0%} (95%); read the answers in the report"
        for row in counted
        # The lower end of the interval above zero: the share surely rose.
        if row.name in changes and changes[row.name].low > 0.0
    ]
    return faults, f"{len(counted)} counts, none surely rose" if counted else "not asked for"


def _files(subject: CheckedBundle) -> tuple[list[str], str]:
    """Whether a quantized file surely answers worse than the merge it is a form of."""
    if subject.format != "gguf":
        return [], "the weights are the merge's own"
    if not subject.scores_files:
        return [], "not scored, as publish.gguf_tolerance is null"
    return list(subject.file_faults), "no file surely loses more than is accepted"


def _sources(subject: CheckedBundle) -> tuple[list[str], str]:
    source_faults = [f"{name} is marked as not for publication" for name in subject.withheld]
    return source_faults, "none is marked as not for publication"


def _merge(subject: CheckedBundle) -> tuple[list[str], str]:
    results = subject.results
    if results.any_merge:
        return [], f"{results.chosen} of {len(results.candidates)}"
    return ["nothing qualified, so this is the general model itself; there is nothing new"], ""


CHECKS: Mapping[str, Callable[[CheckedBundle], tuple[list[str], str]]] = {
    "parents": _parents,
    "licenses": _licenses,
    "duties": _duties,
    "private": _private,
    "pickles": _pickles,
    "weights": _weights,
    "loads": _loads,
    "tokenizer": _tokenizer,
    "test": _test,
    "behavior": _behavior,
    "files": _files,
    "sources": _sources,
    "merge": _merge,
}
"""Every check by its name, in the order they are shown."""


_ADVICE = "look at its files, or publish in another format"


def run_checks(subject: CheckedBundle, accepted: Mapping[str, str]) -> list[CheckResult]:
    """Make every check; one that cannot be made has failed."""
    findings = []
    for check_name, check in CHECKS.items():
        try:
            # A check that breaks off does not hide what the others find.
            with computing(subject.folder, PublishError, "a library gives up on it", _ADVICE):
                faults, note = check(subject)
        except (ToolkitError, OSError, ValueError, RuntimeError) as error:
            faults, note = [f"could not be made: {first_line(error, most=1000)}"], ""
        accepted_reason = accepted.get(check_name) if faults else None
        findings.append(CheckResult(check_name, tuple(faults), note, accepted_reason))
    return findings


def parse_accepted(words: Sequence[str]) -> dict[str, str]:
    """Read `CHECK=reason` as the command line gives it.

    Raises:
        ConfigError: there is no such check, or no reason.

    >>> parse_accepted(["test=a second look after a bug"])
    {'test': 'a second look after a bug'}
    """
    accepted: dict[str, str] = {}
    for word in words:
        check_name, _, reason = word.partition("=")
        if check_name in accepted:
            raise ConfigError(f"--accept {word}: {check_name} is accepted twice; give one reason.")
        if check_name not in CHECKS:
            name_hint = sentence_end(check_name, CHECKS)
            raise ConfigError(
                f"--accept {word}: there is no check {check_name!r}{name_hint} Checks: "
                f"{', '.join(CHECKS)}."
            )
        if not reason.strip():
            raise ConfigError(
                f'--accept {word}: give a reason, as in --accept {check_name}="…"; it is published.'
            )
        # On one line, as it becomes one point of a list in the card.
        accepted[check_name] = " ".join(reason.split())
    return accepted


def show_findings(findings: Sequence[CheckResult]) -> None:
    """One line a check, and one more for each fault."""
    say("checks:")
    for finding in findings:
        shown_note = finding.note if not finding.faults else finding.reason or ""
        say(f"  {finding.state:<8}  {finding.check:<9}  {shown_note}".rstrip())
        for fault in finding.faults:
            say(f"    {fault}")


def refuse_failed(findings: Sequence[CheckResult], where: Path) -> None:
    """Stop where a check failed.

    Raises:
        PublishError: names the checks, and what can be done.
    """
    failed_checks = [finding.check for finding in findings if finding.state == "failed"]
    if failed_checks:
        raise PublishError(
            f"{len(failed_checks)} of {len(findings)} checks failed ({', '.join(failed_checks)}); "
            f"nothing was sent. What was made is in {where}. Mend it, or accept a check with its "
            f'reason on record: --accept {failed_checks[0]}="…".'
        )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
