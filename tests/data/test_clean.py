"""Cleaning counts what it leaves out; personal data is replaced where it has a form."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from toolkit.data.clean import clean_documents, clean_text
from toolkit.data.config import CleaningSection
from toolkit.data.pii import scrub
from toolkit.data.sources import Document


def clean(texts: list[str], **settings: Any) -> tuple[list[str], Counter[str]]:
    counts: Counter[str] = Counter()
    documents = [Document(f"s/{n}", "s", "g", text) for n, text in enumerate(texts)]
    section = CleaningSection.model_validate({"min_words": 2, **settings})
    kept, _, offsets = clean_documents(documents, section, counts)
    assert len(offsets) == len(kept) + 1
    return [d.text for d in kept], counts


def test_lengths_are_counted():
    kept, counts = clean(["one two three", "short", "a b c d e f"], max_words=5)
    assert kept == ["one two three"]
    assert (counts["read"], counts["short"], counts["long"]) == (3, 1, 1)
    assert counts["short, bytes"] == 5


def test_what_repeats_itself_is_left_out():
    lines = "\n".join(["buy now", *[f"line {n} differs from the others" for n in range(3)]])
    spam = "\n".join(["buy now and save money"] * 9 + ["the end"])
    loop = "one two three four five six seven eight nine ten eleven " * 20
    kept, counts = clean([lines, spam, loop])
    assert kept == [lines]
    assert counts["repetitive"] == 2
    assert len(clean([spam, loop], max_repeated_line_fraction=1, max_repeated_ngram_fraction=1)[0])


def test_indentation_stays_and_half_characters_go():
    assert clean_text("def f():\n\treturn  1") == "def f():\n\treturn 1"
    assert clean_text("x = 'a  b'   # c  \n", collapse_spaces=False) == "x = 'a  b'   # c"
    assert clean_text("bad \ud800 half") == "bad \ufffd half"
    assert clean_text("e\u0301") == "\u00e9"


@pytest.mark.parametrize(
    ("kind", "text", "scrubbed"),
    [
        ("email", "to a.b+c@mail.example.org.", "to <EMAIL>."),
        ("phone", "call +49 30 1234567 now", "call <PHONE> now"),
        ("iban", "pay DE89 3704 0044 0532 0130 00 today", "pay <IBAN> today"),
        ("iban", "pay DE88 3704 0044 0532 0130 00 today", None),  # check digits are wrong
        ("us_ssn", "SSN 123-45-6789", "SSN <US_SSN>"),
        ("us_ssn", "range 900-12-3456", None),
        ("credit_card", "card 4111 1111 1111 1111.", "card <CREDIT_CARD>."),
        ("credit_card", "sum 4111 1111 1111 1112.", None),
        ("ip_address", "from 10.0.0.7 or 2001:db8::1", "from <IP_ADDRESS> or <IP_ADDRESS>"),
        ("credit_card", "4111 1111 1111 1111 12/27", "<CREDIT_CARD> 12/27"),
        (
            "credit_card",
            "4111111111111111 123, 2 4111-1111-1111-1111",
            "<CREDIT_CARD> 123, 2 <CREDIT_CARD>",
        ),
        ("credit_card", "on 12 3782 822463 10005 0927", "on 12 <CREDIT_CARD> 0927"),
        ("credit_card", "rows 41111111111111112 and 4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 2", None),
        ("iban", "BE68539007547034 EUR", "<IBAN> EUR"),
        ("iban", "XY99 BE68 5390 0754 7034 PAID NOW", "XY99 <IBAN> PAID NOW"),
        ("ip_address", "2001:db8::1: no route", "<IP_ADDRESS>: no route"),
        ("ip_address", "version 1.2.3.400, at 12:30", None),
        ("phone", "revenue of 1,234 567 in 2024-2025", None),
    ],
)
def test_personal_data(kind: str, text: str, scrubbed: str | None):
    counts: Counter[str] = Counter()
    assert scrub(text, [kind], counts) == (scrubbed or text)
    assert bool(counts) == (scrubbed is not None)


def test_conversations_are_scrubbed_text_by_text():
    messages = [
        {"role": "user", "content": 'Mail jo@example.org or\n(555) 123-4567 of "us", please.'},
        {"role": "assistant", "content": "4111111111111111", "thinking": "is jo@example.org"},
    ]
    text = "\n".join(message["content"] for message in messages)
    document = Document("s/1", "s", "g", text, json.dumps(messages))
    counts: Counter[str] = Counter()
    section = CleaningSection.model_validate(
        {"min_words": 2, "pii": ["email", "phone", "credit_card"]}
    )
    (cleaned,), _, _ = clean_documents([document], section, counts)
    assert json.loads(cleaned.messages or "") == [
        {"role": "user", "content": 'Mail <EMAIL> or\n<PHONE> of "us", please.'},
        {"role": "assistant", "content": "<CREDIT_CARD>", "thinking": "is <EMAIL>"},
    ]
    assert cleaned.text == 'Mail <EMAIL> or\n<PHONE> of "us", please.\n<CREDIT_CARD>'
    assert counts["pii: email"] == 2


def test_page_and_line_breaks_part_words():
    assert clean_text("one\x0ctwo\x0bthree\x1ffour\x00!") == "one\ntwo\nthree\nfour!"


def test_scrubbing_is_opt_in_and_counted():
    text = "Mail jo@example.org about the quarterly report"
    assert clean([text])[0] == [text]
    kept, counts = clean([text], pii=["email"])
    assert kept == ["Mail <EMAIL> about the quarterly report"]
    assert counts["pii: email"] == 1
