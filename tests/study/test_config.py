"""The `study` section: what a measure may say, and which models it names."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from toolkit.study.config import (
    ClaimSection,
    MeasureSection,
    StudySection,
    split_model,
    unknown_models,
    unknown_sets,
)


def claim(**measure: Any) -> dict[str, Any]:
    values = {"of": "weak", "against": "none", **measure}
    return {
        "claim": "a claim as it was published",
        "source": "2403.08763",
        "mark": "S",
        "measure": values,
    }


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        ({"expect": "equal"}, "within belongs to expect: equal"),
        ({"within": 0.1}, "within belongs to expect: equal"),
        ({"expect": "equal", "within": 0.1, "than": 0.2}, "equal says within"),
        ({"unit": "fraction"}, "fraction_of belongs to unit: fraction"),
        ({"fraction_of": "general"}, "fraction_of belongs to unit: fraction"),
        ({"unit": "relative", "of": ["a", "b"]}, "compares models, not changes"),
        ({"of": "weak/tune"}, "'weak/tune' names no model"),
        ({"against": "-x"}, "'-x' names no model"),
    ],
)
def test_measures_that_say_nothing(measure: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        MeasureSection.model_validate({"of": "weak", "against": "none", **measure})


@pytest.mark.parametrize("source", ["arXiv:2403.08763", "2403", "a blog", "openreview:"])
def test_sources_can_be_looked_up(source: str):
    with pytest.raises(ValidationError):
        ClaimSection.model_validate({**claim(), "source": source})


@pytest.mark.parametrize(("source", "mark"), [("2403.08763", None), ("our choice", "V")])
def test_only_our_own_claims_have_no_mark(source: str, mark: str | None):
    with pytest.raises(ValidationError, match="must be given of what was published"):
        ClaimSection.model_validate({**claim(), "source": source, "mark": mark})


def test_addresses():
    marks = {"our choice": None}
    found = {
        source: ClaimSection.model_validate(
            {**claim(), "source": source, "mark": marks.get(source, "S")}
        ).address
        for source in ("2403.08763", "openreview:B5lomRnzlA", "our choice")
    }
    assert found == {
        "2403.08763": "https://arxiv.org/abs/2403.08763",
        "openreview:B5lomRnzlA": "https://openreview.net/forum?id=B5lomRnzlA",
        "our choice": "",
    }


def test_models_of_a_measure():
    measure = MeasureSection(of=("early", "late/sft"), against=("general", "cpt"))
    assert list(measure.models()) == ["general", "cpt", "early", "late/sft"]
    assert [split_model(name) for name in measure.models()] == [
        (None, "general"),
        (None, "cpt"),
        ("early", "cpt"),
        ("late", "sft"),
    ]


def test_variants_that_a_recipe_lacks_are_named():
    study = StudySection.model_validate({"claims": [claim(), claim(of="waek", against="general")]})
    (fault,) = unknown_models(study, ["weak", "none"])
    assert str(fault).startswith("study.claims.1.measure: there is no variant 'waek'")
    assert "did you mean weak" in fault.what
    assert unknown_models(None, []) == []


@pytest.mark.parametrize(
    ("test_set", "sources", "is_refused"),
    [
        ("general", {"docs": "domain", "general": "general"}, False),
        ("general", {"docs": "domain", "general": "general", "web": "general"}, True),
        ("domain", {"domain": "general", "docs": "domain"}, True),
        ("retention", {"retention": "general", "docs": "domain"}, True),
        ("docs", {"domain": "general", "docs": "domain"}, False),
    ],
)
def test_a_source_that_is_called_as_a_role(
    test_set: str, sources: dict[str, str], is_refused: bool
):
    study = StudySection.model_validate({"claims": [claim(test_set=test_set)]})
    faults = [str(fault) for fault in unknown_sets(study, sources)]
    assert bool(faults) == is_refused
    assert not is_refused or "so it names two things" in faults[0]
