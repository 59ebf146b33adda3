"""What the sets of a recipe will be able to see, as far as it is known before anything is trained.

How a merge scatters from document to document is not known yet; a scatter is assumed, and
`toolkit power` measures it once there is a model. How many documents a set will have is counted, or
estimated from the part of the source that was read.
"""

from __future__ import annotations

from collections.abc import Mapping

from toolkit.data.config import DataSection
from toolkit.evaluate.config import EvaluateSection
from toolkit.pipeline.set_power import ASSUMED_SCATTER, expect_prompts
from toolkit.plan.evidence import Looked
from toolkit.statistics.paired import expected_change
from toolkit.statistics.power import SetPower, power_of


def plan_power(
    data: DataSection,
    evaluate: EvaluateSection,
    looked: Looked,
    *,
    tolerance: float,
    tolerances: Mapping[str, float],
    confidence: float,
) -> tuple[list[SetPower], list[str]]:
    """The smallest change that each validation set can see and the groups that its tolerance takes.

    Args:
        data, evaluate: sections of the recipe.
        looked: what was seen of the sources.
        tolerance: loss accepted on general sets that bring none along.
        tolerances: of single sets by name.
        confidence: of the one-sided bound.

    Returns:
        Sets whose size is known, and a sentence for each whose size is not.
    """
    found: list[SetPower] = []
    unknown: list[str] = []
    for name, sample in looked.samples.items():
        limit = tolerances.get(name, tolerance) if sample.role == "general" else None
        sizes = _validation_sizes(name, data, looked)
        if sizes is None:
            unknown.append(f"{name}: how many validation documents it has cannot be told yet")
            continue
        items, groups = sizes
        change = expected_change(ASSUMED_SCATTER, groups)
        found.append(power_of(name, sample.role, "bits per byte", items, limit, change, confidence))
    prompted, more = expect_prompts(evaluate, tolerance, tolerances, confidence)
    return found + prompted, unknown + more


def plan_claims(looked: Looked) -> list[str]:
    """What sets will not be able to speak for: those whose documents are all of one group."""
    lines = []
    for name, sample in looked.samples.items():
        counts = sample.split_documents
        alone = {
            split: next(iter(groups))
            for split, groups in (
                ("validation", sample.validation_groups),
                ("test", sample.test_groups),
            )
            if sample.whole and len(groups) == 1 and counts[split] > 1
        }
        if alone:
            groups = " and ".join(dict.fromkeys(alone.values()))
            lines.append(
                f"{name}: the {' and '.join(alone)} documents come from one group ({groups}): "
                "intervals will hold for more documents of it; how another group would score will "
                "not be known"
            )
    return lines


def _validation_sizes(name: str, data: DataSection, looked: Looked) -> tuple[int, int] | None:
    """Validation items of a source, and the groups that stand alone; None where nothing tells."""
    sample, rule = looked.samples[name], data.sources[name].split.get("validation")
    documents, groups = sample.split_documents["validation"], len(sample.validation_groups)
    if sample.why or rule is None or not documents or sample.seen_fraction is None:
        return None
    tokens = sample.split_bytes["validation"] * looked.tokens_per_byte[sample.role]
    items, whole = float(documents), 1.0 / sample.seen_fraction
    if data.evaluation_document_tokens is not None:
        items = max(items, tokens / data.evaluation_document_tokens)
    taken = min(whole, rule.max_tokens / tokens) if rule.max_tokens is not None else whole
    items = max(items * taken, 1.0)
    # Of one group the items themselves are drawn; of several, the groups.
    alone = items if groups < 2 else min(items, groups * taken)
    return max(round(items), 1), max(round(alone), 1)
