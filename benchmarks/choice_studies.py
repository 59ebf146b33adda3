"""Simulated studies through the real search, race, decision and test figures.

Worlds (`tests/helpers/worlds.py`) say what every merge truly gains and loses, and how documents
scatter; a study draws documents, and the toolkit's own code searches and chooses on them. So it is
known of every choice whether it was right. Shares are of studies, with Wilson's 95 % interval.

    python benchmarks/choice_studies.py --studies 200 --out studies.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.helpers.worlds import WORLDS, StudyFigures, run_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--worlds", help="names with | between them; all by default")
    parser.add_argument("--first", type=int, default=0, help="number of the first study")
    parser.add_argument("--out", type=Path, help="a line of JSON for each study; known are kept")
    given = parser.parse_args()
    names = given.worlds.split("|") if given.worlds else list(WORLDS)
    known = _known(given.out)
    print(HEADER, flush=True)
    for name in names:
        began, studies = time.process_time(), []
        for number in range(given.first, given.first + given.studies):
            if (name, number) not in known:
                known[name, number] = run_study(WORLDS[name], number)
                _append(given.out, name, number, known[name, number])
            studies.append(known[name, number])
        print(f"{row(name, studies)} {time.process_time() - began:.0f} |", flush=True)


HEADER = (
    "| world | general kept, a fit merge tried | mean true gain, of the best plain α | beyond "
    "tolerance | beats the sweep | gain claimed where none | 10 % worse than the best plain α | "
    "test interval covers the change, kept, recovered | tokens of the search, of all | s |\n"
    + "|---" * 10
    + "|"
)


def row(name: str, studies: Sequence[StudyFigures]) -> str:
    """One world's line of the table."""
    chances = [s for s in studies if s.fit_tried]
    merges = [s for s in studies if s.is_merge]
    able = [s for s in studies if s.best_plain > 0.0]
    gain = "" if not able else f"{np.mean([s.gain / s.best_plain for s in able]):.0%}"
    cells = [
        name,
        share([not s.is_merge for s in chances]),
        gain,
        share([s.is_merge and not s.is_within for s in studies]),
        share([s.beats for s in studies]),
        share([s.is_merge and s.gain <= 0.0 for s in studies]),
        share([s.gain < 0.9 * s.best_plain for s in able]),
        "; ".join(
            share([bool(held) for held in column if held is not None])
            for column in (
                [s.covered for s in merges],
                [s.kept_covered for s in merges],
                [s.recovered_covered for s in merges],
            )
        ),
        f"{np.mean([s.search_share for s in studies]):.0%}, "
        f"{np.mean([s.token_share for s in studies]):.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def share(hits: Sequence[bool]) -> str:
    """A share in percent with Wilson's interval.

    >>> share([True] + [False] * 99)
    '1.0 (0.2 to 5.4)'
    """
    count = len(hits)
    if not count:
        return ""
    part, z = sum(hits) / count, 1.959964
    middle = (part + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * math.sqrt(part * (1 - part) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    low, high = max(middle - reach, 0.0), min(middle + reach, 1.0)
    return f"{100 * part:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _known(path: Path | None) -> dict[tuple[str, int], StudyFigures]:
    found = {}
    for line in path.read_text().splitlines() if path is not None and path.is_file() else ():
        values = json.loads(line)
        key = (
            values.pop("world"),
            values.pop("number"),
        )  # before the rest is read: assignment is last
        found[key] = StudyFigures(**values)
    return found


def _append(path: Path | None, world: str, number: int, study: StudyFigures) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps({"world": world, "number": number, **asdict(study)}) + "\n")


if __name__ == "__main__":
    main()
