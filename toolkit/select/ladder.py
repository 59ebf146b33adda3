"""The plain sweep as a ladder: tested from the safest plain mean upwards, up to the first failure.

The order is fixed before any document is scored, so every step is tested on all validation
documents at the full level, and no correction for the number of steps is due: a step that truly
loses too much can only be passed by mistake if the first such step is, which happens with at most
the chance of one test. (Any plain mean further up is not tested after a failure.)

Between the last step that passed and the first that failed the interval is halved a few times.
These steps are nested: what a plain mean loses rises with α, in truth and on the documents, so that
of all steps beyond the tolerance the nearest to it is passed whenever another is, and the chance
that any is passed stays that of one test. Simulated studies hold it at what is said
(`make bench-choice`).

Reference:
    Hsu & Berger 1999, Stepwise confidence intervals without multiplicity adjustment for
    dose-response and toxicity studies; Angelopoulos et al. 2021, Learn then Test (2110.01052),
    fixed-sequence testing; Berger 1982, Multiparameter hypothesis testing and acceptance sampling,
    for several sets at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from toolkit.select.results import LadderResult, SetTestResult


@dataclass(frozen=True)
class SetTest:
    """A general set's answer at one step.

    Attributes:
        name: of the set.
        loss: estimated on all validation documents, in the set's unit.
        bound: one-sided upper bound of it.
        tolerance: largest loss accepted.
        unit: of all three.
    """

    name: str
    loss: float
    bound: float
    tolerance: float
    unit: str

    @property
    def is_within(self) -> bool:
        return self.bound <= self.tolerance


@dataclass(frozen=True)
class LadderStep:
    """A plain mean that was tested.

    Attributes:
        alpha: the specialist's share.
        name: of the candidate.
        tests: of the general sets that were asked, up to the first that it fails.
    """

    alpha: float
    name: str
    tests: tuple[SetTest, ...]

    @property
    def is_within(self) -> bool:
        """Whether it is shown to stay within every tolerance."""
        return all(test.is_within for test in self.tests)


def climb(
    alphas: Sequence[float], test: Callable[[float], LadderStep], halvings: int
) -> list[LadderStep]:
    """Test plain means from the safest upwards, then between the last that passed and the first
    that failed.

    Args:
        alphas: of the sweep, in any order; the nearest to 0, the general model, is the safest.
        test: scores one on all validation documents.
        halvings: how often the last interval is halved.

    Returns:
        The steps in the order in which they were tested.

    >>> def test(alpha):
    ...     return LadderStep(alpha, "", (SetTest("news", alpha, alpha, 0.47, ""),))
    >>> [step.alpha for step in climb([0.8, 0.6, 0.4, 0.2], test, 2)]
    [0.2, 0.4, 0.6, 0.5, 0.45]
    """
    steps: list[LadderStep] = []
    last_passed = 0.0
    # The order is fixed by distance from the general model alone: one that followed the scores
    # would need a correction for all steps.
    for alpha in sorted(set(alphas), key=abs):
        steps.append(test(alpha))
        if not steps[-1].is_within:
            break
        last_passed = alpha
    else:
        # No step failed, so there is no interval to be halved.
        return steps
    # Where the first step failed, what is halved begins at the general model.
    failed_alpha = steps[-1].alpha
    for _ in range(halvings):
        steps.append(test(round((last_passed + failed_alpha) / 2.0, 6)))
        if steps[-1].is_within:
            last_passed = steps[-1].alpha
        else:
            failed_alpha = steps[-1].alpha
    return steps


def passed_steps(steps: Sequence[LadderStep]) -> list[LadderStep]:
    """Those within every tolerance, the farthest from the general model first."""
    return sorted((s for s in steps if s.is_within), key=lambda s: abs(s.alpha), reverse=True)


def ladder_results(
    steps: Sequence[LadderStep], changes: Mapping[str, float]
) -> tuple[LadderResult, ...]:
    """Steps as they stand in the results, by α.

    Args:
        steps: steps as they were tested.
        changes: domain change on all validation documents by name, of those looked at for their
            gain.
    """
    return tuple(
        LadderResult(
            alpha=step.alpha,
            name=step.name,
            is_within=step.is_within,
            domain_change=changes.get(step.name),
            tests=tuple(
                SetTestResult(**asdict(test), is_within=test.is_within) for test in step.tests
            ),
        )
        for step in sorted(steps, key=lambda step: step.alpha)
    )
