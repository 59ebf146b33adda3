"""The SEC's public archive over HTTP, by its own rules: who asks is said, and how often is bounded.

Only the documented addresses are used (company_tickers.json, submissions, Archives). A package such
as edgartools offers more and brings twenty others along, pandas and its own cache among them; what
is needed here is four addresses, a pace and a cache.
"""

from __future__ import annotations

import fcntl
import os
import time
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from toolkit.errors import DataError
from toolkit.load_yaml import decode_json
from toolkit.machine import cache_folder

REQUESTS_PER_SECOND = 5.0
"""Half of what the archive allows one user, of all processes on this machine together."""

_TRIES = 6
_TIMEOUT_SECONDS = 60.0
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 120.0
_MAX_BYTES = 512 << 20
"""A filing larger than this is refused; the largest known are a tenth of it."""

_MIRROR = "TOOLKIT_EDGAR_URL"
"""Environment variable with the address of a mirror that has the paths of all three hosts."""


class ArchiveRefusedError(DataError):
    """The archive does not serve this caller."""


@lru_cache(maxsize=4)
def open_archive(contact: str) -> EdgarArchive:
    """The caller of this process, whose connections serve all requests."""
    return EdgarArchive(contact)


class EdgarArchive:
    """A caller of the archive.

    Args:
        contact: who asks, as the archive's rules want it: `Name name@example.org`.
    """

    def __init__(self, contact: str) -> None:
        import requests  # slow to import, and few recipes need it

        mirror_address = os.environ.get(_MIRROR, "").rstrip("/")
        self.site = mirror_address or "https://www.sec.gov"
        self.api = mirror_address or "https://data.sec.gov"
        # A session knows the user's proxy and certificates from the environment.
        self._session = requests.Session()
        self._session.headers["User-Agent"] = contact

    def read_json(self, address: str) -> Any:
        """A JSON document of the archive.

        Raises:
            DataError: it is not there, is no JSON, or the archive refuses.
        """
        try:
            return decode_json(self._fetch(address))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{address}: what the archive sends is no JSON ({error}); is it a mirror's or a "
                "proxy's page?"
            ) from error

    def read_bytes(self, address: str) -> bytes:
        """What stands at an address, whole.

        Raises:
            FileNotFoundError: nothing does.
            DataError: the archive refuses, or does not answer after all tries.
        """
        return self._fetch(address)

    def _fetch(self, address: str) -> bytes:
        """Ask again where that helps: after a cut connection, a busy server, too many requests."""
        import requests

        pause_seconds, last_trouble = _FIRST_PAUSE, ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(pause_seconds)
                pause_seconds = min(2.0 * pause_seconds, _LONGEST_PAUSE)
            try:
                _wait_for_turn()
                # Streamed, so that an answer that is too large is given up before all of it is
                # held.
                with self._session.get(address, stream=True, timeout=_TIMEOUT_SECONDS) as answer:
                    if answer.status_code == requests.codes.ok:
                        return _read_body(answer, address)
                    answer_body = answer.content[:4096].decode("utf-8", "replace")
            except (requests.RequestException, OSError) as error:
                last_trouble = str(error) or type(error).__name__
                continue
            status_code = answer.status_code
            if status_code == requests.codes.not_found:
                raise FileNotFoundError(address)
            # Too many requests are answered by 429, or by 403 and a page that says so.
            if status_code == requests.codes.forbidden and "threshold" not in answer_body.lower():
                raise ArchiveRefusedError(
                    f"{address}: the archive refuses (403). Its rules ask for a contact line with "
                    "a name and an address that is read: set `contact: Name name@example.org`."
                )
            if status_code < 500 and status_code not in {403, 408, 425, 429}:
                raise DataError(f"{address}: the archive answers {status_code}.")
            last_trouble = f"the archive answers {status_code}"
            pause_seconds = max(pause_seconds, _asked_pause(answer.headers.get("Retry-After")))
        raise DataError(
            f"{address}: no answer after {_TRIES} tries ({last_trouble}). What was fetched is "
            "kept: run the same command again later."
        )


def _read_body(answer: Any, address: str) -> bytes:
    """The bytes of an answer; one that ends before its announced length is an error of requests."""
    body = bytearray()
    for piece in answer.iter_content(1 << 20):
        body += piece
        if len(body) > _MAX_BYTES:
            raise DataError(f"{address}: is larger than {_MAX_BYTES >> 20} MiB; refused.")
    return bytes(body)


def _asked_pause(header: str | None) -> float:
    """Seconds that `Retry-After` asks for, as a number or a date; at most the longest pause."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_PAUSE)


def _wait_for_turn() -> None:
    """Keep the pace for all processes of this user: a lock, whose file's time is the last start."""
    pace_file = edgar_folder() / ".pace"
    pace_file.parent.mkdir(parents=True, exist_ok=True)
    with pace_file.open("a") as file:
        # Held while it sleeps, too: whoever waits for the lock then starts a whole pause later.
        fcntl.flock(file, fcntl.LOCK_EX)
        wait_seconds = pace_file.stat().st_mtime + 1.0 / REQUESTS_PER_SECOND - time.time()
        # More than one pause in the future is a clock that was set back, not another process.
        if 0.0 < wait_seconds <= 1.0:
            time.sleep(wait_seconds)
        os.utime(pace_file)


def edgar_folder() -> Path:
    """Where fetched filings are kept: by company's number, accession number and document."""
    return cache_folder() / "edgar"
