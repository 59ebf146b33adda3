"""Answers in the terminal: as they come, models side by side, and a chat with one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.live import Live
from rich.table import Table
from rich.text import Text

from toolkit.errors import CheckpointError, ConfigError
from toolkit.generate.chat_model import Message, Speaker
from toolkit.generate.stream import SamplingSettings, stream_answer
from toolkit.progress import console, say

HELP = "An empty line does nothing; /new begins anew, /quit or Ctrl-D ends."


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
            # A copy, as streams that end are taken out meanwhile.
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


def run_chat(
    speaker: Speaker,
    settings: SamplingSettings,
    *,
    system: str = "",
    ask: Callable[[str], str] = input,
) -> list[Message]:
    """Talk until the person ends it.

    Args:
        speaker: model that answers.
        settings: how its answers are made.
        system: what the model is told before all else; where empty, what its template says.
        ask: gives the next line, as `input` does.

    Returns:
        The messages of the last chat.
    """
    say(f"{speaker.label}: {HELP}")
    if speaker.template is None:
        say("This model has no chat template: it continues what you type, and remembers nothing.")
    opening_messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(opening_messages)
    while True:
        try:
            line = ask("> ").strip()
        except EOFError:
            say("")
            return messages
        if line == "/quit":
            return messages
        if line == "/new":
            messages = list(opening_messages)
            say("A new chat.")
        elif line:
            # A list of its own: what finds no answer is not said, and makes nothing forgotten.
            asked_messages: list[Message] = [*messages, {"role": "user", "content": line}]
            try:
                forget_oldest(speaker, asked_messages, len(opening_messages), settings.new_tokens)
                answer = show_answers([speaker], asked_messages, settings)[0]
            except KeyboardInterrupt:  # ends this answer, not the chat
                say("\n(stopped)")
            except (ConfigError, CheckpointError) as error:  # of this line, or of the template
                say(f"({error})")
            else:
                messages = [*asked_messages, {"role": "assistant", "content": answer.strip()}]


def forget_oldest(
    speaker: Speaker, messages: list[Message], num_kept: int, new_tokens: int
) -> None:
    """Drop the oldest question with its answer while the chat and an answer find no room."""
    while (
        len(messages) > num_kept + 2
        and len(speaker.encode(messages)) + new_tokens > speaker.most_tokens
    ):
        del messages[num_kept : num_kept + 2]
        say("(The chat outgrew what the model can look at; its beginning is forgotten.)")
