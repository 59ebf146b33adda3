"""A model that writes, behind an endpoint or here: what it is asked, and what it may do wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.writing_endpoint import Endpoint, serve_endpoint
from toolkit.errors import ConfigError, EvaluationError
from toolkit.knowledge import writer as module
from toolkit.knowledge.config import WriterSection
from toolkit.knowledge.writer import Writer
from toolkit.section import parse_section

KEY = "sk-secret-of-the-test"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    monkeypatch.setenv("WRITER_KEY", KEY)
    with serve_endpoint(Endpoint(answer=lambda prompt: f"answer to {prompt}")) as served:
        yield served


def writer_of(endpoint: Endpoint, **more: Any) -> Writer:
    values = {"endpoint": endpoint.address, "model": "w", "license": "mit", **more}
    return Writer(WriterSection(**values), "questions.writer")


def test_an_endpoint_is_asked_with_its_key(endpoint: Endpoint):
    assert writer_of(endpoint, key_variable="WRITER_KEY").ask("who?") == "answer to who?"
    assert endpoint.keys == [f"Bearer {KEY}"]
    assert writer_of(endpoint).ask("again?") == "answer to again?"
    assert endpoint.keys[1] is None


def test_a_proxy_never_sees_what_goes_to_this_machine(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert writer_of(endpoint, key_variable="WRITER_KEY").ask("who?") == "answer to who?"


@pytest.mark.parametrize(
    ("status", "body", "message", "tries"),
    [
        (200, b"<html>hello</html>", r"answers nonsense \('<html>hello</html>'\), after 3", 3),
        (200, b'{"choices": []}', "answers nonsense", 3),
        (200, b'{"choices": [{"message": {"content": "  "}}]}', "answers nonsense", 3),
        (503, b"busy", r"answers 503 \('busy'\), after 3 tries", 3),
        (401, b"no such key: " + KEY.encode(), r"answers 401 \('no such key: \*\*\*'\)", 1),
        (302, b"over there", "answers 302", 1),
    ],
)
def test_what_an_endpoint_answers_wrongly_is_quoted(
    endpoint: Endpoint, status: int, body: bytes, message: str, tries: int
):
    endpoint.status, endpoint.body = status, body
    with pytest.raises(EvaluationError, match=message) as raised:
        writer_of(endpoint, key_variable="WRITER_KEY", num_retries=2).ask("who?")
    assert KEY not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert len(endpoint.prompts) == tries  # a redirect is not followed: the key stays here


def test_an_endpoint_that_is_slow_or_down(endpoint: Endpoint):
    endpoint.delay = 0.5
    with pytest.raises(EvaluationError, match=r"took more than 0\.1 s"):
        writer_of(endpoint, timeout_seconds=0.1, num_retries=0).ask("who?")
    nowhere = Endpoint(address="http://127.0.0.1:9/v1")
    with pytest.raises(EvaluationError, match="cannot be reached"):
        writer_of(nowhere, num_retries=1).ask("who?")


def test_a_key_that_is_missing_or_would_be_seen(endpoint: Endpoint, monkeypatch: Any):
    public = Endpoint(address="http://models.example/v1")
    with pytest.raises(EvaluationError, match="is not encrypted"):
        writer_of(public, key_variable="WRITER_KEY").ask("who?")
    monkeypatch.setenv("WRITER_KEY", f"{KEY}\nHost: elsewhere")
    with pytest.raises(EvaluationError, match="holds spaces") as raised:
        writer_of(endpoint, key_variable="WRITER_KEY").ask("who?")
    assert KEY not in str(raised.value)
    monkeypatch.delenv("WRITER_KEY")
    with pytest.raises(EvaluationError, match="WRITER_KEY is not set"):
        writer_of(endpoint, key_variable="WRITER_KEY").ask("who?")
    assert not endpoint.prompts


def test_a_local_model_writes(tmp_path: Path, make_model: Callable[..., Path]):
    section = WriterSection(path=make_model(tmp_path / "model"), license="mit", max_new_tokens=5)
    assert isinstance(Writer(section, "data.written.writer").ask("who?"), str)
    with pytest.raises(EvaluationError, match="reads 256 tokens, and a passage"):
        Writer(section, "data.written.writer").ask("who? " * 400)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"license": "mit"}, "exactly one of"),
        ({"endpoint": "http://a/v1", "license": "mit"}, "name the one that is to write"),
        ({"endpoint": "ftp://a", "model": "m", "license": "mit"}, "must be an address"),
        ({"endpoint": "https://me:key@a/v1", "model": "m", "license": "mit"}, "must hold no key"),
        ({"path": "m", "key_variable": "K", "license": "mit"}, "belongs to endpoint"),
    ],
)
def test_a_section_that_does_not_fit(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        parse_section(WriterSection, values, where="writer", what="section")
