"""What a recipe says about new tokens and the chat template. No torch here."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator
from typing_extensions import Self

from toolkit.config import PositiveInt, Section


class TokenizerSection(Section):
    """New tokens for the words of the domain, before anything is tokenised.

    Worth it where domain words fall into many pieces and there is enough text to learn the new rows
    from (hundreds of occurrences each); the report says what is saved. General model and specialist
    then both have the new tokens, so that they can be merged; the general model, whose new rows are
    means of old ones, reads the domain somewhat worse than it did until it is trained.
    """

    new_tokens: PositiveInt | None = None
    """How many byte-pair merges to add at most."""

    special: tuple[str, ...] = ()
    """Tokens to add by name, such as those of fill-in-the-middle that `data.fim.tokens` uses. They
    never come out of text, and begin as the mean of the pieces of their names."""

    chat_template: str | None = None
    """How conversations are written (Jinja, as transformers has it), in place of the tokenizer's
    own: for a pre-trained model that has none and is to be fine-tuned on conversations."""

    min_count: PositiveInt = 50
    """A token must save as many in the text that is looked at."""

    sample_characters: PositiveInt = 20_000_000
    """How much training text of each domain source is looked at, in characters: documents in the
    order of their hash, as the data stage takes them."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.new_tokens is None and not self.special and self.chat_template is None:
            raise ValueError("give new_tokens, special, chat_template, or several of them")
        if self.chat_template is not None and "{" not in self.chat_template:
            raise ValueError(
                f"chat_template: must be a template in Jinja (got {self.chat_template!r})"
            )
        if len(set(self.special)) < len(self.special):
            raise ValueError("special: a token stands twice")
        return self


def identity_of_tokenizer(section: TokenizerSection) -> dict[str, Any]:
    """The settings that the extended model depends on."""
    values = section.model_dump(mode="json")
    if not section.special:
        del values["special"]
    if section.chat_template is None:
        del values["chat_template"]
    return values
