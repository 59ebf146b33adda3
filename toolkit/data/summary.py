"""What the data stage did, in figures and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.data.config import DataSection
from toolkit.data.evaluation_texts import EvaluationDocument
from toolkit.data.formats import NOTE
from toolkit.data.texts import TextIndex
from toolkit.data.tokens import TokenTable
from toolkit.stage import write_atomically

_ORDER = (
    "read",
    "damaged",
    "short",
    "long",
    "repetitive",
    "in no split",
    "repeated",
    "nearly repeated",
    "overlaps evaluation",
    "not needed",
)


def summarize(
    section: DataSection,
    index: TextIndex,
    tables: Mapping[str, TokenTable],
    stages: list[dict[str, Any]],
    chosen: Mapping[Any, list[EvaluationDocument]],
    counts: Mapping[str, Counter[str]],
) -> dict[str, Any]:
    """Figures for the manifest: what goes into training, evaluation, and out."""
    roles = {name: source.role for name, source in section.sources.items()}
    tokens: Counter[str] = Counter()
    num_blocks = 0
    for stage in stages:
        for share in stage["shares"]:
            used = share["count"] * share["num_targets"] / max(1, share["num_blocks"])
            tokens[roles[share["source"]]] += round(used)
            num_blocks += share["count"]
    room = sum(s["count"] * stage["sequence_length"] for stage in stages for s in stage["shares"])
    sources: dict[str, Any] = {}
    for name, counter in counts.items():
        table = tables[name]
        steps = {
            reason: {"documents": counter[reason], "bytes": counter.get(f"{reason}, bytes", 0)}
            for reason in _ORDER
            if counter.get(reason)
        }
        scrubbed = {key: value for key, value in counter.items() if key.startswith(("pii: ", NOTE))}
        sources[name] = {
            "role": roles[name],
            **steps,
            **scrubbed,
            "trained on": {
                "documents": len(table.index),
                "bytes": int(index.num_bytes[table.index].sum()),
                "tokens": int(table.num_tokens.sum()),
            },
            **{
                split: {
                    "documents": len(own),
                    "bytes": sum(len(item.document.text.encode()) for item in own),
                    "tokens": sum(item.num_tokens for item in own),
                }
                for split, items in chosen.items()
                for own in [[item for item in items if item.document.source == name]]
            },
        }
    return {
        "train": {
            "num_blocks": num_blocks,
            "sequence_length": section.sequence_length,
            "domain_tokens": tokens["domain"],
            "general_tokens": tokens["general"],
            "replay_share": tokens["general"] / max(1, tokens["domain"] + tokens["general"]),
            "room_used": (tokens["domain"] + tokens["general"]) / max(1, room),
        },
        **{
            str(split): {
                f"{role}_{unit}": sum(
                    item.num_tokens if unit == "tokens" else 1
                    for item in items
                    if item.role == role
                )
                for role in ("domain", "general")
                for unit in ("documents", "tokens")
            }
            for split, items in chosen.items()
        },
        "sources": sources,
        "stages": [
            {
                "name": stage["name"],
                "sequence_length": stage["sequence_length"],
                "shares": {
                    s["source"]: {
                        "blocks": s["count"],
                        "repeats": round(s["count"] / max(1, s["num_blocks"]), 3),
                    }
                    for s in stage["shares"]
                },
            }
            for stage in stages
        ],
    }


def describe(results: Mapping[str, Any]) -> str:
    """A few lines on what the stage made, for the terminal."""
    train, validation, test = results["train"], results["validation"], results["test"]
    lines = []
    for name, entry in results["sources"].items():
        out = [
            f"{entry[reason]['documents']:,} {reason}" for reason in _ORDER[1:-1] if reason in entry
        ]
        if out:
            lines.append(f"  {name}: left out {', '.join(out)}")
        pii = [f"{value:,} {key[5:]}" for key, value in entry.items() if key.startswith("pii: ")]
        if pii:
            lines.append(f"  {name}: replaced {', '.join(pii)}")
        lines += [f"  {name}: {text}" for text in _notes(entry)]
    for stage in results["stages"]:
        for name, share in stage["shares"].items():
            if share["repeats"] > 1.001:
                lines.append(f"  {stage['name']}: {name} is seen {share['repeats']:.2f} times")
    lines.append(
        f"  train: {train['num_blocks']:,} blocks of {train['sequence_length']}, "
        f"{train['room_used']:.1%} full: "
        f"{train['domain_tokens']:,} domain + {train['general_tokens']:,} general tokens "
        f"({train['replay_share']:.1%} replay)\n"
        f"  validation: {validation['domain_documents']} domain + "
        f"{validation['general_documents']} general "
        f"documents; test: {test['domain_documents']} + {test['general_documents']}"
    )
    return "\n".join(lines)


def _notes(entry: Mapping[str, Any]) -> list[str]:
    return [
        f"{value:,} {key.removeprefix(NOTE)}"
        for key, value in entry.items()
        if key.startswith(NOTE)
    ]


def write_report(path: Path, results: Mapping[str, Any]) -> None:
    """Write a table of every source: what came in, what was left out and why, what is used.

    Tokens of what was left out are reckoned from its bytes: it was never tokenized.
    """
    lines = ["# Documents", ""]
    for name, entry in results["sources"].items():
        used = [entry[key] for key in ("trained on", "validation", "test")]
        num_bytes = sum(item["bytes"] for item in used)
        ratio = sum(item["tokens"] for item in used) / num_bytes if num_bytes else 0.0
        lines += [f"## {name} ({entry['role']})", "", "| step | documents | bytes | tokens |"]
        lines += ["|---|---:|---:|---:|"]
        for key, item in entry.items():
            if not isinstance(item, Mapping):
                continue
            tokens = (
                f"{item['tokens']:,}" if "tokens" in item else f"≈ {item['bytes'] * ratio:,.0f}"
            )
            lines.append(f"| {key} | {item['documents']:,} | {item['bytes']:,} | {tokens} |")
        pii = [f"- {key}: {value:,}" for key, value in entry.items() if key.startswith("pii: ")]
        lines += ["", *pii, *(f"- {text}" for text in _notes(entry)), ""]
    if results.get("damaged"):
        lines += ["## Damaged", ""]
        lines += [f"- {text}" for texts in results["damaged"].values() for text in texts]
        lines.append("")
    with write_atomically(path) as file:
        file.write("\n".join(lines))
