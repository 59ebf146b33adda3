"""What a diagnosis found: table and page take it as it is, and the JSON is its dump."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from toolkit.diagnose.figures import Diagnosis, DiagnosisFigures, Pair
from toolkit.select.results import AchievedRow

NOTHING = (
    "Nothing is off: no NaN, no empty rows, no layer far ahead of the others, and the merge lies "
    "between its parents."
)


@dataclass(frozen=True)
class Loss:
    """How well one model predicts the text.

    Attributes:
        label: short name of the model.
        bits_per_byte: comparable between tokenizers; None where it could not be scored.
        bits_per_token: the same per token of its own tokenizer.
        vocabulary: number of tokens that its head chooses among.
        problem: reason that it could not be scored.
    """

    label: str
    bits_per_byte: float | None = None
    bits_per_token: float | None = None
    vocabulary: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class Remark:
    """A sentence or two about something that is off.

    Attributes:
        kind: what it is about, for programs.
        text: sentences for people, with the values.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class DiagnosisResults:
    """Figures of a merge, and what is off in them.

    Attributes:
        diagnosis: the figures.
        losses: losses of the merge and then of its parents, where they were scored.
        remarks: what is off.
        notes: what a reader of the figures should know.
        achieved: what the merge asks of each parent's change, and what is stored of it.
    """

    diagnosis: Diagnosis
    losses: tuple[Loss, ...]
    remarks: tuple[Remark, ...]
    notes: tuple[str, ...]
    achieved: tuple[AchievedRow, ...] = ()

    @property
    def merge(self) -> str:
        return self.diagnosis.subjects.labels[0]

    @property
    def parents(self) -> list[str]:
        subjects = self.diagnosis.subjects
        return [subjects.labels[index] for index in subjects.parents]

    @property
    def base(self) -> str:
        return self.diagnosis.subjects.labels[self.diagnosis.subjects.base]

    @property
    def summary(self) -> list[str]:
        """The remarks as sentences, or one that says that there are none."""
        return [remark.text for remark in self.remarks] or [NOTHING]

    def as_json(self) -> dict[str, object]:
        """The values of the diagnosis's JSON."""
        diagnosis, measured = self.diagnosis, self.diagnosis.measured
        return {
            "merge": self.merge,
            "parents": self.parents,
            "base": self.base,
            "models": dict(zip(diagnosis.subjects.labels, diagnosis.subjects.names, strict=True)),
            "remarks": [asdict(remark) for remark in self.remarks],
            "summary": self.summary,
            "notes": self.notes,
            "achieved": [row.model_dump(mode="json") for row in self.achieved],
            "losses": [asdict(loss) for loss in self.losses],
            "whole": _figures_json(diagnosis.whole),
            "kinds": [_figures_json(figures) for figures in diagnosis.kinds],
            "layers": [_figures_json(figures) for figures in diagnosis.layers],
            "parts": [
                {"layer": layer, "kind": kind, **_figures_json(figures)}
                for (layer, kind), figures in diagnosis.parts.items()
            ],
            "left_out": measured.left_out,
            "non_finite": measured.non_finite,
            "zero_rows": measured.zero_rows,
            "padding_rows": measured.padding_rows,
        }


def pair_words(pair: Pair) -> str:
    return " · ".join(pair)


def _figures_json(figures: DiagnosisFigures) -> dict[str, object]:
    def by_words(values: Mapping[Pair, float | None]) -> dict[str, float | None]:
        return {pair_words(pair): value for pair, value in values.items()}

    return {
        # Pairs are tuples, and JSON has only strings for keys.
        **vars(figures),
        "cosines": by_words(figures.cosines),
        "agreement": by_words(figures.agreement),
        "trimmed": {label: shares._asdict() for label, shares in figures.trimmed.items()},
    }
