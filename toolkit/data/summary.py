"""What the data stage did, in figures and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from toolkit.data.blocks import StageEntry
from toolkit.data.config import DataSection, Role, SplitName
from toolkit.data.evaluation_texts import EvaluationDocument, EvaluationSets
from toolkit.data.formats import NOTE
from toolkit.data.texts import TextIndex
from toolkit.data.tokens import Frame, TokenTable
from toolkit.stage import write_atomically

SourceCounts = dict[str, Counter[str]]
"""By source, documents and (`…, bytes`) their size by what became of them."""

_ORDER = (
    "read",
    "damaged",
    "short",
    "long",
    "repetitive",
    "from documents of another split",
    "in no split",
    "repeated",
    "nearly repeated",
    "overlaps evaluation",
    "not needed",
)
_PII = "pii: "


@dataclass(frozen=True)
class Amount:
    """Documents and their size; `tokens` is None where they were never tokenized."""

    documents: int
    bytes: int
    tokens: int | None = None

    def to_json(self) -> dict[str, int]:
        """Plain values for the manifest."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class SourceSummary:
    """What became of the documents of one source.

    Attributes:
        role: role of the source.
        steps: documents that were read, and those left out, by the reason.
        remarks: counts that are no step of a document's way: replaced personal data, notes.
        used: documents that are trained on, and those of each evaluation split.
    """

    role: Role
    steps: dict[str, Amount]
    remarks: dict[str, int]
    used: dict[str, Amount]

    @property
    def notes(self) -> list[str]:
        """Remarks that are the end of a sentence, with their counts."""
        return [
            f"{count:,} {key.removeprefix(NOTE)}"
            for key, count in self.remarks.items()
            if key.startswith(NOTE)
        ]

    @property
    def replaced(self) -> dict[str, int]:
        """How many personal data of each kind were replaced."""
        return {
            key.removeprefix(_PII): count
            for key, count in self.remarks.items()
            if key.startswith(_PII)
        }

    def to_json(self) -> dict[str, object]:
        """Plain values for the manifest."""
        steps, used = (
            {key: amount.to_json() for key, amount in amounts.items()}
            for amounts in (self.steps, self.used)
        )
        return {"role": self.role, **steps, **self.remarks, **used}


@dataclass(frozen=True)
class TrainAmounts:
    """What goes into training, all stages together.

    Attributes:
        num_blocks: blocks of one epoch, repeats included.
        sequence_length: tokens of a block, where a stage has no length of its own.
        domain_tokens, general_tokens: targets by role, repeats included.
        replay_share: fraction of them that is general text.
        room_used: fraction of the blocks' positions that hold a target.
    """

    num_blocks: int
    sequence_length: int
    domain_tokens: int
    general_tokens: int
    replay_share: float
    room_used: float


@dataclass(frozen=True)
class SplitAmounts:
    """What an evaluation split holds, by role."""

    domain_documents: int
    domain_tokens: int
    general_documents: int
    general_tokens: int


@dataclass(frozen=True)
class ShareSummary:
    """Blocks of a source in a stage, and how often each of its blocks is seen."""

    blocks: int
    repeats: float


@dataclass(frozen=True)
class StageSummary:
    """What one stage of training reads."""

    name: str
    sequence_length: int
    shares: dict[str, ShareSummary]


@dataclass(frozen=True)
class DataSummary:
    """Figures of the data stage, as its manifest has them.

    Attributes:
        train: what goes into training; None where nothing is trained.
        evaluation: what each evaluation split holds.
        sources: what became of the documents of each source.
        stages: what each stage of training reads.
        separator_token_id: token between documents.
        damaged: first messages about damage, by source.
    """

    train: TrainAmounts | None
    evaluation: dict[SplitName, SplitAmounts]
    sources: dict[str, SourceSummary]
    stages: list[StageSummary]
    separator_token_id: int
    damaged: dict[str, list[str]]

    def to_json(self) -> dict[str, object]:
        """Plain values for the manifest."""
        return {
            **({} if self.train is None else {"train": asdict(self.train)}),
            **{split: asdict(amounts) for split, amounts in self.evaluation.items()},
            "sources": {name: source.to_json() for name, source in self.sources.items()},
            "stages": [asdict(stage) for stage in self.stages],
            "separator_token_id": self.separator_token_id,
            "damaged": self.damaged,
        }


def summarize(
    section: DataSection,
    index: TextIndex,
    tables: Mapping[str, TokenTable],
    stages: Sequence[StageEntry],
    evaluation: EvaluationSets,
    counts: SourceCounts,
    frame: Frame,
    damaged: dict[str, list[str]],
) -> DataSummary:
    """Figures for the manifest: what goes into training, evaluation, and out."""
    roles = {name: source.role for name, source in section.sources.items()}
    return DataSummary(
        train=_summarize_training(section.sequence_length, stages, roles) if stages else None,
        evaluation={split: _summarize_split(items) for split, items in evaluation.items()},
        sources={
            name: _summarize_source(name, roles[name], index, tables.get(name), evaluation, counter)
            for name, counter in counts.items()
        },
        stages=[_summarize_stage(stage) for stage in stages],
        separator_token_id=frame.separator,
        damaged=damaged,
    )


def _summarize_training(
    sequence_length: int, stages: Sequence[StageEntry], roles: Mapping[str, Role]
) -> TrainAmounts:
    tokens_by_role: Counter[str] = Counter()
    num_blocks = num_positions = 0
    for stage in stages:
        for share in stage.shares:
            # Blocks hold different numbers of targets: a share of a source is a share of them all.
            num_targets = share.count * share.num_targets / max(1, share.num_blocks)
            tokens_by_role[roles[share.source]] += round(num_targets)
            num_blocks += share.count
            num_positions += share.count * stage.sequence_length
    domain_tokens, general_tokens = tokens_by_role["domain"], tokens_by_role["general"]
    all_tokens = domain_tokens + general_tokens
    return TrainAmounts(
        num_blocks=num_blocks,
        sequence_length=sequence_length,
        domain_tokens=domain_tokens,
        general_tokens=general_tokens,
        replay_share=general_tokens / max(1, all_tokens),
        room_used=all_tokens / max(1, num_positions),
    )


def _summarize_split(items: Sequence[EvaluationDocument]) -> SplitAmounts:
    domain_sizes, general_sizes = (
        [item.num_tokens for item in items if item.role == role] for role in ("domain", "general")
    )
    return SplitAmounts(
        len(domain_sizes), sum(domain_sizes), len(general_sizes), sum(general_sizes)
    )


def _summarize_source(
    name: str,
    role: Role,
    index: TextIndex,
    table: TokenTable | None,
    evaluation: EvaluationSets,
    counter: Counter[str],
) -> SourceSummary:
    used: dict[str, Amount] = {}
    if table is not None:
        trained_bytes = int(index.num_bytes[table.index].sum())
        num_tokens = int(table.num_tokens.sum())
        used["trained on"] = Amount(len(table.index), trained_bytes, num_tokens)
    for split, items in evaluation.items():
        own_items = [item for item in items if item.document.source == name]
        num_bytes = sum(len(item.document.text.encode()) for item in own_items)
        num_tokens = sum(item.num_tokens for item in own_items)
        used[split] = Amount(len(own_items), num_bytes, num_tokens)
    return SourceSummary(
        role=role,
        steps={
            reason: Amount(counter[reason], counter.get(f"{reason}, bytes", 0))
            for reason in _ORDER
            if counter.get(reason)
        },
        remarks={key: count for key, count in counter.items() if key.startswith((_PII, NOTE))},
        used=used,
    )


def _summarize_stage(stage: StageEntry) -> StageSummary:
    shares = {
        share.source: ShareSummary(share.count, round(share.count / max(1, share.num_blocks), 3))
        for share in stage.shares
    }
    return StageSummary(stage.name, stage.sequence_length, shares)


def describe(summary: DataSummary) -> str:
    """A few lines on what the stage made, for the terminal."""
    lines = []
    for name, source in summary.sources.items():
        left_out = [
            f"{source.steps[reason].documents:,} {reason}"
            # Neither `read` nor `not needed` is a fault of a document.
            for reason in _ORDER[1:-1]
            if reason in source.steps
        ]
        if left_out:
            lines.append(f"  {name}: left out {', '.join(left_out)}")
        replaced = [f"{count:,} {kind}" for kind, count in source.replaced.items()]
        if replaced:
            lines.append(f"  {name}: replaced {', '.join(replaced)}")
        lines += [f"  {name}: {note}" for note in source.notes]
    for stage in summary.stages:
        for name, share in stage.shares.items():
            if share.repeats > 1.001:
                lines.append(f"  {stage.name}: {name} is seen {share.repeats:.2f} times")
    train = summary.train
    validation, test = summary.evaluation["validation"], summary.evaluation["test"]
    if train is not None:
        lines.append(
            f"  train: {train.num_blocks:,} blocks of {train.sequence_length}, "
            f"{train.room_used:.1%} full: "
            f"{train.domain_tokens:,} domain + {train.general_tokens:,} general tokens "
            f"({train.replay_share:.1%} replay)"
        )
    lines.append(
        f"  validation: {validation.domain_documents} domain + "
        f"{validation.general_documents} general "
        f"documents; test: {test.domain_documents} + {test.general_documents}"
    )
    return "\n".join(lines)


def write_report(path: Path, summary: DataSummary) -> None:
    """Write a table of every source: what came in, what was left out and why, what is used.

    Tokens of what was left out are reckoned from its bytes: it was never tokenized.
    """
    lines = ["# Documents", ""]
    for name, source in summary.sources.items():
        used_bytes = sum(amount.bytes for amount in source.used.values())
        used_tokens = sum(amount.tokens or 0 for amount in source.used.values())
        tokens_per_byte = used_tokens / used_bytes if used_bytes else 0.0
        lines += [f"## {name} ({source.role})", "", "| step | documents | bytes | tokens |"]
        lines += ["|---|---:|---:|---:|"]
        for step, amount in (source.steps | source.used).items():
            tokens_text = (
                f"{amount.tokens:,}"
                if amount.tokens is not None
                else f"≈ {amount.bytes * tokens_per_byte:,.0f}"
            )
            lines.append(f"| {step} | {amount.documents:,} | {amount.bytes:,} | {tokens_text} |")
        replaced = [f"- {_PII}{kind}: {count:,}" for kind, count in source.replaced.items()]
        lines += ["", *replaced, *(f"- {note}" for note in source.notes), ""]
    if summary.damaged:
        lines += ["## Damaged", ""]
        lines += [f"- {text}" for texts in summary.damaged.values() for text in texts]
        lines.append("")
    with write_atomically(path) as file:
        file.write("\n".join(lines))
