"""The models of a recipe, each made where it is not up to date, with what it needs first.

The general model and further ones are found, fetched, converted, mixed, made from scratch, or are
the specialist of another recipe; the specialist is trained from the general model and the recipe's
documents, or named. So one may lead to the other, which is why both stand here.
"""

from __future__ import annotations

from pathlib import Path

from toolkit.data.config import identity_of_data
from toolkit.errors import ConfigError
from toolkit.pipeline.finished import merge_adapter, refuse_training
from toolkit.pipeline.model_hashes import fingerprint, tokenizer_hashes
from toolkit.pipeline.model_sources import (
    BASE_OF_EXPERTS,
    convert_artifact,
    fetch_snapshot,
    mix_experts,
    mixture_config,
)
from toolkit.pipeline.run import Run, ensure_stage, first_alone
from toolkit.pipeline.specialist import (
    anneal_specialist,
    average_specialist,
    cpt_stage,
    data_stage,
    own_conversations,
    refuse_own_schedules,
    train_cpt,
)
from toolkit.progress import say
from toolkit.recipe.model import (
    ModelSection,
    MoeSection,
    ScratchSection,
    SpecialistSection,
    depends_on_seed,
    identity_of_model,
)
from toolkit.search.space import SPECIALIST
from toolkit.stage import hash_json
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
    # Tokens learned from documents differ with the seed where their split does.
    if run.lender and (run.same_documents or not learned) and not depends_on_seed(run.recipe.model):
        return ensure_general(run.lender)
    from toolkit.data.files import input_hashes
    from toolkit.train.extend import run_extend

    data = run.recipe.data
    config = {"tokenizer": identity_of_tokenizer(section)}
    inputs = {"general": fingerprint(general)}
    if learned:
        # Texts and their cleaning alone: how documents are packed changes no learned token.
        config["data"] = {key: identity_of_data(data)[key] for key in ("sources", "cleaning")}
        inputs |= input_hashes(data.sources)
    stage = run.stage("general-extended", config, inputs)
    return ensure_stage(stage, "new tokens", lambda: run_extend(section, data, stage, general))


def ensure_original(run: Run) -> Path:
    """The general model as it is given; a GGUF artifact is fetched and converted first.

    Raises:
        CheckpointError: there is no usable model where the recipe says.
        DataError: the artifact cannot be fetched.
    """
    return ensure_model(run, run.recipe.model, "general", "general model")


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


def ensure_model(run: Run, model: ModelSection, name: str, title: str) -> Path:
    """The folder of a model that a recipe speaks of; what has to be made is a stage of this name.

    Raises:
        CheckpointError: there is no usable model where the recipe says.
        DataError: the artifact cannot be fetched.
    """
    from toolkit.checkpoint.load import load_model_config

    # First of all: a repeated run would otherwise fetch or convert the same model once per seed.
    if run.lender is not None and not depends_on_seed(model):
        return ensure_model(run.lender, model, name, title)
    if model.path is not None:
        # A wrong folder is refused now, and not when its weights are first needed, hours later.
        load_model_config(model.path)
        return model.path
    if model.hub is not None:
        return fetch_snapshot(model.hub, model.revision)
    if model.run is not None:
        return _other_specialist(run, model.run)
    if model.moe is not None:
        return ensure_mixture(run, model.moe, name, title)
    if model.scratch is not None:
        return _ensure_scratch(run, model.scratch, name, title)
    stage = run.stage(name, {"model": identity_of_model(model)}, {})
    return ensure_stage(stage, title, lambda: convert_artifact(stage, model))


def _other_specialist(run: Run, name: str) -> Path:
    say(f"specialist of {name}:")
    # Under the other recipe's own seed, whatever seed this run is repeated with.
    return ensure_specialist(Run.open(name, run.runs))


def _ensure_scratch(run: Run, section: ScratchSection, name: str, title: str) -> Path:
    """A model with random weights, and the tokenizer of a model that is there or is fetched."""
    from toolkit.train.scratch import run_scratch

    tokenizer = ensure_model(run, section.tokenizer, f"{name}-tokenizer", "tokenizer's model")
    # Of the model that lends its tokenizer no other file matters, so only those are hashed.
    config = {"shape": section.shape.model_dump(mode="json")}
    stage = run.stage(name, config, {"tokenizer": hash_json(tokenizer_hashes(tokenizer))})
    return ensure_stage(
        stage, f"{title} from scratch", lambda: run_scratch(section.shape, stage, tokenizer)
    )


def ensure_mixture(run: Run, section: MoeSection, name: str, title: str) -> Path:
    """The folder of a mixture of experts, made where it is not up to date.

    Args:
        run: run of the recipe.
        section: base, experts and router.
        name: name of the stage; dense models that have to be fetched are stages beside it.
        title: title of the stage, for people.

    Raises:
        MergeError: the models do not fit each other.
        CheckpointError: one is not where the recipe says.
    """
    folders = {
        BASE_OF_EXPERTS: ensure_model(run, section.base, f"{name}-base", "base of the experts")
    }
    # Compared by equality: an expert named twice, or the base itself, is fetched and read once.
    named_models: list[tuple[ModelSection, str]] = [(section.base, BASE_OF_EXPERTS)]
    expert_names: list[str] = []
    for number, model in enumerate(section.experts or (section.base,) * section.num_experts):
        expert_name = next((name for other, name in named_models if other == model), None)
        if expert_name is None:
            expert_name = f"expert-{number}"
            folders[expert_name] = ensure_model(
                run, model, f"{name}-{expert_name}", f"expert {number}"
            )
            named_models.append((model, expert_name))
        expert_names.append(expert_name)
    config = mixture_config(section, expert_names)
    inputs = {model_name: fingerprint(folder) for model_name, folder in folders.items()}
    # Where the dense models come from does not matter, only what they are.
    plain = section.model_dump(mode="json", exclude={"base", "experts"})
    stage = run.stage(name, {"moe": {**plain, "experts": expert_names}}, inputs)
    return run.ensure(stage, title, lambda: mix_experts(config, folders, stage))


def ensure_data(run: Run) -> Path:
    """The data stage: documents to packed blocks and evaluation sets, or to these alone where the
    recipe trains nothing."""
    if run.lender is not None and run.same_documents:
        return ensure_data(run.lender)
    recipe = run.recipe
    return data_stage(run, "data", recipe.data, ensure_general(run), for_training=recipe.trains)


def ensure_start(run: Run) -> Path:
    """The folder of the model that training starts from: the general model, or the one of `models`
    that `train.start` names.

    Raises:
        CheckpointError: there is no usable model where the recipe says.
    """
    start = run.recipe.train.start
    return ensure_general(run) if start is None else ensure_models(run)[start]


def _start_and_data(run: Run) -> tuple[Path, Path]:
    from toolkit.merge.check.relation import describe_relation, relate

    def make() -> tuple[Path, Path]:
        general, data = ensure_general(run), ensure_data(run)
        own_conversations(run, general)  # the first process writes them for all
        # Last: with a base model beside the general one it may fetch another large model.
        start = ensure_start(run)
        if start != general and not cpt_stage(run, start, data).is_complete():
            say(describe_relation(relate(general, start)))
        return start, data

    return first_alone(make)


def ensure_cpt(run: Run, *, change_schedule: bool = False) -> Path:
    """The cpt stage: continued pre-training, general model to specialist.

    Args:
        run: the recipe's.
        change_schedule: whether an interrupted run continues although its schedule was changed.

    Raises:
        ConfigError: more than the schedule was changed, or the recipe trains nothing.
    """
    refuse_training(run)
    start, data = _start_and_data(run)
    return train_cpt(run, start, data, change_schedule=change_schedule)


def ensure_anneal(run: Run, *, from_step: int | None = None, steps: float | None = None) -> Path:
    """A specialist annealed from a state of the constant phase; see `anneal_specialist`."""
    refuse_training(run)
    refuse_own_schedules(run.recipe.train)
    start, data = _start_and_data(run)
    return anneal_specialist(run, start, data, from_step=from_step, steps=steps)


def ensure_average(run: Run, *, last: int | None = None) -> Path:
    """A specialist averaged from the last states of the cpt stage; see `average_specialist`."""
    return average_specialist(run, ensure_cpt(run), last=last)


def ensure_specialist(run: Run) -> Path:
    """The specialist that later stages take: the one that the recipe names, or trains as
    `train.use` says."""
    recipe = run.recipe
    if recipe.specialists:
        raise ConfigError(
            f"{run.name}: names several specialists ({', '.join(recipe.specialists)}), and one is "
            "asked for; take their merge, or a recipe with one."
        )
    if recipe.specialist is not None:
        return ensure_finished(run, run, recipe.specialist, "specialist")
    use = run.recipe.train.use
    # `last` and `best` are what the cpt stage itself leaves.
    if use == "anneal":
        return ensure_anneal(run)
    return ensure_average(run) if use == "average" else ensure_cpt(run)


def ensure_specialists(run: Run) -> dict[str, Path]:
    """Folders of all specialists by name; a recipe's one specialist is called `specialist`."""
    sections = run.recipe.specialists
    if not sections:
        return {SPECIALIST: ensure_specialist(run)}
    return {
        name: ensure_finished(run, run.below("specialists", name), section, f"specialist {name}")
        for name, section in sections.items()
    }


def ensure_finished(run: Run, place: Run, section: SpecialistSection, title: str) -> Path:
    """The folder of a finished specialist; what has to be made is the stage `specialist` of a
    place.

    Args:
        run: run of the recipe.
        place: the same, or below it where there are several specialists.
        section: which one it is.
        title: title of the stage, for people.

    Raises:
        CheckpointError: there is no usable model where the recipe says.
        MergeError: an adapter does not fit the general model.
    """
    if section.adapter is None:
        return ensure_model(place, section.as_model(), "specialist", title)
    general = ensure_general(run)
    # Lent with the general model that it is merged into, and not where each seed makes its own.
    if (
        run.lender is not None
        and place.lender is not None
        and general == ensure_general(run.lender)
    ):
        return ensure_finished(run.lender, place.lender, section, title)
    return merge_adapter(place, section, general, "specialist", title)
