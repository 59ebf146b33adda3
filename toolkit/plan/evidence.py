"""From samples and measurements to the figures that the verdict stands on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolkit.data.config import DataSection
from toolkit.plan.sample import Sample
from toolkit.plan.surprise import Surprise
from toolkit.plan.token_budget import ASSUMED_TOKENS_PER_BYTE, SourceAmount, source_amount
from toolkit.plan.verdict import Evidence
from toolkit.plan.words import FolderTokenizer, WordFigures, word_figures

_PACKED_DOCUMENTS = 400

_FEWEST_WORDS = 10_000
"""In less, two texts of one kind lack a quarter of each other's words and more, by their length
alone (a judgment)."""


@dataclass(frozen=True)
class Looked:
    """What the documents and the tokenizer say, without the model's weights.

    Attributes:
        samples: documents that were read, by source.
        amounts: training text, by source.
        words: figures of the tokenizer by role; empty without a tokenizer or without text.
        tokens_per_byte: ratio by role; assumed where there is no tokenizer.
    """

    samples: dict[str, Sample]
    amounts: dict[str, SourceAmount]
    words: dict[str, WordFigures]
    tokens_per_byte: dict[str, float]

    def texts(self, role: str) -> list[str]:
        """Sampled texts of a role."""
        return sampled_texts(self.samples, role)

    @property
    def domain_tokens(self) -> float | None:
        """Domain training text that the recipe takes; None where some cannot be seen."""
        return _sum_of_known([a.tokens for a in self.amounts.values() if a.role == "domain"])

    @property
    def available_tokens(self) -> float | None:
        """The same without the recipe's own limits."""
        return _sum_of_known([a.available for a in self.amounts.values() if a.role == "domain"])

    @property
    def duplicate_fraction(self) -> float | None:
        """Share of the domain's sampled text that repeats other text of it."""
        shares_and_sizes = [
            (sample.duplicate_fraction, sum(len(d.text) for d in sample.documents))
            for sample in self.samples.values()
            if sample.role == "domain" and sample.duplicate_fraction is not None
        ]
        all_size = sum(size for _, size in shares_and_sizes)
        return (
            sum(repeated_share * size for repeated_share, size in shares_and_sizes) / all_size
            if all_size
            else None
        )


def look(
    data: DataSection, samples: dict[str, Sample], tokenizer: FolderTokenizer | None
) -> Looked:
    """Amounts and words of a recipe's sources.

    Args:
        data: data section of the recipe.
        samples: documents that were read, by source.
        tokenizer: the model's own; None where it is not on this machine.
    """
    texts_by_role = {role: sampled_texts(samples, role) for role in ("domain", "general")}
    words_by_role: dict[str, WordFigures] = {}
    tokens_per_byte = dict.fromkeys(texts_by_role, ASSUMED_TOKENS_PER_BYTE)
    if tokenizer is not None:
        for role, other_role in (("domain", "general"), ("general", "domain")):
            if texts_by_role[role]:
                words_by_role[role] = word_figures(
                    texts_by_role[role], texts_by_role[other_role] or None, tokenizer
                )
                tokens_per_byte[role] = words_by_role[role].tokens_per_byte
    amounts_by_source = {
        source_name: _amount_of(source_name, data, sample, tokens_per_byte[sample.role], tokenizer)
        for source_name, sample in samples.items()
    }
    return Looked(samples, amounts_by_source, words_by_role, tokens_per_byte)


def sampled_texts(samples: Mapping[str, Sample], role: str) -> list[str]:
    """Sampled texts of a role."""
    of_role = (sample for sample in samples.values() if sample.role == role)
    return [document.text for sample in of_role for document in sample.documents]


def _amount_of(
    name: str,
    data: DataSection,
    sample: Sample,
    tokens_per_byte: float,
    tokenizer: FolderTokenizer | None,
) -> SourceAmount:
    """The amount of a source; where there is a tokenizer, by its own ratio and not the role's."""
    source = data.sources[name]
    train_rule = source.split.get("train")
    texts = [document.text for document in sample.documents[:_PACKED_DOCUMENTS]]
    num_bytes = [len(text.encode()) for text in texts]
    num_tokens = [max(1, round(size * tokens_per_byte)) for size in num_bytes]
    if tokenizer is not None and texts:
        # By documents, as packing below depends on how long each is and not on their mean alone.
        num_tokens = tokenizer.count_many(texts)
        tokens_per_byte = sum(num_tokens) / max(1, sum(num_bytes))
    return source_amount(
        name,
        sample.role,
        train_bytes=sample.estimated_train_bytes,
        tokens_per_byte=tokens_per_byte,
        sizes=num_tokens,
        sequence_length=data.sequence_length,
        packing=data.packing,
        max_tokens=train_rule.max_tokens if train_rule is not None else None,
        declared=source.tokens,
        is_whole=sample.whole,
        is_known_share=sample.seen_fraction is not None,
    )


def evidence_of(
    looked: Looked,
    surprise: Surprise | None,
    *,
    trained_parameters: float | None,
    num_talks: int,
) -> Evidence:
    """All figures together."""
    domain_words, general_words = looked.words.get("domain"), looked.words.get("general")
    gap = surprise.gap if surprise is not None else None
    order_ratio = None
    # Of a model that gains nothing from order even in general text there is no ratio.
    if surprise is not None and surprise.general_order > 0.0:
        order_ratio = surprise.domain_order / surprise.general_order
    pieces_ratio = None
    # Text of numbers and signs alone has no words.
    if domain_words and general_words and domain_words.num_words and general_words.num_words:
        pieces_ratio = domain_words.tokens_per_word / general_words.tokens_per_word
    domain_amounts = [a for a in looked.amounts.values() if a.role == "domain"]
    domain_samples = [s for s in looked.samples.values() if s.role == "domain"]
    return Evidence(
        tokens=looked.available_tokens,
        taken=looked.domain_tokens,
        at_least=any(amount.at_least for amount in domain_amounts),
        trained_parameters=trained_parameters,
        domain=surprise.domain.estimate if surprise is not None else None,
        general=surprise.general.estimate if surprise is not None else None,
        gap_low=gap.low if gap is not None else None,
        gap_high=gap.high if gap is not None else None,
        order_ratio=order_ratio,
        pieces_ratio=pieces_ratio,
        badly_split=domain_words.badly_split_fraction if domain_words is not None else None,
        badly_split_general=general_words.badly_split_fraction
        if general_words is not None
        else None,
        rare=_rare_fraction(domain_words, general_words),
        num_talks=num_talks,
        is_talk=bool(domain_samples) and all(sample.is_talk for sample in domain_samples),
    )


def _rare_fraction(domain: WordFigures | None, general: WordFigures | None) -> float | None:
    """Share of the domain's words that general text lacks, where both are long enough to tell."""
    if (
        domain is None
        or general is None
        or min(domain.num_words, general.num_words) < _FEWEST_WORDS
    ):
        return None
    return domain.rare_fraction


def _sum_of_known(amounts: Sequence[float | None]) -> float | None:
    """The sum; None where one of them is not known."""
    known_amounts = [amount for amount in amounts if amount is not None]
    return sum(known_amounts) if len(known_amounts) == len(amounts) else None
