"""What a mixture of experts is to be made of: mergekit-moe's dialect. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from toolkit.load_yaml import load_yaml
from toolkit.section import PositiveInt, Section, parse_section

GateMode = Literal["hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random"]
RANDOM_GATES = ("random", "uniform_random")


class ExpertSection(Section):
    """A model whose feed-forward layers become one expert in every layer."""

    source_model: str
    """A folder or a name on the hub: `path[@revision][+adapter]`."""

    positive_prompts: tuple[str, ...] = ()
    """What should be routed to this expert."""

    negative_prompts: tuple[str, ...] = ()
    """What should not."""

    noise_scale: Annotated[float, Field(ge=0.0)] | None = None
    """Standard deviation of Gaussian noise added to the expert's tensors, seeded by their names, so
    that experts copied from one model may diverge in training."""

    residual_scale: float | None = None
    """Multiplies what the expert adds to the residual stream (its last projection)."""


class MoeConfig(Section):
    """Keys and meaning of `mergekit-moe` 0.1.5, with these deviations:

    - An unknown key is an error.
    - `hidden` is `hidden_avg`, the mean over a prompt's tokens; mergekit's `hidden` takes the last
      token (`hidden_last` in both). Prompts are run one by one, without padding.
    - Hidden states are what the router will see, after the norm before the feed-forward layer, and
      in float32; mergekit takes what enters the whole layer, in bfloat16.
    - Random rows and noise are seeded by the name of the tensor, not by the order of visits.
    - A base with a sliding window keeps it, so that the mixture computes what the base did.
    - Qwen2-MoE without `shared_experts` gets one that adds nothing (`residual_scale` 0); one that
      has no prompts has a gate of zeros, which lets half of it through.
    - Experts that are all the same model are allowed: that is upcycling, and needs training.
    - DeepSeek's layout is not made. `sparse_step` is ours.
    """

    base_model: str
    """Attention, norms and embeddings come from it, and hidden states for the router."""

    experts: Annotated[tuple[ExpertSection, ...], Field(min_length=1)]
    gate_mode: GateMode = "hidden"
    """Rows of the router: hidden states of the prompts at each layer, the mean of their token
    embeddings (`cheap_embed`), standard normal (`random`), or as a new linear layer begins."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type to write; by default the widest of the inputs'."""

    experts_per_token: PositiveInt = 2
    shared_experts: tuple[ExpertSection, ...] = ()
    """Experts that every token goes through; the Qwen2-MoE layout has one."""

    architecture: str | None = None
    """`mixtral`, `qwen` or `qwen3`; by default what suits the base."""

    sparse_step: PositiveInt = 1
    """Every how many layers one has experts (Qwen layouts); the others stay the base's."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.experts) < self.experts_per_token:
            raise ValueError(
                f"experts_per_token: {self.experts_per_token} of {len(self.experts)} experts; "
                "give more experts, or lower it"
            )
        if self.gate_mode in RANDOM_GATES:
            return self
        for number, expert in enumerate(self.experts):
            if not expert.positive_prompts:
                raise ValueError(
                    f"experts.{number}.positive_prompts: gate_mode {self.gate_mode} needs at least "
                    "one prompt for each expert; give some, or gate_mode: random"
                )
        prompt_pairs = {(e.positive_prompts, e.negative_prompts) for e in self.experts}
        if len(self.experts) > 1 and len(prompt_pairs) == 1:
            raise ValueError(
                "experts: all have the same prompts, so the router could not tell them apart; give "
                "each its own, or gate_mode: random"
            )
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """Every model once, the base first."""
        all_experts = (*self.experts, *self.shared_experts)
        return tuple(dict.fromkeys([self.base_model, *(e.source_model for e in all_experts)]))


def load_moe_config(path: Path) -> MoeConfig:
    """Read a configuration of `mergekit-moe`.

    Raises:
        ConfigError: one line for each fault, each at its key.
    """
    return parse_section(
        MoeConfig, load_yaml(path), where=str(path), what="mixture-of-experts configuration"
    )
