"""What of a model learns: everything, chosen parameters, adapters, or new blocks."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from toolkit.checkpoint.sharded_load import put_in_place
from toolkit.checkpoint.wrappers import wrapper_of
from toolkit.data.split import stable_unit
from toolkit.errors import ConfigError, sentence_end
from toolkit.limits import refuse_beyond_memory
from toolkit.train.config import BlockExpansionSection, LoraSection, TrainSection

_BLOCK_OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
"""Parameters that what a block adds to the residual stream is linear in."""


def prepare_model(model: Any, section: TrainSection, seed: int = 0) -> Any:
    """Make a model ready to be trained as the recipe says.

    Args:
        model: a causal language model with float32 parameters.
        section: `lora`, `block_expansion` or `trainable`.
        seed: of the run: the same seed gives adapters the same first values.

    Returns:
        The model to train: the same one, or one with blocks or adapters inside.

    Raises:
        ConfigError: a name in the recipe fits nothing in the model.
    """
    if section.lora is not None:
        return _with_adapters(model, section.lora, seed)
    if section.block_expansion is not None:
        return _with_new_blocks(model, section.block_expansion)
    names = [name for name, _ in model.named_parameters()]
    for pattern in section.trainable:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"train.trainable: no parameter fits {pattern!r}"
                f"{sentence_end(pattern, names)} "
                f"Names are like {names[min(len(names) - 1, 2)]}."
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, p) for p in section.trainable))
    if section.optimizer.embedding_lr_scale == 0.0:
        # Frozen, not trained at a rate of 0: their gradient would take memory and time, and count
        # in the norm that all are clipped by.
        for parameter in embeddings(model):
            parameter.requires_grad_(False)
    return model


def plain_model(model: Any) -> Any:
    """The causal language model inside, with whatever was put into it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def finished_model(model: Any) -> Any:
    """The trained model as plain weights: adapters are merged into them."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def embeddings(model: Any) -> list[nn.Parameter]:
    """Input and output embeddings, once where they are the same."""
    inner_model = plain_model(model)
    modules = [inner_model.get_input_embeddings(), inner_model.get_output_embeddings()]
    weights_by_id = {id(m.weight): m.weight for m in modules if m is not None}
    return list(weights_by_id.values())


def parameter_groups(
    model: Any, weight_decay: float, embedding_lr_scale: float = 1.0
) -> list[dict[str, object]]:
    """Decay matrices and embeddings; leave vectors (norms, biases) alone: decay would pull a norm
    to zero, not to one.

    Every group has an `lr_scale` that the schedule's rate is multiplied with.
    """
    embedding_ids = {id(p) for p in embeddings(model)} if embedding_lr_scale != 1.0 else set()
    learned_parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    other_parameters = [p for p in learned_parameters if id(p) not in embedding_ids]
    groups = [
        {"params": [p for p in other_parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in other_parameters if p.dim() < 2], "weight_decay": 0.0},
        {
            "params": [p for p in learned_parameters if id(p) in embedding_ids],
            "weight_decay": weight_decay,
            "lr_scale": embedding_lr_scale,
        },
    ]
    return [{"lr_scale": 1.0, **group} for group in groups if group["params"]]


def _with_adapters(model: Any, section: LoraSection, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha if section.alpha is not None else 2 * section.rank,
        lora_dropout=section.dropout,
        use_dora=section.dora,
        target_modules=list(section.target_modules) if section.target_modules else "all-linear",
        task_type="CAUSAL_LM",
    )
    linear_modules = (module for module in model.modules() if isinstance(module, nn.Linear))
    # peft makes adapters one by one; a rank that cannot even be held for one layer is a slip of the
    # pen.
    adapter_entries = section.rank * max(
        (sum(module.weight.shape) for module in linear_modules), default=0
    )
    refuse_beyond_memory(
        4 * adapter_entries, f"train.lora.rank: {section.rank:,}: an adapter of one layer"
    )
    try:
        # peft draws from the global generator, which goes on afterwards as if nothing had been
        # drawn.
        with _memory_of_one_entry(model), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(stable_unit(seed, "adapters") * 2**53))
            return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"train.lora.target_modules: {str(error).splitlines()[0]}") from error


@contextmanager
def _memory_of_one_entry(model: Any) -> Iterator[None]:
    """Let parameters without memory be on the CPU, all entries of each in one place.

    peft puts adapters where the model's parameters are: on the meta device they would lose the
    values that they begin with.
    """
    empty_parameters = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.is_meta
    ]
    for module, name, parameter in empty_parameters:
        # Expanded, so that a parameter of any shape takes the memory of one number.
        entry = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
        module._parameters[name] = nn.Parameter(entry, parameter.requires_grad)
    try:
        yield
    finally:
        for module, name, parameter in empty_parameters:
            parameter.requires_grad_(module._parameters[name].requires_grad)
            module._parameters[name] = parameter


@torch.no_grad()
def _with_new_blocks(model: Any, section: BlockExpansionSection) -> Any:
    """Put a copy behind every n-th block; its two outputs are zero, so that it adds nothing yet."""
    if wrapper_of(model) is not None:
        raise ConfigError(
            "train.block_expansion: this model is the text side of another one, and new blocks "
            "cannot be written back into that; drop train.block_expansion."
        )
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(
            "train.block_expansion: new blocks are known for models with `layers` only."
        )
    num_layers = len(layers)
    if section.num_blocks > num_layers:
        raise ConfigError(
            f"train.block_expansion.num_blocks: must be at most the model's {num_layers} (got "
            f"{section.num_blocks})."
        )
    # The last block of each of as many stretches, which differ by one block at most.
    copied_layers = {
        (layer_index + 1) * num_layers // section.num_blocks - 1
        for layer_index in range(section.num_blocks)
    }
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    grown_layers: list[nn.Module] = []
    layer_kinds = list(getattr(model.config, "layer_types", None) or [])
    new_kinds: list[str] = []
    copied_from: list[tuple[nn.Module, nn.Module]] = []
    for layer_index, layer in enumerate(layers):
        grown_layers.append(layer)
        new_kinds += layer_kinds[layer_index : layer_index + 1]
        if layer_index in copied_layers:
            new_block = copy.deepcopy(layer)
            # With these at zero the block adds nothing to the residual stream: training begins from
            # the model as it was.
            for output_name in _BLOCK_OUTPUTS:
                new_block.get_parameter(output_name).zero_()
            for parameter in new_block.parameters():
                parameter.requires_grad_(True)
            grown_layers.append(new_block)
            copied_from.append((new_block, layer))
            new_kinds += layer_kinds[layer_index : layer_index + 1]
    # Layers find their keys and values in a cache by these numbers.
    for layer_index, layer in enumerate(grown_layers):
        if hasattr(layer, "self_attn") and hasattr(layer.self_attn, "layer_idx"):
            layer.self_attn.layer_idx = layer_index
    model.base_model.layers = nn.ModuleList(grown_layers)
    model.config.num_hidden_layers = len(grown_layers)
    if layer_kinds:
        model.config.layer_types = new_kinds
    if next(model.parameters()).is_meta:
        model.blocks_to_fill = copied_from
    return model


@torch.no_grad()
def fill_new_blocks(model: Any) -> None:
    """Give new blocks the values of those that they are copies of, where these were read after the
    blocks were made.

    Args:
        model: a causal language model from `prepare_model`, whose parameters were filled since.
    """
    for new_block, layer in vars(model).pop("blocks_to_fill", ()):
        values_by_name = dict(layer.named_parameters())
        for name, parameter in new_block.named_parameters():
            value = values_by_name[name].detach().clone()
            if name in _BLOCK_OUTPUTS:
                value.zero_()
            put_in_place(parameter, nn.Parameter(value, parameter.requires_grad))
