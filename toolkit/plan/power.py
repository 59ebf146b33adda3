"""What the sets of a recipe will be able to see, as far as it is known before anything is trained.

How a merge scatters from document to document is not known yet; a scatter is assumed, and
`toolkit power` measures it once there is a model. How many documents a set will have is counted, or
estimated from the part of the source that was read.
"""

from __future__ import annotations

from toolkit.data.config import DataSection
from toolkit.evaluate.config import EvaluateSection
from toolkit.pipeline.set_power import ASSUMED_SCATTER, expect_prompts
from toolkit.plan.evidence import Looked
from toolkit.select.config import SelectSection
from toolkit.statistics.paired import expected_change
from toolkit.statistics.power import SetPower, power_of


def plan_power(
    data: DataSection, evaluate: EvaluateSection, select: SelectSection, looked: Looked
) -> tuple[list[SetPower], list[str]]:
    """The smallest change that each validation set can see and the groups that its tolerance takes.

    Returns:
        Sets whose size is known, and a sentence for each whose size is not.
    """
    tolerances, confidence = select.tolerances, select.confidence
    powers: list[SetPower] = []
    unseen_sets: list[str] = []
    for name, sample in looked.samples.items():
        set_sizes = _validation_sizes(name, data, looked)
        if set_sizes is None:
            unseen_sets.append(f"{name}: how many validation documents it has cannot be told yet")
            continue
        num_items, num_groups = set_sizes
        is_general = sample.role == "general"
        tolerance = tolerances.get(name, select.general_tolerance) if is_general else None
        expected = expected_change(ASSUMED_SCATTER, num_groups)
        powers.append(
            power_of(name, sample.role, "bits per byte", num_items, tolerance, expected, confidence)
        )
    prompted_powers, more_unseen = expect_prompts(
        evaluate, select.general_tolerance, tolerances, confidence
    )
    return powers + prompted_powers, unseen_sets + more_unseen


def plan_claims(looked: Looked) -> list[str]:
    """What sets will not be able to speak for: those whose documents are all of one group."""
    claim_lines = []
    for name, sample in looked.samples.items():
        document_counts = sample.split_documents
        groups_by_split = {
            split: next(iter(group_names))
            for split, group_names in (
                ("validation", sample.validation_groups),
                ("test", sample.test_groups),
            )
            if sample.whole and len(group_names) == 1 and document_counts[split] > 1
        }
        if groups_by_split:
            splits, groups = " and ".join(groups_by_split), dict.fromkeys(groups_by_split.values())
            claim_lines.append(
                f"{name}: the {splits} documents come from one group ({' and '.join(groups)}): "
                "intervals will hold for more documents of it; how another group would score will "
                "not be known"
            )
    return claim_lines


def _validation_sizes(name: str, data: DataSection, looked: Looked) -> tuple[int, int] | None:
    """Validation items of a source, and the groups that stand alone; None where nothing tells."""
    sample, split_rule = looked.samples[name], data.sources[name].split.get("validation")
    num_documents, num_groups = sample.split_documents["validation"], len(sample.validation_groups)
    # Where nothing tells how much was seen, a number would look like a count.
    if sample.why or split_rule is None or not num_documents or sample.seen_fraction is None:
        return None
    tokens = sample.split_bytes["validation"] * looked.tokens_per_byte[sample.role]
    if data.evaluation_document_tokens is not None:  # of a longer document the rest is left out
        tokens = min(tokens, float(num_documents * data.evaluation_document_tokens))
    # From what was seen to all of the source, and no further than its own limit.
    source_scale = 1.0 / sample.seen_fraction
    if split_rule.max_tokens is not None:
        source_scale = min(source_scale, split_rule.max_tokens / tokens)
    num_items = max(num_documents * source_scale, 1.0)
    # Of one group the items themselves are drawn; of several, the groups.
    num_alone = num_items if num_groups < 2 else min(num_items, num_groups * source_scale)
    return max(round(num_items), 1), max(round(num_alone), 1)
