"""Wrong options: of the same kind, not right by chance, and none easier than another."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.helpers.facts import facts_of
from toolkit.knowledge.options import choose_rivals, find_rivals, is_other, write_prompt

FACT = facts_of("The mill and its land were sold for $201 million to its own staff.")[0]


def test_a_wrong_option_is_wrong_and_of_the_same_size():
    assert is_other("$340 million", FACT)
    assert not is_other("$201 million", FACT)
    assert not is_other("$45,284 million", FACT)  # nobody would choose it
    two = replace(FACT, sentence="It was $201 million and $340 million.")
    assert not is_other("$340 million", two)
    name = replace(FACT, kind="name", answer="Kessler Pumps")
    assert is_other("Apex", name)
    assert not is_other("Kessler", name)


def test_rivals_of_the_very_form_come_first():
    pools = {
        "amount $### million": ["$201 million", "$340 million"],
        "amount $# million": ["$201 million", "$340 million", "$52 million", "$4,000 million"],
    }
    assert find_rivals(FACT, pools, 0)[0] == "$340 million"
    assert set(find_rivals(FACT, pools, 0)) == {"$340 million", "$52 million"}


@pytest.mark.parametrize("lead", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("error", [0.5, 1.0, 2.0])
def test_a_model_that_knows_no_more_is_right_by_chance(lead: float, error: float):
    """Whether it is the one that the options were chosen by, or another with errors of its own."""
    chance = random.Random(0)  # noqa: S311  (no secrets)
    num_right, num_asked = {"same": 0, "other": 0}, 0
    while num_asked < 4000:
        scores = [lead + chance.gauss(0.0, 2.0), *(chance.gauss(0.0, 2.0) for _ in range(8))]
        if max(scores) == scores[0]:
            continue  # known
        num_asked += 1
        places = choose_rivals(scores[0], scores[1:], 3, chance.random())
        shown = [scores[0], *(scores[1 + place] for place in places)]
        other = [score + chance.gauss(0.0, error) for score in shown]
        num_right["same"] += max(shown) == shown[0]
        num_right["other"] += max(other) == other[0]
    assert 0.19 < num_right["same"] / 4000 < 0.31
    assert abs(num_right["same"] - num_right["other"]) < 0.025 * 4000


def test_a_prompt_says_whom_it_is_about_and_ends_before_the_blank():
    prompt = write_prompt(replace(FACT, heading="2. Disposals"), "Apex Corp.")
    assert prompt.startswith("Apex Corp., 2. Disposals\nFill in the blank: The mill and its land")
    assert prompt.endswith("\nAnswer: The mill and its land were sold for")
    assert "$201 million" not in prompt
