"""From samples and measurements to the figures that the verdict stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.data.config import DataSection
from toolkit.plan.sample import Sample
from toolkit.plan.surprise import Surprise
from toolkit.plan.token_budget import ASSUMED_TOKENS_PER_BYTE, SourceAmount, source_amount
from toolkit.plan.verdict import Evidence
from toolkit.plan.words import FolderTokenizer, WordFigures, word_figures

_PACKED_DOCUMENTS = 400


@dataclass(frozen=True)
class Looked:
    """What the documents and the tokenizer say, without the model's weights.

    Attributes:
        samples: by source.
        amounts: by source.
        words: by role; empty without a tokenizer or without text.
        tokens_per_byte: by role; assumed where there is no tokenizer.
    """

    samples: dict[str, Sample]
    amounts: dict[str, SourceAmount]
    words: dict[str, WordFigures]
    tokens_per_byte: dict[str, float]

    def texts(self, role: str) -> list[str]:
        """Sampled texts of a role."""
        return [
            document.text
            for sample in self.samples.values()
            if sample.role == role
            for document in sample.documents
        ]

    @property
    def domain_tokens(self) -> float | None:
        """Domain training text that the recipe takes; None where some cannot be seen."""
        return _sum([a.tokens for a in self.amounts.values() if a.role == "domain"])

    @property
    def available_tokens(self) -> float | None:
        """The same without the recipe's own limits."""
        return _sum([a.available for a in self.amounts.values() if a.role == "domain"])

    @property
    def duplicate_fraction(self) -> float | None:
        """Share of the domain's sampled text that repeats other text of it."""
        seen = [
            (sample.duplicate_fraction, sum(len(d.text) for d in sample.documents))
            for sample in self.samples.values()
            if sample.role == "domain" and sample.duplicate_fraction is not None
        ]
        total = sum(size for _, size in seen)
        return sum(share * size for share, size in seen) / total if total else None


def look(
    data: DataSection, samples: dict[str, Sample], tokenizer: FolderTokenizer | None
) -> Looked:
    """Amounts and words of a recipe's sources.

    Args:
        data: the recipe's section.
        samples: by source.
        tokenizer: of the model; None where it is not on this machine.
    """
    texts = {
        role: [d.text for s in samples.values() if s.role == role for d in s.documents]
        for role in ("domain", "general")
    }
    words: dict[str, WordFigures] = {}
    tokens_per_byte = dict.fromkeys(texts, ASSUMED_TOKENS_PER_BYTE)
    if tokenizer is not None:
        for role, other in (("domain", "general"), ("general", "domain")):
            if texts[role]:
                words[role] = word_figures(texts[role], texts[other] or None, tokenizer)
                tokens_per_byte[role] = words[role].tokens_per_byte
    amounts: dict[str, SourceAmount] = {}
    for name, sample in samples.items():
        source = data.sources[name]
        rule = source.split.get("train")
        some = [d.text for d in sample.documents[:_PACKED_DOCUMENTS]]
        each = tokens_per_byte[sample.role]
        sizes = [max(1, round(len(text.encode()) * each)) for text in some]
        if tokenizer is not None and some:
            sizes = tokenizer.count_many(some)
            each = sum(sizes) / max(1, sum(len(text.encode()) for text in some))
        amounts[name] = source_amount(
            name,
            sample.role,
            train_bytes=sample.estimated_train_bytes,
            tokens_per_byte=each,
            sizes=sizes,
            sequence_length=data.sequence_length,
            packing=data.packing,
            max_tokens=rule.max_tokens if rule is not None else None,
            declared=source.tokens,
            is_whole=sample.whole,
            is_known_share=sample.seen_fraction is not None,
        )
    return Looked(samples, amounts, words, tokens_per_byte)


def evidence_of(
    looked: Looked,
    surprise: Surprise | None,
    *,
    trained_parameters: float | None,
    num_talks: int,
) -> Evidence:
    """All figures together."""
    domain, general = looked.words.get("domain"), looked.words.get("general")
    both = domain is not None and general is not None
    gap = surprise.gap if surprise is not None else None
    order = None
    if surprise is not None and surprise.general_order > 0.0:
        order = surprise.domain_order / surprise.general_order
    domain_amounts = [a for a in looked.amounts.values() if a.role == "domain"]
    return Evidence(
        tokens=looked.available_tokens,
        taken=looked.domain_tokens,
        at_least=any(amount.at_least for amount in domain_amounts),
        trained_parameters=trained_parameters,
        domain=surprise.domain.estimate if surprise is not None else None,
        general=surprise.general.estimate if surprise is not None else None,
        gap_low=gap.low if gap is not None else None,
        gap_high=gap.high if gap is not None else None,
        order_ratio=order,
        pieces_ratio=domain.tokens_per_word / general.tokens_per_word
        if domain is not None and general is not None and both
        else None,
        badly_split=domain.badly_split_fraction if domain is not None else None,
        badly_split_general=general.badly_split_fraction if general is not None else None,
        rare=domain.rare_fraction if domain is not None else None,
        num_talks=num_talks,
        is_talk=_is_talk([s for s in looked.samples.values() if s.role == "domain"]),
    )


def _sum(amounts: Sequence[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None


def _is_talk(samples: Sequence[Sample]) -> bool:
    return bool(samples) and all(sample.is_talk for sample in samples)
