"""What a recipe says about its models. No torch here, and nothing slow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from toolkit.checkpoint.config import ShapeSection, shape_of_folder
from toolkit.data.config import ArtifactSection
from toolkit.section import PositiveInt, Section, refuse_unless_one, replace_values


class MoeSection(Section):
    """A mixture of experts made of dense models (Komatsuzaki et al. 2023), by a stage."""

    base: ModelSection
    """Attention, norms and embeddings come from it, and the experts where no others are given."""

    num_experts: Annotated[int, Field(ge=2, le=4096)] = 4
    experts_per_token: PositiveInt = 2
    router: Literal["random", "hidden"] = "random"
    """Rows of the router: random, or hidden states of `prompts`."""

    prompts: tuple[tuple[str, ...], ...] = ()
    """For `hidden`: what each expert is to be given, a list for each."""

    noise_scale: Annotated[float, Field(ge=0.0)] = 0.0
    """Standard deviation of noise added to experts, so that copies may diverge."""

    experts: tuple[ModelSection, ...] = ()
    """Models to take experts from, one for each expert; by default all are the base."""

    sparse_step: PositiveInt = 1
    """Every how many layers one has experts; others than 1 in the Qwen layouts only."""

    architecture: str | None = None
    """`mixtral`, `qwen` or `qwen3`; by default what suits the base."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.experts_per_token > self.num_experts:
            raise ValueError(f"experts_per_token: {self.experts_per_token} of {self.num_experts}")
        if self.experts and len(self.experts) != self.num_experts:
            raise ValueError(
                f"experts: {len(self.experts)} models for num_experts {self.num_experts}; give one "
                "for each, or none to copy the base"
            )
        if (self.router == "hidden") != bool(self.prompts):
            raise ValueError("prompts: belong to router hidden, which needs them")
        if self.prompts and (len(self.prompts) != self.num_experts or not all(self.prompts)):
            raise ValueError(
                f"prompts: {len(self.prompts)} lists for num_experts {self.num_experts}; give each "
                "expert at least one"
            )
        if any(model.moe is not None for model in (self.base, *self.experts)):
            raise ValueError("base and experts are dense models, not mixtures themselves")
        return self


class ScratchSection(Section):
    """A model with random weights, to be pre-trained: for what happens before continued
    pre-training."""

    shape: ShapeSection
    """Its measures, as a Llama's; without experts. Only `vocab_size` may be left to the tokenizer
    by being larger: rows beyond the tokenizer's stay unused."""

    tokenizer: ModelSection
    """The model whose tokenizer it takes."""

    @model_validator(mode="after")
    def _dense(self) -> Self:
        if self.shape.num_experts is not None:
            raise ValueError("shape.num_experts: a model from scratch is dense")
        if self.tokenizer.scratch is not None:
            raise ValueError("tokenizer: must name a model that exists")
        return self


class ModelSection(Section):
    """A model, such as the general one: exactly one of `artifact`, `path`, `hub`, `run`, `moe` and
    `scratch`."""

    former_keys: ClassVar = {"artefact": "artifact"}

    artifact: ArtifactSection | None = None
    """A GGUF file inside a package; it is converted to safetensors once."""

    path: Path | None = None
    """A local folder in the transformers layout."""

    hub: str | None = None
    """A repository of the Hugging Face hub, `org/name`."""

    run: str | None = None
    """The specialist of another recipe, as the command takes it (`NAME@variant@scale`); its stages
    run first where needed."""

    scratch: ScratchSection | None = None
    """No model yet: random weights, which the recipe pre-trains."""

    revision: str | None = None
    """Commit or tag of `hub`; pin it, so that a run can be repeated."""

    moe: MoeSection | None = None
    """A mixture of experts that is made first, out of dense models."""

    name: str | None = None
    """Public name, for reports and the model card; by default the hub name or the folder's."""

    license: str | None = None
    """Terms of the model; what is made from it inherits them."""

    shape: ShapeSection | None = None
    """Its measures, for a model that is not on this machine yet; a folder's own are read."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        refuse_unless_one(self, ("artifact", "path", "hub", "run", "moe", "scratch"))
        if self.revision is not None and self.hub is None:
            raise ValueError("revision belongs to hub, which is not given")
        return self


class SpecialistSection(Section):
    """A finished specialist, in place of one that the recipe trains: exactly one of `path`, `hub`,
    `run`, `artifact` and `adapter`."""

    path: Path | None = None
    """A local folder in the transformers layout."""

    hub: str | None = None
    """A repository of the Hugging Face hub, `org/name`."""

    run: str | None = None
    """The specialist of another recipe, as the command takes it (`NAME@variant@scale`); its stages
    run first where needed."""

    artifact: ArtifactSection | None = None
    """A GGUF file inside a package; it is converted to safetensors once."""

    adapter: str | None = None
    """A LoRA or DoRA of the general model as peft writes it: a local folder, or a repository of the
    hub. It is merged into the general model once."""

    strength: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    """How much of the adapter's change is added to the general model. Fractions below are what the
    sweep tries anyway; one above 1 lets it reach beyond the adapter as it was trained."""

    revision: str | None = None
    """Commit or tag of `hub`, or of an `adapter` on the hub; pin it, so that a run can be
    repeated."""

    name: str | None = None
    """Public name, for the model card; by default the hub name."""

    license: str | None = None
    """Terms of the model; what is made from it inherits them. A specialist without any is not
    published."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        refuse_unless_one(self, ("path", "hub", "run", "artifact", "adapter"))
        if self.revision is not None and self.hub is None and self.adapter is None:
            raise ValueError("revision belongs to hub or adapter, neither of which is given")
        if "strength" in self.model_fields_set and self.adapter is None:
            raise ValueError("strength belongs to adapter, which is not given")
        return self

    def as_model(self) -> ModelSection:
        """The same place as a model's; an adapter is none."""
        kept = ("path", "hub", "run", "artifact", "revision", "name", "license")
        return ModelSection(**{key: getattr(self, key) for key in kept})


MoeSection.model_rebuild()  # they and ModelSection hold each other
ScratchSection.model_rebuild()


def identity_of_model(model: ModelSection) -> dict[str, object]:
    """What a fetched model depends on: not what is only said of it, nor places it is not at.

    >>> sorted(identity_of_model(ModelSection(hub="org/name")))
    ['artifact', 'hub', 'license', 'name', 'path', 'revision']
    """
    values = model.model_dump(mode="json", exclude={"shape"})
    # Keys that came later are left out where unset: folders made before them stay up to date.
    later = {name for name in ("run", "moe", "scratch") if values[name] is None}
    return {name: value for name, value in values.items() if name not in later}


def depends_on_seed(model: ModelSection) -> bool:
    """Whether what is made of a section is another model with another seed.

    >>> depends_on_seed(ModelSection(hub="org/name"))
    False
    """
    if model.moe is None:
        return model.scratch is not None
    models = (model.moe.base, *model.moe.experts)
    is_random = model.moe.router == "random" or model.moe.noise_scale > 0.0
    return is_random or any(depends_on_seed(one) for one in models)


def shape_of(model: ModelSection) -> ShapeSection | None:
    """Measures of a recipe's general model, without fetching anything.

    Returns:
        What the folder's `config.json` says, else the recipe's `shape` or that of `scratch`, else
        None.

    Raises:
        ConfigError: the folder's `config.json` cannot be read.
    """
    if model.path is not None and (model.path / "config.json").is_file():
        return shape_of_folder(model.path)
    if model.moe is not None and model.shape is None:
        return _shape_of_mixture(model.moe)
    return model.scratch.shape if model.scratch is not None else model.shape


def _shape_of_mixture(section: MoeSection) -> ShapeSection | None:
    base = shape_of(section.base)
    if base is None or section.sparse_step > 1:  # the measures know leading dense layers only
        return None
    experts = {"num_experts": section.num_experts, "num_experts_per_tok": section.experts_per_token}
    shared = {"num_shared_experts": int(section.architecture == "qwen")}
    unknown = {"num_parameters": None, "num_active_parameters": None}
    return replace_values(base, **experts, **shared, **unknown)
