"""A Modelfile for Ollama: the chat template in Go's language, and the tokens that end an answer.

Ollama renders no Jinja. What a template puts around each role is found by rendering it, and what
is written is compared with it on conversations; a template that does more gets no `TEMPLATE`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from toolkit.bounded import bounded_template
from toolkit.checkpoint.gguf.vocabulary import end_tokens
from toolkit.errors import ToolkitError
from toolkit.tokenizer_files import load_tokenizer

MODELFILE = "Modelfile"
_MARK = "cptmark"
_WORDS = ("Hello.", "What is a lease?\nIn short.", "1 + 1 = 2", "naïve façade", "a")


@dataclass(frozen=True)
class ChatFrame:
    """What a chat template is where it only puts text around each message.

    Attributes:
        around: what stands before and after a message, by role.
        start_without_system: what stands before a conversation that does not begin with the
            system's message.
        answer: what an answer begins after.
    """

    around: dict[str, tuple[str, str]]
    start_without_system: str
    answer: str

    def render(self, messages: list[dict[str, str]]) -> str:
        """A conversation, up to where the answer begins."""
        text = "" if messages[0]["role"] == "system" else self.start_without_system
        for message in messages:
            before, after = self.around[message["role"]]
            text += f"{before}{message['content']}{after}"
        return text + self.answer

    def as_text(self) -> str:
        """All that stands around messages."""
        return "".join((self.start_without_system, self.answer, *sum(self.around.values(), ())))

    def as_go(self) -> str:
        """The same as a template of Go."""
        roles = [
            f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}'
            f"{before}{{{{ .Content }}}}{after}"
            for number, (role, (before, after)) in enumerate(self.around.items())
        ]
        start = self.start_without_system
        if start:
            start = (
                '{{ $first := index .Messages 0 }}{{ if ne $first.Role "system" }}'
                f"{start}{{{{ end }}}}"
            )
        loop = f"{{{{ range .Messages }}}}{''.join(roles)}{{{{ end }}}}{{{{ end }}}}"
        return f"{start}{loop}{self.answer}"


def find_frame(tokenizer: Any) -> ChatFrame | None:
    """The frame of a chat template, or None where it does more than put text around messages.

    Where it does more with the system's message alone (Gemma puts that into the user's), the frame
    is of the other two roles. White space around a message may be trimmed by the model's own.
    """
    if not tokenizer.chat_template:
        return None
    # The frame is guessed from a few texts; sixty conversations have to come out the same.
    for has_system in (True, False):
        try:
            frame = _guess_frame(tokenizer, has_system)
            is_same = all(
                frame.render(messages) == _render(tokenizer, messages)
                for messages in _conversations(has_system)
            )
        # It refuses a role or an order, or loses text.
        except (TemplateError, ToolkitError, ValueError, KeyError, IndexError):
            continue
        # Go would take braces for its own, and Ollama three quotes for the end.
        if is_same and not any(sign in frame.as_text() for sign in ("{{", '"""')):
            return frame
    return None


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _render(tokenizer: Any, messages: list[dict[str, str]], *, answer: bool = True) -> str:
    with bounded_template():
        text = str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        )
    # llama.cpp puts the first token in front by itself.
    bos_token = tokenizer.bos_token or ""
    is_put = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(bos_token) if bos_token and is_put else text


def _guess_frame(tokenizer: Any, has_system: bool) -> ChatFrame:
    """Each role's frame follows from what a message more adds."""
    user = _message("user", _MARK)
    # Each conversation begins with the one before, so that what it adds is one message's frame.
    one = _render(tokenizer, [user], answer=False)
    two = _render(tokenizer, [user, _message("assistant", _MARK)], answer=False)
    three = _render(tokenizer, [user, _message("assistant", _MARK), user], answer=False)
    # The user's frame is that of the third message: some templates put a system message of their
    # own before the first, and that is what `start` then holds.
    around = {"assistant": _split(two[len(one) :]), "user": _split(three[len(two) :])}
    start = one.removesuffix(_MARK.join(around["user"]))
    if has_system:
        with_system = _render(tokenizer, [_message("system", _MARK), user], answer=False)
        system = with_system.removesuffix(_MARK.join(around["user"]))
        around = {"system": _split(system), **around}
    answer = _render(tokenizer, [user])[len(one) :]
    return ChatFrame(around, start, answer)


def _split(text: str) -> tuple[str, str]:
    before, after = text.split(_MARK)
    return before, after


def _conversations(has_system: bool = True) -> list[list[dict[str, str]]]:
    """Fifty and more, of one to five messages; every other one begins with the system's."""
    words = itertools.cycle(_WORDS)
    found = []
    for number in range(60):
        turns = [
            _message("user" if turn % 2 == 0 else "assistant", next(words))
            for turn in range(1 + 2 * (number % 3))
        ]
        first = [_message("system", next(words))] if has_system and number % 2 else []
        found.append([*first, *turns])
    return found


def stop_texts(folder: Path) -> list[str]:
    """The tokens that end an answer, as text."""
    tokenizer = load_tokenizer(folder)
    ids = [*end_tokens(folder), tokenizer.eos_token_id]
    texts = [tokenizer.convert_ids_to_tokens(number) for number in ids if number is not None]
    return list(dict.fromkeys(str(text) for text in texts if text))


def write_modelfile(model: Path, file: Path) -> str:
    """Write a Modelfile beside a GGUF file.

    Args:
        model: folder of the model that the file was made from.
        file: the GGUF file.

    Returns:
        What is said of it.
    """
    tokenizer = load_tokenizer(model)
    frame = find_frame(tokenizer)
    lines = [f"FROM ./{file.name}"]
    if frame is not None:
        lines.append(f'TEMPLATE """{frame.as_go()}"""')
    lines += [f'PARAMETER stop "{text}"' for text in stop_texts(model)]
    (file.parent / MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if frame is not None:
        return f"{MODELFILE}: its template is the model's on {len(_conversations())} conversations"
    if tokenizer.chat_template:
        return f"{MODELFILE}: without a template; the model's does more than Go's can be told here"
    return f"{MODELFILE}: the model has no chat template"
