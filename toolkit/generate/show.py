"""Answers in the terminal as they come, models side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.live import Live
from rich.table import Table
from rich.text import Text

from toolkit.generate.chat_model import Message, Speaker
from toolkit.generate.stream import SamplingSettings, stream_answer
from toolkit.progress import console, say


def show_answers(
    speakers: Sequence[Speaker], messages: Sequence[Message], settings: SamplingSettings
) -> list[str]:
    """Print the answers of all models to one chat, and return them.

    One model's answer runs as text. Several grow in columns where there is a terminal, a token
    each in turn; into a file or a pipe they are written one after the other.
    """
    streams = [stream_answer(speaker, messages, settings) for speaker in speakers]
    if len(speakers) == 1:
        return [_run(streams[0])]
    if not console.is_terminal:
        answers = []
        for speaker, stream in zip(speakers, streams, strict=True):
            say(f"--- {speaker.label}")
            answers.append(_run(stream))
        return answers
    answers = [""] * len(speakers)
    growing_streams = set(range(len(speakers)))
    with Live(_columns(speakers, answers), console=console, refresh_per_second=8) as live:
        while growing_streams:
            for index in sorted(growing_streams):
                piece = next(streams[index], None)
                if piece is None:
                    growing_streams.discard(index)
                else:
                    answers[index] += piece
            live.update(_columns(speakers, answers))
    return answers


def _run(stream: Iterator[str]) -> str:
    answer = ""
    for piece in stream:
        console.print(Text(piece), end="", soft_wrap=True)
        answer += piece
    console.print()
    return answer


def _columns(speakers: Sequence[Speaker], answers: Sequence[str]) -> Table:
    table = Table(expand=True, show_lines=True)
    for speaker in speakers:
        table.add_column(Text(speaker.label), ratio=1, overflow="fold")
    table.add_row(*(Text(answer) for answer in answers))
    return table
