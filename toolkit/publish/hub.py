"""The upload to a hub: one commit with everything, by the hub's own client.

Large files are stored first, where nobody sees them; the commit that makes all files visible comes
last. Whatever breaks before it leaves the repository as it was, and a second call finds what is
stored already.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import PublishError
from toolkit.progress import console, say
from toolkit.publish.bundle import SUMS, parse_sums, read_sums

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
        _again(lambda: api.whoami(), time.sleep)
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
    sums = read_sums(folder)
    with _plain_errors(target.repository), _quiet_client():
        _again(
            lambda: api.create_repo(target.repository, private=not target.public, exist_ok=True),
            wait,
        )
        return str(_again(lambda: _send(api, folder, sums, target), wait))


def _send(api: Any, folder: Path, sums: Mapping[str, str], target: HubTarget) -> str:
    """One try: compare, commit what differs, tag. Run again, it continues where it was cut."""
    repository = target.repository
    sizes = {name: (folder / name).stat().st_size for name in (*sums, SUMS)}
    if _is_there(api, repository, "main", folder, sums, sizes):
        done = f"{api.endpoint}/{repository}"
        say(f"  {repository} holds exactly this already; nothing was sent")
        _tag(api, target)
        return done
    if target.pull_request:
        for number in _open_requests(api, repository):
            if _is_there(api, repository, f"refs/pr/{number}", folder, sums, sizes):
                say(f"  pull request {number} proposes exactly this already; nothing was sent")
                return f"{api.endpoint}/{repository}/discussions/{number}"
    info = api.repo_info(repository)
    commit = api.create_commit(
        repository,
        operations=[*_additions(folder, sums), *_deletions(api, repository, sums)],
        commit_message="Merged model with its report",
        parent_commit=info.sha,
        create_pr=target.pull_request,
    )
    if target.pull_request:
        return str(commit.pr_url)
    _tag(api, target)
    return str(commit.commit_url)


def _additions(folder: Path, sums: Mapping[str, str]) -> list[Any]:
    from huggingface_hub import CommitOperationAdd

    operations = []
    for name in (*sums, SUMS):
        operation = CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name)
        if name in sums:  # hashed once already
            operation.upload_info.sha256 = bytes.fromhex(sums[name])
        operations.append(operation)
    return operations


def _deletions(api: Any, repository: str, sums: Mapping[str, str]) -> list[Any]:
    """Files of an earlier bundle that this one has no more; others' files stay."""
    from huggingface_hub import CommitOperationDelete, hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import hf_raise_for_status, http_backoff

    there = {entry.path for entry in api.list_repo_tree(repository, recursive=True)}
    if SUMS not in there:
        return []
    address = hf_hub_url(repository, SUMS, endpoint=api.endpoint)
    answer = http_backoff("GET", address, headers=build_hf_headers(), follow_redirects=True)
    hf_raise_for_status(answer)
    earlier = parse_sums(answer.text, f"{repository}/{SUMS}")
    return [CommitOperationDelete(name) for name in earlier if name not in sums and name in there]


def _is_there(
    api: Any,
    repository: str,
    revision: str,
    folder: Path,
    sums: Mapping[str, str],
    sizes: Mapping[str, int],
) -> bool:
    """Whether a revision holds every file of the bundle, by the hashes that the hub tells."""
    from huggingface_hub.utils.sha import git_hash

    entries = api.list_repo_tree(repository, revision=revision, recursive=True)
    found = {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}
    for name, size in sizes.items():
        entry = found.get(name)
        if entry is None or entry.size != size:
            return False
        if entry.lfs is not None:
            if entry.lfs.sha256 != sums.get(name, ""):
                return False
        elif entry.blob_id != git_hash((folder / name).read_bytes()):
            return False
    return True


def _open_requests(api: Any, repository: str) -> list[int]:
    found = api.get_repo_discussions(
        repository, discussion_type="pull_request", discussion_status="open"
    )
    return [item.num for item in found]


def _tag(api: Any, target: HubTarget) -> None:
    """Name the newest commit; a name that stands for another one is refused, not moved."""
    if target.tag is None or target.pull_request:
        return
    commit = api.repo_info(target.repository).sha
    for tag in api.list_repo_refs(target.repository).tags:
        if tag.name == target.tag:
            if tag.target_commit == commit:
                return
            raise PublishError(
                f"{target.repository}: the tag {target.tag} stands for {tag.target_commit[:7]}; "
                "the files are uploaded, give another tag for them."
            )
    api.create_tag(target.repository, tag=target.tag, revision=commit)
    say(f"  tagged {target.tag}")


def _again(act: Callable[[], Any], wait: Callable[[float], None]) -> Any:
    """Try what may succeed later, a few times, twice as long apart each time."""
    for number in range(_TRIES):
        try:
            return act()
        except Exception as error:
            # The client wraps errors of single files in a RuntimeError of its own.
            cause = error.__cause__ if isinstance(error, RuntimeError) else error
            if number == _TRIES - 1 or not _is_temporary(cause):
                raise
            pause = _retry_after(cause) or 0.5 * 2.0**number
            say(f"  {_words(cause)}; trying again in {pause:g} s ({number + 1} of {_TRIES - 1})")
            wait(pause)
    raise AssertionError


def _is_temporary(error: BaseException | None) -> bool:
    status = _status(error)
    if status is not None:
        return status in _TEMPORARY
    # The client's network errors come from the HTTP library it uses, by that library's names.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "TimeoutException", "NetworkError", "ConnectionError"})


def _status(error: BaseException | None) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _retry_after(error: BaseException | None) -> float | None:
    response = getattr(error, "response", None)
    value = getattr(response, "headers", {}).get("Retry-After", "")
    return min(float(value), 300.0) if value.isdigit() else None


@contextlib.contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """Say in one line what the hub or the connection said."""
    try:
        yield
    except PublishError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        if not _is_known(cause):
            raise
        raise PublishError(f"{what}: {_words(cause)}. {_advice(cause)}") from error


def _is_known(error: BaseException | None) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    known = (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError)
    return isinstance(error, known) or _is_temporary(error) or isinstance(error, ValueError)


def _words(error: BaseException | None) -> str:
    status = _status(error)
    titles = {
        401: "the hub does not accept the credentials (401)",
        403: "the credentials may not write there (403)",
        404: "the hub knows no such repository, or does not show it (404)",
        413: "the hub finds the upload too large (413)",
        429: "the hub asks to come more slowly (429)",
    }
    if status in titles:
        return titles[status]
    if status is not None:
        message = getattr(error, "server_message", None) or ""
        return f"the hub answered {status}{f' ({message})' if message else ''}"
    if _is_temporary(error):
        return f"the connection broke ({type(error).__name__})"
    text = " ".join(str(error).split())
    return text[:200].rstrip(".") or type(error).__name__


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
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    hide = not console.is_terminal and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if hide:
            enable_progress_bars()
