"""One way from a document to tokens, in training, in scoring and in plans.

A document begins with the token that its tokenizer puts before every text (BOS), where it puts one:
Gemma without it is another model. Else the separator between documents stands there. Whatever looks
like a special token in a document is text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def leading_token(tokenizer: Any) -> int | None:
    """The token that a tokenizer of transformers puts before every text, or None."""
    framed_ids = list(tokenizer("a")["input_ids"])
    plain_ids = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    return leading_of(framed_ids, plain_ids)


def leading_of(framed: Sequence[int], plain: Sequence[int]) -> int | None:
    """What stands in front of a text's own tokens; of several, the first.

    >>> leading_of([2, 7, 8, 1], [7, 8]), leading_of([7, 8, 1], [7, 8])
    (2, None)
    """
    if len(framed) <= len(plain) or list(framed[: len(plain)]) == list(plain):
        return None
    return int(framed[0])


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text alone; what looks like a special token is text."""
    token_ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [int(token) for token in token_ids]


def document_tokens(tokenizer: Any, texts: Sequence[str], separator: int) -> list[list[int]]:
    """Tokens of documents as models are scored on them; the first is context only.

    Args:
        tokenizer: of transformers.
        texts: of the documents.
        separator: token between documents, in front where the tokenizer puts no other there.
    """
    leading_id = leading_token(tokenizer)
    start_token = separator if leading_id is None else leading_id
    return [[start_token, *text_tokens(tokenizer, text)] for text in texts]
