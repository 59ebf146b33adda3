"""The general model as a mixture of experts: its dense models first, then the mixture itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.manifest import Stage
from toolkit.merge.moe.config import MoeConfig
from toolkit.model_config import ModelSection, MoeSection
from toolkit.progress import say
from toolkit.stages import chain

if TYPE_CHECKING:
    from toolkit.stages.chain import Run

_BASE = "base"


def ensure_mixture(run: Run, section: MoeSection, name: str, title: str) -> Path:
    """The folder of a mixture of experts, made where it is not up to date.

    Args:
        run: the recipe's.
        section: of the recipe.
        name: of the stage; dense models that have to be fetched are stages beside it.
        title: of the stage, for people.

    Raises:
        MergeError: the models do not fit each other.
        CheckpointError: one is not where the recipe says.
    """
    folders = {_BASE: chain.ensure_model(run, section.base, f"{name}-base", "base of the experts")}
    found: list[tuple[ModelSection, str]] = [(section.base, _BASE)]
    names: list[str] = []
    for number, model in enumerate(section.experts or (section.base,) * section.num_experts):
        known = next((own for other, own in found if other == model), None)
        if known is None:
            known = f"expert-{number}"
            folders[known] = chain.ensure_model(run, model, f"{name}-{known}", f"expert {number}")
            found.append((model, known))
        names.append(known)
    config = mixture_config(section, names)
    inputs = {own: chain.fingerprint(folder) for own, folder in folders.items()}
    # Where the dense models come from does not matter, only what they are.
    plain = section.model_dump(mode="json", exclude={"base", "experts"})
    stage = run.stage(name, {"moe": {**plain, "experts": names}}, inputs)
    return run.ensure(stage, title, lambda: _run(config, folders, stage))


def mixture_config(section: MoeSection, names: list[str]) -> MoeConfig:
    """What to make, in mergekit's words; each expert's model by a name."""
    prompts = section.prompts or ((),) * section.num_experts
    experts = [
        {
            "source_model": own,
            "positive_prompts": list(wanted),
            "noise_scale": section.noise_scale or None,
        }
        for own, wanted in zip(names, prompts, strict=True)
    ]
    return MoeConfig.model_validate(
        {
            "base_model": _BASE,
            "experts": experts,
            "gate_mode": section.router,
            "experts_per_token": section.experts_per_token,
            "sparse_step": section.sparse_step,
            "architecture": section.architecture,
        }
    )


def _run(config: MoeConfig, folders: dict[str, Path], stage: Stage) -> None:
    from toolkit.merge.models import Models
    from toolkit.merge.moe.plan import plan_moe
    from toolkit.merge.moe.run import describe_moe, write_moe

    models = Models(folders)
    plan = plan_moe(config, models)
    with stage.running() as work:
        for left in work.glob("*.safetensors"):  # by an earlier call that was killed
            left.unlink()
        alike = write_moe(config, plan, models, work, seed=stage.seed)
        say("\n".join(f"  {line}" for line in describe_moe(config, plan).splitlines()))
        stage.finish(
            {
                "num_parameters": plan.num_parameters,
                "num_active_parameters": plan.num_active,
                "architecture": plan.layout.architecture,
                "layers_with_rows_alike": alike,
            }
        )
