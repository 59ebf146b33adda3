"""Results of a made-up merge stage, as plain values to be changed and as types."""

from __future__ import annotations

import math
import random
from typing import Any

from toolkit.report.again import Again
from toolkit.report.measured_section import PromptAnswers
from toolkit.report.training_section import TrainingRow
from toolkit.select.results import MergeResults


def interval(estimate: float, half: float = 0.012) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half}


def candidate(order: int, name: str, share: float, **changes: Any) -> dict[str, Any]:
    """A candidate `share` of the way to the specialist, on a curved front."""
    domain = 0.95 - 0.15 * math.sin(share * math.pi / 2)
    general = 1.05 - 0.03 * math.sin(share * math.pi) + 0.03 * share**2
    words = name.split()
    return {
        "name": name,
        "method": words[0],
        "parameters": {key: float(value) for key, value in (w.split("=") for w in words[1:])},
        "values": {"filings": domain, "news": general},
        "domain": domain,
        "general": general,
        "general_loss_bound": general - 1.05 + 0.004,
        "loss_bounds": {},
        "distance": share,
        "qualified": general - 1.05 + 0.004 <= 0.01,
        "status": "complete",
        "tokens": 16000,
        "seconds": 9.5,
        "merge_seconds": 0.5,
        "order": order,
        **changes,
    }


def make_candidates() -> list[dict[str, Any]]:
    alphas = [round(0.1 * n, 1) for n in range(1, 10)]
    rows = [candidate(0, "general", 0.0), candidate(1, "specialist", 1.0)]
    rows += [candidate(2 + n, f"linear alpha={a:g}", a) for n, a in enumerate(alphas)]
    chance = random.Random(4)  # noqa: S311
    for number in range(12):
        share, density = round(chance.uniform(0.3, 1.1), 2), round(chance.uniform(0.2, 0.9), 2)
        row = candidate(11 + number, f"ties density={density} weight={share}", share * 0.9)
        row["general"] += 0.006 * (1 - density)
        if number % 3 == 2:
            row |= {"status": "dropped", "qualified": False, "tokens": 4000}
        rows.append(row)
    nothing = dict.fromkeys(("domain", "general", "general_loss_bound"))
    rows.append(candidate(23, "slerp t=0.5", 0.5, status="failed", qualified=False) | nothing)
    return rows


def set_row(name: str, role: str, unit: str, **changes: Any) -> dict[str, Any]:
    """What the results say of a set."""
    return {
        "name": name,
        "role": role,
        "unit": unit,
        "items_validation": 30,
        "items_test": 40,
        "groups_validation": 30,
        "groups_test": changes.get("items_test", 40),
        "one_group": False,
        "speaks_for": "",
        "tolerance": None,
        **changes,
    }


def make_results(**changes: Any) -> MergeResults:
    """The results as types."""
    return MergeResults.model_validate(make_values(**changes))


def make_values(**changes: Any) -> dict[str, Any]:
    """What `report.json` holds."""
    chance = random.Random(7)  # noqa: S311
    documents = []
    for name, role, start, gain in (
        ("filings", "domain", 0.95, 0.15),
        ("news", "general", 1.05, 0),
    ):
        for number in range(40):
            general = start + chance.gauss(0, 0.1)
            specialist = general - gain + chance.gauss(0, 0.05)
            merge = specialist + chance.gauss(-0.005, 0.02)
            documents.append(
                {"id": f"{name}-{number}", "set": name, "role": role, "general": general,
                 "specialist": specialist, "merge": merge}
            )  # fmt: skip

    def figures(domain: float, general: float) -> dict[str, Any]:
        return {
            "domain": interval(domain, 0.045),
            "general": interval(general, 0.05),
            "domain_change": interval(domain - 0.95, 0.02),
            "general_change": interval(general - 1.05, 0.009),
            "sets": {"filings": interval(domain, 0.045), "news": interval(general, 0.05)},
            "set_changes": {
                "filings": interval(domain - 0.95, 0.02),
                "news": interval(general - 1.05, 0.009),
            },
        }

    sweep = [
        {
            "alpha": alpha,
            "domain": interval(candidate(0, "x", alpha)["domain"], 0.02 * alpha),
            "general": interval(candidate(0, "x", alpha)["general"], 0.01 * alpha),
            "sets": {},
        }
        for alpha in [round(0.1 * n, 1) for n in range(11)]
    ]
    return {
        "recipe": "finance",
        "description": "SmolLM2-135M-Instruct on 10-K filings (Apple, Amazon; tested on Target)",
        "chosen": "linear alpha=0.7",
        "reason": "Of 24 candidates 15 stay within a general loss of 0.01 bits per byte.",
        "any_merge": True,
        "tolerance": 0.01,
        "confidence": 0.95,
        "sets": [
            set_row("filings", "domain", "bits per byte"),
            set_row("news", "general", "bits per byte", tolerance=0.01),
        ],
        "candidates": make_candidates(),
        "front": [f"linear alpha={a:g}" for a in (0.4, 0.5, 0.6, 0.7, 0.8)],
        "knee": "linear alpha=0.5",
        "sweep": sweep,
        "ladder": [],
        "beat_sweep": {
            "difference": 0.0003,
            "low": -0.0037,
            "high": 0.0043,
            "sentence": "Nothing beats the plain sweep: the best other candidate differs from the "
            "best α by +0.0003 (-0.0037 to +0.0043).",
        },
        "remarks": [],
        "search_tokens": 300_000,
        "full_tokens": 400_000,
        "models": {
            "general": figures(0.95, 1.05),
            "specialist": figures(0.80, 1.08),
            "merge": figures(0.81, 1.052),
        },
        "gain_kept": interval(0.93, 0.05),
        "loss_recovered": interval(0.9, 0.2),
        "sets_recovered": {"news": interval(0.9, 0.2)},
        "documents": documents,
        "test_scorings": 1,
        "validation": {"domain": 30, "general": 30},
        "test": {"domain": 40, "general": 40},
        "power": [],
        "precision": {"scoring": "fp32", "training": None},
        "achieved": [
            {"where": w, "model": "specialist", "asked": 0.5, "computed": 0.5, "stored": stored}
            for w, stored in (("all", 0.499), ("layer 0", 0.4), ("outside the layers", 0.499))
        ],
        **changes,
    }


def make_training() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(98):
        if step % 24 == 1 or step == 0:
            share = step / 97
            rows.append(
                {"step": step, "domain_bits_per_byte": 0.95 - 0.14 * share**0.5,
                 "general_bits_per_byte": 1.05 + 0.03 * share}
            )  # fmt: skip
        if step:
            rate = 2e-4 * min(1.0, step / 4) * (0.55 + 0.45 * math.cos(math.pi * step / 97))
            loss = 2.7 - 0.4 * step / 97 + 0.1 * math.sin(step)
            rows.append({"step": step, "loss": loss, "learning_rate": rate, "tokens": 1024})
    return rows


def training_rows(rows: list[dict[str, Any]] | None = None) -> list[TrainingRow]:
    return [TrainingRow.model_validate(row) for row in rows or make_training()]


ANSWERS = [
    PromptAnswers(
        prompt="What does an auditor do?",
        general="An auditor checks a company's books.",
        specialist="The auditor expresses an opinion on the consolidated statements.",
        merge="An auditor examines financial statements and gives an opinion on them.",
    ),
    PromptAnswers(prompt="Name colors.", general="Red,\nblue.", specialist="", merge="Red."),
]

AGAIN = Again(
    ("make cpt DOMAIN=finance", "make merge DOMAIN=finance"),
    "description: x\nseed: 1\n",
    {"torch": "2.13.0"},
    {"general model": "ab" * 32},
)

MERGE_YAML = "merge_method: linear\nmodels: []\n"
