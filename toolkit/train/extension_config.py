"""What a recipe says about new tokens. No torch here."""

from __future__ import annotations

from toolkit.config import PositiveInt, Section


class TokenizerSection(Section):
    """New tokens for the words of the domain, before anything is tokenised.

    Worth it where domain words fall into many pieces and there is enough text to learn the new rows
    from (hundreds of occurrences each); the report says what is saved. General model and specialist
    then both have the new tokens, so that they can be merged; the general model, whose new rows are
    means of old ones, reads the domain somewhat worse than it did until it is trained.
    """

    new_tokens: PositiveInt
    """How many to add at most."""

    min_count: PositiveInt = 50
    """A token must save as many in the text that is looked at."""

    sample_characters: PositiveInt = 20_000_000
    """How much training text of each domain source is looked at, in characters: documents in the
    order of their hash, as the data stage takes them."""
