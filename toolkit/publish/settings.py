"""What a card says of texts and training, taken from the manifests of their stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.data.config import SourceSection
from toolkit.publish.config import PublishSection


@dataclass(frozen=True)
class SourceFacts:
    """What a card says of a source of documents.

    Attributes:
        name: name in the recipe.
        role: `domain` or `general`.
        license: terms of the texts, or `not stated`.
        dataset: public name of the dataset, None where it has none.
        origin: where the texts come from, in words.
        trained_tokens: number of training tokens; None where the data stage does not say.
        validation_documents: number of validation documents.
        test_documents: number of test documents.
    """

    name: str
    role: str
    license: str
    dataset: str | None
    origin: str
    trained_tokens: int | None = None
    validation_documents: int | None = None
    test_documents: int | None = None


def source_facts(
    sources: Mapping[str, SourceSection],
    section: PublishSection,
    counts: Mapping[str, Mapping[str, Any]],
) -> list[SourceFacts]:
    """Name, role, terms, public place and counts of every source.

    Args:
        sources: sources of the recipe.
        section: what may be said of them.
        counts: what the data stage used of each, as its manifest has it.
    """
    facts = []
    for name, source in sources.items():
        published_source = section.sources.get(name)
        dataset = published_source.dataset if published_source is not None else None
        used_counts = counts.get(name, {})
        facts.append(
            SourceFacts(
                name=name,
                role=source.role,
                license=source.license or "not stated",
                dataset=dataset or (source.hub.dataset if source.hub is not None else None),
                origin=_origin(source, dataset),
                trained_tokens=used_counts.get("trained on", {}).get("tokens"),
                validation_documents=used_counts.get("validation", {}).get("documents"),
                test_documents=used_counts.get("test", {}).get("documents"),
            )
        )
    return facts


def _origin(source: SourceSection, dataset: str | None) -> str:
    if dataset is not None:
        return dataset
    if (hub := source.hub) is not None:
        return f"{hub.dataset}@{hub.revision}" if hub.revision else hub.dataset
    if (artifact := source.artifact) is not None:
        return f"in {artifact.package} {artifact.version} on PyPI"
    if (edgar := source.edgar) is not None:
        return "the SEC's archive (EDGAR)" + (
            " by a list of filings"
            if edgar.years is None
            else f": {', '.join(edgar.forms)} filed {edgar.years[0]} to {edgar.years[1]}"
        )
    return "local files"


def training_facts(data: Mapping[str, Any], cpt: Mapping[str, Any]) -> dict[str, Any]:
    """Settings and figures of continued pre-training by their titles; None for what is unknown."""
    # Nothing is taken for granted: a stage that is not there has an empty manifest.
    train_config = cpt.get("config", {}).get("train", {})
    schedule_config, optimizer = train_config.get("schedule", {}), train_config.get("optimizer", {})
    train_results, text_figures = cpt.get("results", {}), data.get("results", {}).get("train", {})
    lora_config, versions = train_config.get("lora") or {}, cpt.get("versions", {})
    replay_share = text_figures.get("replay_share")
    end_losses = [train_results.get(key) for key in ("first_loss", "last_loss")]
    return {
        "what learned": _what_learned(train_config, lora_config) if train_config else None,
        "training tokens, domain": text_figures.get("domain_tokens"),
        "training tokens, replayed general text": text_figures.get("general_tokens"),
        "share of replay": None if replay_share is None else f"{replay_share:.1%}",
        "tokens in a block": text_figures.get("sequence_length"),
        "blocks in a step": train_config.get("global_batch_size"),
        "epochs": train_config.get("epochs"),
        "steps": train_results.get("num_steps"),
        "schedule": _schedule(schedule_config, train_config.get("stages", {})),
        "peak learning rate": schedule_config.get("peak_lr"),
        "stayed near": _stayed_near(train_config.get("self_distillation")),
        "optimizer": _optimizer(optimizer),
        # What was settled comes first, as the setting may say no more than `auto`.
        "precision": train_results.get("precision", train_config.get("precision")),
        "training loss, first and last step": None
        if None in end_losses
        else f"{end_losses[0]:.3f}, {end_losses[1]:.3f} nats a token",
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


def _stayed_near(settings: Mapping[str, Any] | None) -> str | None:
    if not settings:
        return None
    return (
        f"the general model on {settings['num_tokens']:,} tokens that it wrote itself "
        f"({settings['weight']:g} times the divergence, {settings['tokens_per_step']} a step)"
    )


_SCHEDULE_WORDS = (
    (
        {"cosine", "wsd", "infinite", "constant"},
        "warmup_fraction",
        "re-warmed over {} of the steps",
    ),
    ({"infinite"}, "cooldown_fraction", "cooled down over {} of them"),
    ({"infinite"}, "constant_lr_fraction", "to a constant {} of the peak"),
    ({"wsd"}, "decay_fraction", "falling in the last {} of them"),
    ({"cosine", "wsd", "minimum"}, "final_lr_fraction", "down to {} of the peak"),
)
"""What a card says of each key of a schedule, and of which kinds."""


def _schedule(schedule: Mapping[str, Any], stages: Mapping[str, Any]) -> str | None:
    if not schedule:
        return None
    kind = schedule.get("kind", "")
    parts = [kind]
    for kinds, key, words in _SCHEDULE_WORDS:
        if kind in kinds and key in schedule:
            parts.append(words.format(f"{100 * schedule[key]:.6g}%"))
    for name, stage in stages.items():
        if own := stage.get("schedule"):
            parts.append(f"stage {name} its own, {own['kind']} with a peak of {own['peak_lr']}")
        if rope_theta := stage.get("rope_theta"):
            parts.append(f"rotary base {rope_theta:g} from stage {name} on")
    return ", ".join(parts)


def _optimizer(optimizer: Mapping[str, Any]) -> str | None:
    if not optimizer:
        return None
    return (
        f"AdamW, betas {optimizer.get('beta1')} and {optimizer.get('beta2')}, weight decay "
        f"{optimizer.get('weight_decay')}"
    )
