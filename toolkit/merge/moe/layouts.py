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
        name: as mergekit calls it.
        architecture: class in transformers.
        bases: model types it can be made of.
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
        own = self.projections[PROJECTIONS.index(projection)]
        return f"model.layers.{layer}.{self.block}.experts.{number}.{own}.weight"

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
    wanted = (config.architecture or "").lower()
    named = [layout for layout in LAYOUTS if layout.name.lower().startswith(wanted)]
    if not named:
        raise MergeError(f"architecture: {config.architecture!r} is not made. {_known()}")
    fitting = [layout for layout in named if model_type in layout.bases]
    if config.shared_experts or config.sparse_step > 1:
        key = "shared_experts" if config.shared_experts else "sparse_step"
        able = [o for o in fitting if (o.shared if config.shared_experts else o.can_skip)]
        if fitting and not able:
            raise MergeError(f"{key}: {fitting[0].name} has no place for it. {_known()}")
        fitting = able
    if not fitting:
        raise MergeError(
            f"base_model: a {model_type!r} model has no counterpart"
            f"{f' in {named[0].name}' if wanted else ''}. {_known()}"
        )
    if len(config.shared_experts) > 1:
        raise MergeError(
            f"shared_experts: {fitting[0].name} has one (got {len(config.shared_experts)})."
        )
    return fitting[0]


def _known() -> str:
    lines = (f"{layout.name} of {', '.join(layout.bases)}" for layout in LAYOUTS)
    return f"Layouts: {'; '.join(lines)}."


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

    if base.get("use_sliding_window"):
        raise MergeError(
            f"base_model: has use_sliding_window in some layers, for which {layout.name} has no "
            "counterpart; set it to false, or give another base."
        )
    kind = getattr(transformers, layout.architecture).config_class
    known = set(kind().to_dict()) - {"model_type", "architectures", "transformers_version"}
    values = {key: value for key, value in base.items() if key in known}
    width = int(shapes["model.layers.0.mlp.gate_proj.weight"][0])
    heads = int(base["num_attention_heads"])
    values["head_dim"] = int(shapes["model.layers.0.self_attn.q_proj.weight"][0]) // heads
    values["sliding_window"] = base.get("sliding_window")
    values["num_experts_per_tok"] = config.experts_per_token
    if layout.name == "Mixtral":
        values["num_local_experts"] = len(config.experts)
    else:
        values |= {
            "num_experts": len(config.experts),
            "moe_intermediate_size": width,
            "decoder_sparse_step": config.sparse_step,
            "norm_topk_prob": True,
            "use_sliding_window": False,
        }
    if layout.shared:
        values["shared_expert_intermediate_size"] = width
        values["qkv_bias"] = "model.layers.0.self_attn.q_proj.bias" in shapes
    made = kind(**values).to_dict()
    made.pop("_name_or_path", None)
    return {**made, "architectures": [layout.architecture], "dtype": dtype}
