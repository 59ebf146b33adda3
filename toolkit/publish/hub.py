"""The upload to a hub: one commit with everything, by the hub's own client.

Large files are stored first, where nobody sees them; the commit that makes all files visible comes
last. Whatever breaks before it leaves the repository as it was, and a second call finds what is
stored already.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from toolkit.errors import PublishError
from toolkit.progress import console, say
from toolkit.publish.bundle import SUMS, parse_sums, read_sums

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile

Result = TypeVar("Result")

_TRIES = 5
_TEMPORARY = {408, 409, 412, 425, 429, 500, 502, 503, 504}
"""Answers after which the same call may succeed; 412 says that another commit came in between."""


@dataclass(frozen=True)
class HubTarget:
    """Where a bundle goes.

    Attributes:
        repository: `org/name`.
        public: make a new repository public; an old one stays what it is.
        pull_request: propose the files instead of writing them to the main branch.
        tag: name for the commit.
    """

    repository: str
    public: bool = False
    pull_request: bool = False
    tag: str | None = None


def check_credentials() -> str:
    """Make sure that the hub knows who is calling.

    Returns:
        The hub's address.

    Raises:
        PublishError: there are no credentials, the hub refuses them, or it cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    api = HfApi()
    if get_token() is None:
        raise PublishError(
            f"there are no credentials for {api.endpoint}: log in with `hf auth login` or set "
            "HF_TOKEN, and run the same command again."
        )
    with _plain_errors(api.endpoint):
        _again(api.whoami, time.sleep)
    return str(api.endpoint)


def upload_bundle(
    folder: Path, target: HubTarget, *, wait: Callable[[float], None] = time.sleep
) -> str:
    """Bring a repository to what the bundle holds; nothing is sent that is there.

    Credentials come from the client's own places (`hf auth login`, HF_TOKEN); HF_ENDPOINT names
    another hub.

    Args:
        folder: a whole bundle.
        target: where it goes.
        wait: sleeps between tries.

    Returns:
        Address of the commit or the pull request.

    Raises:
        PublishError: the hub refuses or cannot be reached; nothing half-uploaded becomes visible.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    hashes_by_name = read_sums(folder)
    with _plain_errors(target.repository), _quiet_client():
        _again(
            lambda: api.create_repo(target.repository, private=not target.public, exist_ok=True),
            wait,
        )
        return _again(lambda: _send(api, folder, hashes_by_name, target), wait)


def _send(api: HfApi, folder: Path, sums: Mapping[str, str], target: HubTarget) -> str:
    """One try: compare, commit what differs, tag. Run again, it continues where it was cut."""
    repository = target.repository
    if _holds_bundle(api, repository, "main", folder, sums):
        say(f"  {repository} holds exactly this already; nothing was sent")
        _tag(api, target)
        return f"{api.endpoint}/{repository}"
    if target.pull_request:
        # An earlier call may have proposed this, and been cut before it heard the answer.
        for number in _open_requests(api, repository):
            if _holds_bundle(api, repository, f"refs/pr/{number}", folder, sums):
                say(f"  pull request {number} proposes exactly this already; nothing was sent")
                return f"{api.endpoint}/{repository}/discussions/{number}"
    # Not `upload_folder`: it may commit large folders in parts, and half a model would be seen.
    commit = api.create_commit(
        repository,
        operations=[*_additions(folder, sums), *_deletions(api, repository, sums)],
        commit_message="Merged model with its report",
        # Where another commit came in between, the hub answers 412, and the next try looks at that
        # one.
        parent_commit=api.repo_info(repository).sha,
        create_pr=target.pull_request,
    )
    if target.pull_request:
        return str(commit.pr_url)
    _tag(api, target)
    return str(commit.commit_url)


def _additions(folder: Path, sums: Mapping[str, str]) -> list[CommitOperationAdd]:
    from huggingface_hub import CommitOperationAdd

    operations = []
    for file_name in (*sums, SUMS):
        operation = CommitOperationAdd(path_in_repo=file_name, path_or_fileobj=folder / file_name)
        if file_name in sums:
            # Of the bundle, not of what the file holds now: the hub refuses what differs.
            operation.upload_info.sha256 = bytes.fromhex(sums[file_name])
        operations.append(operation)
    return operations


def _deletions(api: HfApi, repository: str, sums: Mapping[str, str]) -> list[CommitOperationDelete]:
    """Files of an earlier bundle that this one has no more; others' files stay."""
    from huggingface_hub import CommitOperationDelete

    # Only names from checksums of ours: without those, no file there is known to be old.
    present = set(_remote_files(api, repository, "main"))
    if SUMS not in present:
        return []
    with tempfile.TemporaryDirectory() as download_folder:
        sums_path = Path(api.hf_hub_download(repository, SUMS, local_dir=download_folder))
        earlier = parse_sums(sums_path.read_text(encoding="utf-8"), f"{repository}/{SUMS}")
    return [CommitOperationDelete(name) for name in earlier if name not in sums and name in present]


def _remote_files(api: HfApi, repository: str, revision: str) -> dict[str, RepoFile]:
    from huggingface_hub import RepoFile

    tree_entries = api.list_repo_tree(repository, revision=revision, recursive=True)
    return {entry.path: entry for entry in tree_entries if isinstance(entry, RepoFile)}


def _holds_bundle(
    api: HfApi, repository: str, revision: str, folder: Path, sums: Mapping[str, str]
) -> bool:
    """Whether a revision holds every file of the bundle, by the hashes that the hub tells."""
    # Nothing is downloaded: sizes and hashes of all files come with one listing.
    present_files = _remote_files(api, repository, revision)
    for file_name in (*sums, SUMS):
        remote_entry, local_path = present_files.get(file_name), folder / file_name
        if remote_entry is None or remote_entry.size != local_path.stat().st_size:
            return False
        if remote_entry.lfs is not None:
            # SHA256SUMS has no sum of its own; it is small, and no hub keeps it as a large file.
            if remote_entry.lfs.sha256 != sums.get(file_name, ""):
                return False
        # The hub tells sha256 of large files alone; of small ones the hash that git names them by.
        elif remote_entry.blob_id != _git_blob_id(local_path.read_bytes()):
            return False
    return True


def _git_blob_id(content: bytes) -> str:
    """The name that git gives to a file's content.

    >>> _git_blob_id(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324  (git's)


def _open_requests(api: HfApi, repository: str) -> list[int]:
    open_requests = api.get_repo_discussions(
        repository, discussion_type="pull_request", discussion_status="open"
    )
    return [request.num for request in open_requests]


def _tag(api: HfApi, target: HubTarget) -> None:
    """Name the newest commit; a name that stands for another one is refused, not moved."""
    if target.tag is None or target.pull_request:
        return
    newest_commit = api.repo_info(target.repository).sha
    for tag in api.list_repo_refs(target.repository).tags:
        if tag.name == target.tag:
            if tag.target_commit == newest_commit:
                return
            raise PublishError(
                f"{target.repository}: the tag {target.tag} stands for {tag.target_commit[:7]}; "
                "the files are uploaded, give another tag for them."
            )
    api.create_tag(target.repository, tag=target.tag, revision=newest_commit)
    say(f"  tagged {target.tag}")


def _again(act: Callable[[], Result], wait: Callable[[float], None]) -> Result:
    """Try what may succeed later, a few times, twice as long apart each time."""
    for number in range(_TRIES - 1):
        try:
            return act()
        except Exception as error:
            cause = _cause(error)
            if not _is_temporary(cause):
                raise
            pause = _retry_after(cause) or 0.5 * 2.0**number
            say(f"  {_words(cause)}; trying again in {pause:g} s ({number + 1} of {_TRIES - 1})")
            wait(pause)
    return act()


def _cause(error: Exception) -> BaseException | None:
    """What went wrong: the client wraps errors of single files in a RuntimeError of its own."""
    return error.__cause__ if isinstance(error, RuntimeError) else error


def _is_temporary(error: BaseException | None) -> bool:
    status = _status(error)
    if status is not None:
        return status in _TEMPORARY
    # The client's network errors come from the HTTP library it uses, by that library's names.
    names = {base_class.__name__ for base_class in type(error).__mro__}
    return bool(names & {"TransportError", "TimeoutException", "NetworkError", "ConnectionError"})


def _status(error: BaseException | None) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _retry_after(error: BaseException | None) -> float | None:
    response = getattr(error, "response", None)
    # The header may be a date as well; then we wait as long as we would without it.
    header_value = getattr(response, "headers", {}).get("Retry-After", "")
    return min(float(header_value), 300.0) if header_value.isdigit() else None


@contextlib.contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """Say in one line what the hub or the connection said."""
    try:
        yield
    except PublishError:
        raise
    except Exception as error:
        root_cause = _cause(error)
        if not _is_known(root_cause):
            raise
        raise PublishError(f"{what}: {_words(root_cause)}. {_advice(root_cause)}") from error


def _is_known(error: BaseException | None) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    known_errors = (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError)
    return isinstance(error, known_errors) or _is_temporary(error) or isinstance(error, ValueError)


def _words(error: BaseException | None) -> str:
    status = _status(error)
    status_words = {
        401: "the hub does not accept the credentials (401)",
        403: "the credentials may not write there (403)",
        404: "the hub knows no such repository, or does not show it (404)",
        413: "the hub finds the upload too large (413)",
        429: "the hub asks to come more slowly (429)",
    }
    if status in status_words:
        return status_words[status]
    if status is not None:
        message = getattr(error, "server_message", None) or ""
        return f"the hub answered {status}{f' ({message})' if message else ''}"
    if _is_temporary(error):
        return f"the connection broke ({type(error).__name__})"
    error_text = " ".join(str(error).split())
    return error_text[:200].rstrip(".") or type(error).__name__


def _advice(error: BaseException | None) -> str:
    status = _status(error)
    if status == 401:
        return "They may have expired: log in anew with `hf auth login`, or renew HF_TOKEN."
    if status in (403, 404):
        return "Check the name, and that the token has the right to write in it."
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "Unset HF_HUB_OFFLINE and run again."
    return "Nothing became visible; run the same command again, what is stored is not sent twice."


@contextlib.contextmanager
def _quiet_client() -> Iterator[None]:
    """The client warns of each retry of its own; ours are said in one line each. Its bars are for
    people who watch, not for logs."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public by its documentation
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    hides_bars = not console.is_terminal and not are_progress_bars_disabled()
    if hides_bars:
        disable_progress_bars()
    hub_logger = logging.getLogger("huggingface_hub")
    log_level = hub_logger.level
    hub_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub_logger.setLevel(log_level)
        if hides_bars:
            enable_progress_bars()
