"""What a recipe says about new tokens. No torch here."""

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

    min_count: PositiveInt = 50
    """A token must save as many in the text that is looked at."""

    sample_characters: PositiveInt = 20_000_000
    """How much training text of each domain source is looked at, in characters: documents in the
    order of their hash, as the data stage takes them."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.new_tokens is None and not self.special:
            raise ValueError("give new_tokens, special, or both")
        if len(set(self.special)) < len(self.special):
            raise ValueError("special: a token stands twice")
        return self


def identity_of_tokenizer(section: TokenizerSection) -> dict[str, Any]:
    """The settings that the extended model depends on."""
    values = section.model_dump(mode="json")
    if not section.special:
        del values["special"]
    return values
