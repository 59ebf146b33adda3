"""What a card says of texts and training, taken from the manifests of their stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.publish.config import PublishSection


def source_facts(
    sources: Mapping[str, Mapping[str, Any]],
    section: PublishSection,
    counts: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Name, role, terms, public place and counts of every source.

    Args:
        sources: of the recipe, as plain values.
        section: what may be said of them.
        counts: of the data stage.
    """
    facts = []
    for name, source in sources.items():
        known = section.sources.get(name)
        dataset = known.dataset if known is not None else None
        hub = source.get("hub") or {}
        facts.append(
            {
                "name": name,
                "role": source["role"],
                "license": source.get("license") or "not stated",
                "dataset": dataset or hub.get("dataset"),
                "origin": _origin(source, dataset),
                "counts": counts.get(name, {}),
            }
        )
    return facts


def _origin(source: Mapping[str, Any], dataset: str | None) -> str:
    if dataset is not None:
        return dataset
    if hub := source.get("hub"):
        revision = f"@{hub['revision']}" if hub.get("revision") else ""
        return f"{hub['dataset']}{revision}"
    if artifact := source.get("artifact"):
        return f"in {artifact['package']} {artifact['version']} on PyPI"
    return "local files"


def training_facts(data: Mapping[str, Any], cpt: Mapping[str, Any]) -> dict[str, Any]:
    """Settings and figures of continued pre-training by their titles; None for what is unknown."""
    train = cpt.get("config", {}).get("train", {})
    schedule, optimizer = train.get("schedule", {}), train.get("optimizer", {})
    results, texts = cpt.get("results", {}), data.get("results", {}).get("train", {})
    lora, versions = train.get("lora") or {}, cpt.get("versions", {})
    share = texts.get("replay_share")
    losses = [results.get(key) for key in ("first_loss", "last_loss")]
    return {
        "what learned": _what_learned(train, lora) if train else None,
        "training tokens, domain": texts.get("domain_tokens"),
        "training tokens, replayed general text": texts.get("general_tokens"),
        "share of replay": None if share is None else f"{share:.1%}",
        "tokens in a block": texts.get("sequence_length"),
        "blocks in a step": train.get("global_batch_size"),
        "epochs": train.get("epochs"),
        "steps": results.get("num_steps"),
        "schedule": _schedule(schedule, train.get("stages", {})),
        "peak learning rate": schedule.get("peak_lr"),
        "optimizer": _optimizer(optimizer),
        "precision": results.get("precision", train.get("precision")),
        "training loss, first and last step": None
        if None in losses
        else f"{losses[0]:.3f}, {losses[1]:.3f} nats a token",
        "seed": str(cpt.get("seed", "")),
        "software": ", ".join(
            f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions
        ),
    }


def _what_learned(train: Mapping[str, Any], lora: Mapping[str, Any]) -> str:
    if lora:
        return f"LoRA adapters of rank {lora.get('rank')}, merged into the weights"
    if train.get("block_expansion"):
        return "blocks added between the old ones"
    patterns = list(train.get("trainable", ["*"]))
    return "all parameters" if patterns == ["*"] else f"parameters {', '.join(patterns)}"


def _schedule(schedule: Mapping[str, Any], stages: Mapping[str, Any]) -> str | None:
    if not schedule:
        return None
    kind = schedule.get("kind", "")
    parts = [f"{kind}, re-warmed over {schedule.get('warmup_fraction', 0):.0%} of the steps"]
    if kind in ("cosine", "linear"):
        parts.append(f"down to {schedule.get('final_lr_fraction', 0):.0%} of the peak")
    for name, stage in stages.items():
        if own := stage.get("schedule"):
            parts.append(f"stage {name} its own, {own['kind']} with a peak of {own['peak_lr']}")
        if theta := stage.get("rope_theta"):
            parts.append(f"rotary base {theta:g} from stage {name} on")
    return ", ".join(parts)


def _optimizer(optimizer: Mapping[str, Any]) -> str | None:
    if not optimizer:
        return None
    return (
        f"AdamW, betas {optimizer.get('beta1')} and {optimizer.get('beta2')}, weight decay "
        f"{optimizer.get('weight_decay')}"
    )
