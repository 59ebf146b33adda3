"""What a file of ways says: variants of one recipe that are to be compared. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from toolkit.errors import did_you_mean
from toolkit.section import Section

MergeKind = Literal["none", "plain", "search", "heal"]
"""What is taken of a specialist: itself, the best plain mean, what the recipe's search finds, or
what its healing makes."""

MERGE_KINDS: tuple[MergeKind, ...] = get_args(MergeKind)

WayName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Alpha = Annotated[float, Field(gt=0.0, lt=1.0)]


class WaySection(Section):
    """One way: what it changes in the recipe, and which merges of its specialist are compared."""

    recipe: dict[str, Any] = Field(default_factory=dict)
    """Keys of the recipe with other values, laid over it: `data`, `train`, `models`, `search`,
    `select` and `heal`. All else is the same for all ways, so that they are compared on one general
    model and the same test sets. Empty is the recipe as it stands."""

    merges: tuple[MergeKind, ...] | None = None
    """`none`: the specialist itself. `plain`: the best plain mean with the general model, by the
    ladder on the validation sets. `search`: what the recipe's search chooses on them. `heal`: what
    the recipe's section `heal` makes of it. By default those of the file."""

    note: str = ""
    """One line for people: where the way is from, what it is to show."""


class WaysSection(Section):
    """A file of ways, `recipes/ways/NAME.yaml`: `toolkit compare NAME`."""

    description: str = ""
    """One line for people."""

    reference: str
    """The way whose specialist is 100 % of the gain, and whose plain means are the line that every
    other way is held against."""

    merges: tuple[MergeKind, ...] = ("none", "plain", "search")
    """Which merges of each way are compared; see `ways.NAME.merges`."""

    alphas: tuple[Alpha, ...] = (0.2, 0.4, 0.6, 0.8)
    """Fractions of the reference way's specialist in the plain means that the line is drawn
    through; the general model and the specialist are its ends."""

    evaluate: dict[str, Any] = Field(default_factory=dict)
    """Keys of the recipe's `evaluate` section with other values, for the comparison's test sets
    alone: further measures of what is kept, such as `multiple_choice` or `behavior`. Merges are
    chosen by the recipe's own."""

    ways: dict[WayName, WaySection]
    """The ways, by name."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.ways:
            raise ValueError("ways: there are none; name the reference and one way beside it")
        if self.reference not in self.ways:
            hint = did_you_mean(self.reference, self.ways)
            raise ValueError(
                f"reference: there is no way {self.reference!r}{hint} ({', '.join(self.ways)})"
            )
        # The line is drawn from point to point in this order, and a point twice has no slope.
        if list(self.alphas) != sorted(set(self.alphas)):
            raise ValueError(f"alphas: must rise (got {list(self.alphas)})")
        return self

    def merges_of(self, way: str) -> tuple[MergeKind, ...]:
        """Which merges of a way are compared, each once, in the order of `MERGE_KINDS`."""
        asked = self.ways[way].merges
        # In one order whatever the file says, so that tables of two files read alike.
        return tuple(
            kind for kind in MERGE_KINDS if kind in (self.merges if asked is None else asked)
        )
