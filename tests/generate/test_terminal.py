"""Answers and chats as a person sees them, and the commands themselves."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from toolkit.cli import main
from toolkit.generate import terminal
from toolkit.generate.chat_model import load_speaker
from toolkit.generate.stream import SamplingSettings
from toolkit.generate.terminal import forget_oldest, run_chat, show_answers

USER = [{"role": "user", "content": "the board"}]


def lines(*words: str) -> Callable[[str], str]:
    given: Iterator[str] = iter(words)

    def ask(_prompt: str) -> str:
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    return ask


def test_side_by_side_in_a_terminal(two_models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    speakers = [load_speaker(folder) for folder in two_models]
    written = StringIO()
    screen = Console(file=written, force_terminal=True, width=100)
    monkeypatch.setattr(terminal, "console", screen)
    answers = show_answers(speakers, USER, SamplingSettings(new_tokens=6))
    alone = [
        show_answers([speaker], USER, SamplingSettings(new_tokens=6))[0] for speaker in speakers
    ]
    assert answers == alone
    assert "base" in written.getvalue()
    assert "tuned" in written.getvalue()


def test_a_chat_remembers(two_models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    speaker = load_speaker(two_models[0], label="mine")
    settings = SamplingSettings(new_tokens=4)
    messages = run_chat(speaker, settings, system="be brief", ask=lines("debt", "", "revenue"))
    roles = [message["role"] for message in messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert messages[2]["content"] == show_answers([speaker], messages[:2], settings)[0].strip()
    again = run_chat(speaker, settings, ask=lines("debt", "/new", "revenue", "/quit", "not asked"))
    assert again[0]["content"] == "revenue"
    assert len(again) == 2
    assert "/quit" in capsys.readouterr().out


def test_an_interrupted_answer_does_not_end_the_chat(
    two_models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("toolkit.generate.terminal.show_answers", interrupt)
    assert run_chat(load_speaker(two_models[0]), SamplingSettings(), ask=lines("debt")) == []


def test_a_line_that_finds_no_answer_does_not_end_the_chat(
    two_models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    speaker = load_speaker(two_models[0])
    settings = SamplingSettings(new_tokens=4)
    asked = lines("debt", "revenue " * 300, "lease")
    messages = run_chat(speaker, settings, ask=asked)
    assert [m["content"] for m in messages if m["role"] == "user"] == ["debt", "lease"]
    assert messages[:2] == run_chat(speaker, settings, ask=lines("debt"))
    assert "shorten it" in capsys.readouterr().out
    template = "{{ messages[0].content if messages[0].content != 'no' else raise_exception('x') }}"
    speaker = dataclasses.replace(speaker, template=template)
    messages = run_chat(speaker, settings, ask=lines("no", "debt"))
    assert [m["content"] for m in messages if m["role"] == "user"] == ["debt"]
    assert "its chat template cannot be used" in capsys.readouterr().out


def test_a_long_chat_forgets_its_beginning(two_models: tuple[Path, Path]):
    speaker = load_speaker(two_models[0])
    messages = [{"role": "system", "content": "be brief"}]
    for number in range(12):
        messages += [
            {"role": "user", "content": f"revenue in {number}"},
            {"role": "assistant", "content": "lease costs and operating margin"},
        ]
    messages.append({"role": "user", "content": "the last"})
    forget_oldest(speaker, messages, 1, 16)
    assert len(speaker.encode(messages)) + 16 <= 256
    assert messages[0]["role"] == "system"
    assert messages[1]["role"] == "user"
    assert messages[-1]["content"] == "the last"
    assert len(messages) > 2


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["toolkit", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main.main()
    return int(stop.value.code or 0)


def test_generate(
    two_models: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    words = ["--prompt", "the board", "--prompt", "debt", "--new-tokens", 5]
    assert command(monkeypatch, "generate", *two_models, *words) == 0
    shown = capsys.readouterr().out
    assert shown.count("--- ") == 4
    assert "> debt" in shown
    speaker = load_speaker(two_models[1])
    assert show_answers([speaker], USER, SamplingSettings(new_tokens=5))[0].strip() in shown
    assert command(monkeypatch, "generate", two_models[0], "--prompt", "x", "--top-p", 2) == 2


def test_chat(
    two_models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("sys.stdin", StringIO("debt\n/quit\n"))
    runs = tmp_path / "runs"
    assert command(monkeypatch, "chat", "mine", "--runs", runs) == 2
    assert "run `toolkit merge choose mine` first" in capsys.readouterr().err
    shutil.copytree(two_models[1], runs / "mine" / "merge")
    (runs / "mine" / "merge" / "manifest.json").write_text("{}")
    assert command(monkeypatch, "chat", "mine", "--runs", runs, "--new-tokens", 3) == 0
    assert "mine: " in capsys.readouterr().out
