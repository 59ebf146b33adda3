"""What mixtures of experts look like on disk, as transformers reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.errors import MergeError
from toolkit.load_yaml import JsonObject, JsonView
from toolkit.merge.moe.config import MoeConfig

_ATTENTION = r"self_attn\.(?:q|k|v|o)_proj\.weight"
_NORMS = r"(?:input|post_attention)_layernorm\.weight"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""A dense feed-forward layer: `down_proj(act(gate_proj(x)) * up_proj(x))`."""


@dataclass(frozen=True)
class MoeLayout:
    """One way to lay out a mixture of experts.

    Attributes:
        name: mergekit's name of the layout.
        architecture: class in transformers.
        bases: model types that it can be made of.
        block: what stands in place of `mlp`.
        projections: names of an expert's tensors, in the order of `PROJECTIONS`.
        in_layer: pattern of what a layer has besides.
        shared: whether each layer has one shared expert.
        can_skip: whether layers without experts are possible.
    """

    name: str
    architecture: str
    bases: tuple[str, ...]
    block: str
    projections: tuple[str, str, str]
    in_layer: str
    shared: bool = False
    can_skip: bool = False

    def expert(self, layer: int, number: int, projection: str) -> str:
        """Name of one tensor of one expert."""
        own_name = self.projections[PROJECTIONS.index(projection)]
        return f"model.layers.{layer}.{self.block}.experts.{number}.{own_name}.weight"

    def router(self, layer: int) -> str:
        """Name of a layer's router, `[experts, hidden size]`."""
        return f"model.layers.{layer}.{self.block}.gate.weight"

    def shared_expert(self, layer: int, projection: str) -> str:
        return f"model.layers.{layer}.{self.block}.shared_expert.{projection}.weight"

    def shared_gate(self, layer: int) -> str:
        """Name of the gate of a layer's shared expert, `[1, hidden size]`."""
        return f"model.layers.{layer}.{self.block}.shared_expert_gate.weight"

    def takes(self, name: str) -> bool:
        """Whether a tensor of the base, outside its feed-forward layers, has a place here."""
        in_layer = rf"model\.layers\.\d+\.(?:{self.in_layer})"
        return re.fullmatch(rf"{_OUTSIDE}|{in_layer}", name) is not None


_OUTSIDE = r"model\.(?:embed_tokens|norm)\.weight|lm_head\.weight"
LAYOUTS = (
    MoeLayout(
        "Mixtral",
        "MixtralForCausalLM",
        ("llama", "mistral"),
        "block_sparse_moe",
        ("w1", "w3", "w2"),
        f"{_ATTENTION}|{_NORMS}",
    ),
    MoeLayout(
        "Qwen MoE",
        "Qwen2MoeForCausalLM",
        ("qwen2", "llama", "mistral"),
        "mlp",
        PROJECTIONS,
        rf"{_ATTENTION}|self_attn\.(?:q|k|v)_proj\.bias|{_NORMS}",
        shared=True,
        can_skip=True,
    ),
    MoeLayout(
        "Qwen3 MoE",
        "Qwen3MoeForCausalLM",
        ("qwen3",),
        "mlp",
        PROJECTIONS,
        rf"{_ATTENTION}|self_attn\.(?:q|k|v|o)_proj\.bias|self_attn\.(?:q|k)_norm\.weight|{_NORMS}",
        can_skip=True,
    ),
)


def choose_layout(config: MoeConfig, model_type: str) -> MoeLayout:
    """The layout that a configuration asks for, or that suits its base.

    Raises:
        MergeError: there is none; the message lists those there are.
    """
    wanted_name = (config.architecture or "").lower()
    named_layouts = [layout for layout in LAYOUTS if layout.name.lower().startswith(wanted_name)]
    if not named_layouts:
        raise MergeError(f"architecture: {config.architecture!r} is not made. {_known()}")
    fitting_layouts = [layout for layout in named_layouts if model_type in layout.bases]
    if config.shared_experts or config.sparse_step > 1:
        key = "shared_experts" if config.shared_experts else "sparse_step"
        able = [o for o in fitting_layouts if (o.shared if config.shared_experts else o.can_skip)]
        if fitting_layouts and not able:
            raise MergeError(f"{key}: {fitting_layouts[0].name} has no place for it. {_known()}")
        fitting_layouts = able
    if not fitting_layouts:
        raise MergeError(
            f"base_model: a {model_type!r} model has no counterpart"
            f"{f' in {named_layouts[0].name}' if wanted_name else ''}. {_known()}"
        )
    if len(config.shared_experts) > 1:
        raise MergeError(
            f"shared_experts: {fitting_layouts[0].name} has one (got {len(config.shared_experts)})."
        )
    return fitting_layouts[0]


def _known() -> str:
    lines = (f"{layout.name} of {', '.join(layout.bases)}" for layout in LAYOUTS)
    return f"Layouts: {'; '.join(lines)}."


def _refuse_sliding_window(layout: MoeLayout, base: JsonView) -> None:
    if base.get("use_sliding_window"):
        raise MergeError(
            f"base_model: has use_sliding_window in some layers, for which {layout.name} has no "
            "counterpart; set it to false, or give another base."
        )


def mixture_values(
    layout: MoeLayout,
    config: MoeConfig,
    base: JsonView,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
) -> JsonObject:
    """The config.json of the mixture.

    Args:
        layout: of it.
        config: numbers of experts.
        base: the base's configuration, defaults filled in.
        shapes: of the base's tensors.
        dtype: written, as torch calls it.

    Raises:
        MergeError: the base does something that the layout cannot.
    """
    import transformers

    _refuse_sliding_window(layout, base)
    config_class = getattr(transformers, layout.architecture).config_class
    known = set(config_class().to_dict()) - {"model_type", "architectures", "transformers_version"}
    # What the class does not know would be kept by transformers as an attribute that nothing reads.
    config_values = {key: value for key, value in base.items() if key in known}
    expert_width = int(shapes["model.layers.0.mlp.gate_proj.weight"][0])
    heads = int(base["num_attention_heads"])
    # Said outright: the class would derive it from hidden_size, which some bases do not hold to.
    config_values["head_dim"] = int(shapes["model.layers.0.self_attn.q_proj.weight"][0]) // heads
    config_values["sliding_window"] = base.get("sliding_window")
    config_values["num_experts_per_tok"] = config.experts_per_token
    if layout.name == "Mixtral":
        config_values["num_local_experts"] = len(config.experts)
    else:
        config_values |= {
            "num_experts": len(config.experts),
            "moe_intermediate_size": expert_width,
            "decoder_sparse_step": config.sparse_step,
            "norm_topk_prob": True,
            "use_sliding_window": False,
        }
    if layout.shared:
        config_values["shared_expert_intermediate_size"] = expert_width
        config_values["qkv_bias"] = "model.layers.0.self_attn.q_proj.bias" in shapes
    config_json = config_class(**config_values).to_dict()
    config_json.pop("_name_or_path", None)
    return {**config_json, "architectures": [layout.architecture], "dtype": dtype}
