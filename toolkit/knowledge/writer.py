"""A model that writes texts: one behind an endpoint of OpenAI's protocol, or a local one.

Requests are bounded in time, size and number; a key is read from the environment when it is sent,
and stands in no file, message or manifest.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

from toolkit.errors import EvaluationError
from toolkit.generate.chat_model import Message, Speaker, load_speaker
from toolkit.generate.greedy import greedy_answers
from toolkit.knowledge.config import WriterSection

_MOST_BYTES = 4 << 20
"""An answer longer than this is none."""

_CHUNK_BYTES = 1 << 16
_QUOTED = 80
_LONGEST_WAIT = 30.0
_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Answers of a server after which asking again may help."""

_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


class Writer:
    """A model to be asked, loaded or reached when it is first needed.

    Args:
        section: which model.
        key: of the recipe that names it, for messages.
    """

    def __init__(self, section: WriterSection, key: str) -> None:
        self._section = section
        self._key = key
        self._speaker: Speaker | None = None

    def ask(self, prompt: str) -> str:
        """The model's answer to one message.

        Raises:
            EvaluationError: the endpoint is down, too slow, refuses, or answers nonsense.
            CheckpointError: there is no local model.
        """
        messages = [{"role": "user", "content": prompt}]
        if self._section.endpoint is None:
            return self._ask_local(messages)
        problem = "was not asked"
        for attempt in range(self._section.num_retries + 1):
            if attempt:
                time.sleep(min(2.0 ** (attempt - 1), _LONGEST_WAIT))
            try:
                return self._read_answer(self._request(messages))
            except _AskAgainError as error:
                problem = str(error)
        raise EvaluationError(
            f"{self._key}: {self._section.endpoint} {problem}, after "
            f"{self._section.num_retries + 1} tries; start the server, or raise timeout_seconds or "
            "num_retries. What was written so far is kept."
        )

    def _ask_local(self, messages: Sequence[Message]) -> str:
        section = self._section
        if self._speaker is None:
            assert section.path is not None  # noqa: S101  (the section is one or the other)
            self._speaker = load_speaker(section.path)
        speaker = self._speaker
        tokens = speaker.encode(messages)
        room = speaker.most_tokens - len(tokens)
        if room < 1:
            raise EvaluationError(
                f"{self._key}: {speaker.label} reads {speaker.most_tokens} tokens, and a passage "
                f"with its instruction has {len(tokens)}; shorten passages, or take another model."
            )
        new_tokens = min(section.max_new_tokens, room)
        (answer,) = greedy_answers(speaker.model, speaker.stops, [tokens], new_tokens)
        return speaker.decode(answer)

    def _request(self, messages: Sequence[Message]) -> bytes:
        """The body of the server's answer.

        Raises:
            _AskAgainError: asking again may help.
            EvaluationError: it will not.
        """
        section = self._section
        body = {
            "model": section.model,
            "messages": list(messages),
            "temperature": section.temperature,
            "max_tokens": section.max_new_tokens,
        }
        headers = {"Content-Type": "application/json", **self._authorization()}
        request = urllib.request.Request(  # noqa: S310  (the section takes http and https alone)
            f"{section.endpoint}/chat/completions", json.dumps(body).encode(), headers
        )
        # A timeout of sockets is one for each read: an answer that trickles in needs a deadline,
        # too.
        deadline = time.monotonic() + section.timeout_seconds
        opener = urllib.request.build_opener(_NoRedirect, *_proxies(section.endpoint))
        try:
            with opener.open(request, timeout=section.timeout_seconds) as response:
                return _read_until(response, deadline)
        except urllib.error.HTTPError as error:
            # An HTTPError is a URLError and that an OSError, so the narrow one is caught first.
            with error:
                said = self._quote(error.read(_CHUNK_BYTES))
            if error.code in _BUSY:
                raise _AskAgainError(f"answers {error.code} ({said})") from None
            self._refuse(f"answers {error.code} ({said}); check model, address and key")
        except (TimeoutError, _TooSlowError):
            raise _AskAgainError(f"took more than {section.timeout_seconds:g} s") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _AskAgainError(f"took more than {section.timeout_seconds:g} s") from None
            raise _AskAgainError(f"cannot be reached ({error.reason})") from None
        except (OSError, http.client.HTTPException) as error:
            what = str(error) or type(error).__name__
            raise _AskAgainError(f"breaks off ({what})") from None

    def _authorization(self) -> dict[str, str]:
        variable, endpoint = self._section.key_variable, self._section.endpoint
        if variable is None:
            return {}
        secret = os.environ.get(variable, "")
        if not secret:
            raise EvaluationError(
                f"{self._key}.key_variable: {variable} is not set in the environment; export it."
            )
        if not secret.isascii() or any(sign.isspace() for sign in secret):
            raise EvaluationError(
                f"{self._key}.key_variable: {variable} holds spaces or signs that no key has; "
                "export it again."
            )
        address = urlsplit(endpoint or "")
        if address.scheme != "https" and address.hostname not in _THIS_MACHINE:
            raise EvaluationError(
                f"{self._key}.endpoint: {endpoint} is not encrypted, and the key would be read on "
                "its way; give its https address."
            )
        return {"Authorization": f"Bearer {secret}"}

    def _read_answer(self, body: bytes) -> str:
        """
        Raises:
            _AskAgainError: it is not what the protocol says.
        """
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            content = None
        if not isinstance(content, str) or not content.strip():
            raise _AskAgainError(f"answers nonsense ({self._quote(body)})")
        return content

    def _quote(self, body: bytes) -> str:
        """The beginning of an answer, without the key, should the server repeat it."""
        text = " ".join(body.decode("utf-8", "replace").split())
        if self._section.key_variable is not None:
            # To replace an empty key would put stars between all signs.
            text = text.replace(os.environ.get(self._section.key_variable, "") or "\0", "***")
        text = "".join(sign for sign in text if sign.isprintable())
        return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…")

    def _refuse(self, what: str) -> NoReturn:
        raise EvaluationError(f"{self._key}: {self._section.endpoint} {what}.") from None


def _proxies(endpoint: str | None) -> list[urllib.request.ProxyHandler]:
    """A handler that asks no proxy, where the endpoint is this machine: the environment's would be
    another machine, and would read the key."""
    is_here = urlsplit(endpoint or "").hostname in _THIS_MACHINE
    return [urllib.request.ProxyHandler({})] if is_here else []


class _AskAgainError(Exception):
    """Says what went wrong."""


class _TooSlowError(Exception):
    """The time is over in the middle of an answer."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: the key would go wherever an answer points."""

    def redirect_request(self, *_arguments: Any, **_settings: Any) -> None:
        return None


def _read_until(response: Any, deadline: float) -> bytes:
    """A body of bounded size in bounded time, however slowly it comes."""
    body = bytearray()
    # `read` would wait until a chunk is full, past the deadline; `read1` gives what has come.
    while chunk := response.read1(_CHUNK_BYTES):
        body += chunk
        if len(body) > _MOST_BYTES:
            raise _AskAgainError(f"answers more than {_MOST_BYTES:,} bytes")
        if time.monotonic() > deadline:
            raise _TooSlowError
    return bytes(body)
