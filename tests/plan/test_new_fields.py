"""Fields of rows: which hold the text, the name and the group of a document."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.errors import DataError
from toolkit.plan.new_fields import choose_fields

LONG = "the board reported that lease costs rose in the second quarter"


def rows(**fields: Any) -> list[dict[str, Any]]:
    """Six rows; a list gives each its own value."""
    return [
        {name: value[n] if isinstance(value, list) else value for name, value in fields.items()}
        for n in range(6)
    ]


@pytest.mark.parametrize(
    ("found", "settings"),
    [
        (rows(text=LONG), {}),
        (rows(body=LONG), {"text_field": "body"}),
        (rows(label="good", Bericht=LONG), {"text_field": "Bericht"}),
        (rows(title="Leases", body=LONG), {"template": "{title}\n\n{body}"}),
        (rows(title="the board", text=LONG), {}),  # the text begins with it
        (rows(question="what?", answer="so"), {"template": "{question}\n\n{answer}"}),
        (rows(text=LONG, id=list("abcdef")), {"id_field": "id"}),
        (rows(text=LONG, id=list("aabbcc")), {}),  # names nothing
        (rows(text=LONG, patient_id=list("aabbcc")), {"group_field": "patient_id"}),
        (rows(text=LONG, ticker=list("abcdef")), {}),  # divides nothing
        (rows(text=LONG, client=["a", None, None, None, None, "a"]), {}),  # most have none
        (
            rows(messages=[[{"role": "user", "content": "a"}]] * 6, text=LONG),
            {"messages_field": "messages"},
        ),
        (rows(text=LONG, messages=[["not", "a", "conversation"]] * 6), {}),
    ],
)
def test_what_is_found(found: list[dict[str, Any]], settings: dict[str, str]):
    fields = choose_fields(found, "x.jsonl")
    assert fields.settings == settings
    assert set(fields.reasons) == set(settings)


def test_rows_without_text_name_their_fields():
    with pytest.raises(DataError, match=r"x\.csv: no field of its rows holds text\. Fields: a, b;"):
        choose_fields(rows(a=1, b="yes"), "x.csv")
