"""Fine-tuning put together: the article's third stage, after continued pre-training and merging.

merge ─► sft-data ─► sft        under runs/<recipe>/, beside the other stages
"""

from __future__ import annotations

from pathlib import Path

from toolkit.errors import ConfigError
from toolkit.manifest import content_hash
from toolkit.stages.chain import (
    Run,
    data_stage,
    ensure_general,
    ensure_merge,
    fingerprint,
    first_alone,
    watch_identity,
)
from toolkit.stages.finishing import ensure_specialist
from toolkit.train.config import identity_of, without_effect

_STARTS = {"merge": ensure_merge, "specialist": ensure_specialist, "general": ensure_general}


def ensure_sft(run: Run) -> Path:
    """The sft stage: the model that the recipe starts from, fine-tuned on conversations.

    Raises:
        ConfigError: the recipe has no section `sft`.
    """
    from toolkit.stages.training import train_stage

    section = run.recipe.sft
    if section is None:
        raise ConfigError(
            f"{run.name}: the recipe has no section sft; give it `data` with conversations "
            "(messages_field) and `train` (see recipes/finance.yaml)."
        )

    def before() -> tuple[Path, Path]:
        start = _STARTS[section.start](run)
        return start, data_stage(run, "sft-data", section.data, start)

    start, data = first_alone(before)
    stage = run.stage(
        "sft",
        {
            "train": identity_of(section.train),
            "start": section.start,
            **watch_identity(section.train, run.recipe.evaluate),
        },
        {"start": fingerprint(start), "data": content_hash(data)},
        without_effect(section.train),
    )
    return run.ensure(
        stage,
        "sft",
        lambda: train_stage(section.train, section.data, run.recipe.evaluate, stage, start, data),
    )
