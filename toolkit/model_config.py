"""What a recipe says about the general model. No torch here, and nothing slow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from toolkit.config import PositiveInt, Section, parse_section
from toolkit.data.source_config import ArtefactSection
from toolkit.errors import ConfigError
from toolkit.model_values import read_model_values

Width = Annotated[int, Field(gt=0, lt=1 << 31)]


class ShapeSection(Section):
    """Measures of a decoder-only model, named as in transformers' `config.json`.

    They let a recipe be checked, and its cost be planned, before its model is fetched.
    """

    hidden_size: Width
    num_hidden_layers: Annotated[int, Field(gt=0, le=10_000)]
    num_attention_heads: Width
    intermediate_size: Width
    """Width of the feed-forward layer; of those layers without experts where there are some."""

    vocab_size: Width
    max_position_embeddings: Width
    """Longest sequence the model was made for, in tokens."""

    num_key_value_heads: Width | None = None
    """By default as many as attention heads."""

    head_dim: Width | None = None
    """By default `hidden_size` / `num_attention_heads`."""

    tie_word_embeddings: bool = False
    """Whether the output head is the input embedding."""

    num_experts: Width | None = None
    """Experts of a layer, for a mixture of experts."""

    num_experts_per_tok: Width | None = None
    """Experts that a token goes through."""

    moe_intermediate_size: Width | None = None
    """Width of one expert; by default `intermediate_size`."""

    num_shared_experts: Annotated[int, Field(ge=0)] = 0
    """Experts that every token goes through, besides."""

    num_dense_layers: Annotated[int, Field(ge=0)] = 0
    """First layers that have no experts."""

    rope_theta: Annotated[float, Field(gt=0.0)] = 10_000.0
    """Base of the rotary positions."""

    num_parameters: PositiveInt | None = None
    """Published total, where the measures above do not give it (attention of another kind)."""

    num_active_parameters: PositiveInt | None = None
    """Published number that one token uses, likewise."""

    @model_validator(mode="after")
    def _experts(self) -> Self:
        if (self.num_experts is None) != (self.num_experts_per_tok is None):
            raise ValueError("give num_experts and num_experts_per_tok together")
        if self.num_experts is not None and (self.num_experts_per_tok or 0) > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok: {self.num_experts_per_tok} of {self.num_experts} experts"
            )
        return self


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
    """A model, such as the general one: exactly one of `artefact`, `path`, `hub`, `run`, `moe` and
    `scratch`."""

    artefact: ArtefactSection | None = None
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
        places = ("artefact", "path", "hub", "run", "moe", "scratch")
        given = [name for name in places if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(places)} (got {', '.join(given) or 'none'})"
            )
        if self.revision is not None and self.hub is None:
            raise ValueError("revision belongs to hub, which is not given")
        return self


MoeSection.model_rebuild()  # they and ModelSection hold each other
ScratchSection.model_rebuild()


def identity_of_model(model: ModelSection) -> dict[str, Any]:
    """What a fetched model depends on: not what is only said of it, nor places it is not at.

    >>> sorted(identity_of_model(ModelSection(hub="org/name")))
    ['artefact', 'hub', 'license', 'name', 'path', 'revision']
    """
    values = model.model_dump(mode="json", exclude={"shape"})
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
    return base.model_copy(update={**experts, **shared, **unknown})


def _mapping(values: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: {key}: must hold keys and values (got {found!r:.60}).")
    return found


def shape_of_folder(folder: Path) -> ShapeSection:
    """Measures of a model folder, from its `config.json`.

    Raises:
        ConfigError: it cannot be read, or lacks a measure.
    """
    path = folder / "config.json"
    values: dict[str, Any] = dict(read_model_values(folder, ConfigError))
    values |= _mapping(values, "text_config", path)
    rope = _mapping(values, "rope_parameters", path)
    # What Mixtral, Qwen and DeepSeek call the same things.
    other = {
        "num_experts": ("num_local_experts", "n_routed_experts"),
        "num_shared_experts": ("n_shared_experts",),
        "num_dense_layers": ("first_k_dense_replace",),
    }
    for name, others in other.items():
        values.setdefault(name, next((values[o] for o in others if o in values), None))
    values.setdefault("rope_theta", rope.get("rope_theta"))
    if values["num_shared_experts"] is None and values.get("shared_expert_intermediate_size"):
        width = values.get("moe_intermediate_size") or values["intermediate_size"]
        values["num_shared_experts"] = values["shared_expert_intermediate_size"] // max(1, width)
    known = {
        name: values[name] for name in ShapeSection.model_fields if values.get(name) is not None
    }
    if "num_experts" not in known:
        known.pop("num_experts_per_tok", None)
    return parse_section(ShapeSection, known, where=str(path), what="model configuration")
