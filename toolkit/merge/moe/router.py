"""Rows of the routers: what each expert is to be given.

Legend: L layers with experts, E experts, D hidden size, T tokens of a prompt.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.checkpoint.models import Models
from toolkit.errors import MergeError
from toolkit.merge.moe.config import RANDOM_GATES, ExpertSection, MoeConfig
from toolkit.merge.moe.plan import MoePlan
from toolkit.tokenizer_files import load_tokenizer

_ALIKE = 0.999
"""Cosine above which two rows of a router are said to be too alike."""


def generator_of(seed: int, name: str) -> torch.Generator:
    """A generator that depends on the seed and the tensor's name alone."""
    name_digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    # A shift, as manual_seed takes 63 bits as a positive number.
    return torch.Generator().manual_seed(int.from_bytes(name_digest[:8], "little") >> 1)


def router_rows(
    config: MoeConfig, plan: MoePlan, models: Models, *, seed: int
) -> dict[str, Tensor]:
    """The rows of every router and gate of a plan, by name: `[E, D]` or `[1, D]`, float32.

    Rows from prompts have unit length: the mean over positive prompts less that over negative ones.

    Raises:
        MergeError: the base has no tokenizer, or its hidden states are not finite.
    """
    router_tensors = [tensor for tensor in plan.tensors if tensor.source is None]
    if config.gate_mode in RANDOM_GATES:
        rows: dict[str, Tensor] = {}
        for tensor in router_tensors:
            generator = generator_of(seed, tensor.name)
            if config.gate_mode == "random":
                rows[tensor.name] = torch.randn(tensor.shape, generator=generator)
            else:
                uniform_bound = math.sqrt(1.0 / tensor.shape[1])
                uniform_draws = torch.rand(tensor.shape, generator=generator)
                rows[tensor.name] = uniform_draws * (2 * uniform_bound) - uniform_bound
        return _without_prompts(config, plan, rows)
    prompt_reader = _Reader(config, plan, models)
    expert_rows = torch.stack([prompt_reader.rows(expert) for expert in config.experts], dim=1)
    place = {layer: number for number, layer in enumerate(plan.sparse_layers)}
    rows = {t.name: expert_rows[place[t.layer]] for t in router_tensors if not t.is_shared}
    if config.shared_experts and config.shared_experts[0].positive_prompts:
        shared_rows = prompt_reader.rows(config.shared_experts[0])
        rows |= {t.name: shared_rows[place[t.layer]][None] for t in router_tensors if t.is_shared}
    return _without_prompts(config, plan, rows)


def _without_prompts(
    config: MoeConfig, plan: MoePlan, rows: dict[str, Tensor]
) -> dict[str, Tensor]:
    """A shared expert without prompts has a gate of zeros: half of it is let through."""
    if config.shared_experts and config.shared_experts[0].positive_prompts:
        return rows
    shared_gates = [t for t in plan.tensors if t.source is None and t.is_shared]
    return {**rows, **{t.name: torch.zeros(t.shape) for t in shared_gates}}


def alike_layers(plan: MoePlan, rows: dict[str, Tensor]) -> list[int]:
    """Layers in which two experts have nearly the same row, so that one of them will starve."""
    alike_numbers = []
    for tensor in plan.tensors:
        if tensor.source is not None or tensor.is_shared or tensor.shape[0] < 2:
            continue
        unit_rows = torch.nn.functional.normalize(rows[tensor.name], dim=1)
        row_cosines = (unit_rows @ unit_rows.T).fill_diagonal_(-1.0)
        if float(row_cosines.max()) > _ALIKE:
            alike_numbers.append(tensor.layer)
    return alike_numbers


class _Reader:
    """Turns prompts into vectors by the base model."""

    def __init__(self, config: MoeConfig, plan: MoePlan, models: Models) -> None:
        self._mode, self._layers = config.gate_mode, plan.sparse_layers
        tokenizer_folder = models.token_folder(config.base_model)
        try:
            self._tokenizer = load_tokenizer(tokenizer_folder)
        except (OSError, ValueError, KeyError) as error:
            raise MergeError(
                f"{tokenizer_folder}: has no tokenizer to read the prompts with; put it there, or "
                "give gate_mode: random."
            ) from error
        self._model: Any = None
        self._embedding: Tensor | None = None
        checkpoint = models.checkpoint(config.base_model)
        if self._mode == "cheap_embed":
            self._embedding = checkpoint.tensor("model.embed_tokens.weight")
            return
        from toolkit.checkpoint.adapted import AdaptedCheckpoint
        from toolkit.checkpoint.load import load_causal_model

        self._model = load_causal_model(checkpoint.folder, torch.float32).eval()
        if isinstance(checkpoint, AdaptedCheckpoint):
            # The folder holds the model under the adapter; what the adapter changes is put in here.
            model_tensors = self._model.state_dict()
            for tensor_name in checkpoint.names:
                model_tensors[tensor_name].copy_(checkpoint.tensor(tensor_name))

    def rows(self, expert: ExpertSection) -> Tensor:
        """`[L, D]`, each row of unit length."""
        prompt_rows = self._mean(expert.positive_prompts)
        if expert.negative_prompts:
            prompt_rows = prompt_rows - self._mean(expert.negative_prompts)
        if not bool(torch.isfinite(prompt_rows).all()):
            raise MergeError("base_model: its hidden states for the prompts are not finite.")
        unit_rows: Tensor = prompt_rows / prompt_rows.norm(dim=-1, keepdim=True).clamp(min=1e-8)
        return unit_rows

    def _mean(self, prompts: Sequence[str]) -> Tensor:
        return torch.stack([self._states(prompt) for prompt in prompts]).mean(dim=0)

    def _states(self, prompt: str) -> Tensor:
        """One prompt as `[L, D]`."""
        # The begin token once and no end token, whatever the tokenizer would add by itself.
        text = (self._tokenizer.bos_token or "") + prompt
        tokens = self._tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        if tokens.numel() == 0:
            raise MergeError(f"positive_prompts: {prompt!r} has no tokens.")
        if self._embedding is not None:
            mean_embedding: Tensor = self._embedding[tokens[0]].float().mean(dim=0)
            return mean_embedding.expand(len(self._layers), -1)
        seen: dict[int, Tensor] = {}

        # A function of its own, as a hook made in the loop would remember the loop's last layer.
        def keep(layer: int) -> Any:
            def hook(_: Any, arguments: tuple[Tensor, ...]) -> None:
                states = arguments[0][0].float()  # [T, D], what the router will be given
                seen[layer] = states[-1] if self._mode == "hidden_last" else states.mean(dim=0)

            return hook

        model_layers = self._model.base_model.layers
        layer_hooks = [model_layers[n].mlp.register_forward_pre_hook(keep(n)) for n in self._layers]
        try:
            with torch.no_grad():
                self._model.base_model(input_ids=tokens, use_cache=False)
        finally:
            for hook in layer_hooks:
                hook.remove()
        return torch.stack([seen[layer] for layer in self._layers])
