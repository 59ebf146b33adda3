"""A chat with a model in the terminal."""

from __future__ import annotations

from collections.abc import Callable

from toolkit.generate.chat_model import Message, Speaker
from toolkit.generate.show import show_answers
from toolkit.generate.stream import SamplingSettings
from toolkit.progress import say

HELP = "An empty line does nothing; /new begins anew, /quit or Ctrl-D ends."


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
            messages.append({"role": "user", "content": line})
            forget_oldest(speaker, messages, len(opening_messages), settings.new_tokens)
            try:
                answer = show_answers([speaker], messages, settings)[0]
            except KeyboardInterrupt:  # ends this answer, not the chat
                say("\n(stopped)")
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": answer.strip()})


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
