"""A loaded model that can be asked: its tokenizer, its template, and where it stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.bounded import bounded_template
from toolkit.checkpoint.load import load_causal_model, merge_adapter, scoring_dtype
from toolkit.checkpoint.models import Models
from toolkit.checkpoint.probe_documents import most_positions
from toolkit.checkpoint.references import find_folder, parse_reference
from toolkit.errors import CheckpointError
from toolkit.library_errors import reading
from toolkit.tokenizer_files import load_tokenizer

Message = Mapping[str, str]
"""`role` and `content`."""


@dataclass(frozen=True)
class Speaker:
    """A model with its tokenizer.

    Attributes:
        label: name for people.
        model: causal language model in the type it is stored in, in evaluation mode.
        tokenizer: the model's own.
        stops: tokens after which an answer is over.
        template: chat template; None continues plain text.
    """

    label: str
    model: Any
    tokenizer: Any
    stops: frozenset[int]
    template: str | None

    @property
    def most_tokens(self) -> int:
        """How many tokens the model can look at together."""
        return most_positions(self.model.config) or 1 << 20

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a chat that the model is to answer; without a template, of the last text."""
        if self.template is None:
            return list(self.tokenizer(messages[-1]["content"])["input_ids"])
        # The template has written the special tokens that belong there.
        return list(self.tokenizer(self.render(messages), add_special_tokens=False)["input_ids"])

    def render(self, messages: Sequence[Message], *, opens_answer: bool = True) -> str:
        """A chat as the template writes it, in bounded time.

        Args:
            messages: what was said.
            opens_answer: whether the model's turn is begun behind it.

        Raises:
            CheckpointError: the template cannot be used.
        """
        problem, advice = "its chat template cannot be used", "mend it, or ask with --plain"
        readable = reading(self.label, CheckpointError, problem, advice)
        with readable, bounded_template(self.label):
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=self.template,
                    add_generation_prompt=opens_answer,
                    tokenize=False,
                )
            )

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def load_speaker(
    reference: str | Path, *, label: str = "", template: str | None = None, plain: bool = False
) -> Speaker:
    """Load a model to be asked.

    Args:
        reference: a folder, or `path[@revision][+adapter]`.
        label: name for people; the folder's by default.
        template: chat template where the model brings none.
        plain: continue the text, whatever template there is.

    Raises:
        CheckpointError: there is no causal language model, or no tokenizer.
        MergeError: the reference leads nowhere.
    """
    parsed = parse_reference(str(reference))
    model_folder = token_folder = find_folder(parsed.model)
    model = load_causal_model(model_folder, scoring_dtype(model_folder))
    if parsed.adapter is not None:
        model = merge_adapter(model, find_folder(parsed.adapter))
        token_folder = Models().token_folder(str(reference))
    tokenizer = load_tokenizer(token_folder)
    model.eval()
    chat_template = getattr(tokenizer, "chat_template", None)
    return Speaker(
        label=label or Path(str(reference)).name or str(reference),
        model=model,
        tokenizer=tokenizer,
        stops=stops_of(model, tokenizer),
        template=None if plain else chat_template or template,
    )


def stops_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ends that the model's own settings and its tokenizer name."""
    # Chat models often end at another token than the tokenizer's, which only the settings name.
    settings = [
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ]
    stop_tokens = []
    for setting in settings:
        for token_id in setting if isinstance(setting, list) else [setting]:
            if token_id is None:
                continue
            if isinstance(token_id, bool) or not isinstance(token_id, int):
                raise CheckpointError(
                    f"{model.config.name_or_path}: eos_token_id must be a token's number, or a "
                    f"list of them (got {token_id!r:.60}); mend config.json or "
                    "generation_config.json."
                )
            stop_tokens.append(token_id)
    return frozenset(stop_tokens)
