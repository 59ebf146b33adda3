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
from toolkit.library_errors import first_line
from toolkit.limits import refuse_beyond_memory
from toolkit.train.config import BlockExpansionSection, LoraSection, TrainSection


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
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError(
                "train.optimizer.embedding_lr_scale: 0 freezes the embeddings, and train.trainable "
                f"({', '.join(section.trainable)}) has nothing else; nothing would learn. Raise "
                "the one, or name more in the other."
            )
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
        raise ConfigError(f"train.lora.target_modules: {first_line(error)}") from error


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
    """Put a copy behind every n-th block; its outputs are zero, so that it adds nothing yet."""
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
    grown_from: list[int] = []
    copied_from: list[tuple[nn.Module, nn.Module]] = []
    for layer_index, layer in enumerate(layers):
        grown_layers.append(layer)
        grown_from.append(layer_index)
        if layer_index in copied_layers:
            new_block = copy.deepcopy(layer)
            # With these at zero the block adds nothing to the residual stream: training begins from
            # the model as it was.
            for output_name in _block_outputs(new_block, model):
                new_block.get_parameter(output_name).zero_()
            for parameter in new_block.parameters():
                parameter.requires_grad_(True)
            grown_layers.append(new_block)
            grown_from.append(layer_index)
            copied_from.append((new_block, layer))
    # Layers find their keys and values in a cache by these numbers.
    for layer_index, layer in enumerate(grown_layers):
        for part in layer.modules():
            if "layer_idx" in vars(part):
                vars(part)["layer_idx"] = layer_index
    model.base_model.layers = nn.ModuleList(grown_layers)
    model.config.num_hidden_layers = len(grown_layers)
    # What the configuration says layer by layer, such as `layer_types`.
    for name, values in list(vars(model.config).items()):
        if "layer" in name and isinstance(values, list) and len(values) == num_layers:
            setattr(model.config, name, [values[layer_index] for layer_index in grown_from])
    _refuse_what_reads_back_otherwise(model)
    if next(model.parameters()).is_meta:
        model.blocks_to_fill = copied_from
    else:
        refuse_active_blocks(model)
    return model


def _block_outputs(block: nn.Module, model: Any) -> list[str]:
    """Parameters that what a block adds to the residual stream is linear in: of each of its parts
    (attention, a gated block, experts) the last matrix into the stream, with its bias."""
    width = model.get_input_embeddings().weight.shape[1]
    parameters = dict(block.named_parameters())
    last_matrices: dict[str, str] = {}
    for name, parameter in parameters.items():
        if parameter.dim() >= 2 and parameter.shape[-2] == width:
            # A matrix is the `weight` of a module in a part, or stands in the part itself.
            part = name.removesuffix(".weight").rpartition(".")[0]
            last_matrices[part] = name
    biases = [f"{name.removesuffix('weight')}bias" for name in last_matrices.values()]
    return [*last_matrices.values(), *(name for name in biases if name in parameters)]


def _refuse_what_reads_back_otherwise(model: Any) -> None:
    """
    Raises:
        ConfigError: a model read from the grown model's configuration has other layers, as where
            a layer's kind follows from its number.
    """
    with torch.device("meta"):
        read_back = type(model)(copy.deepcopy(model.config))
    grown, again = (
        {name: _traits(part) for name, part in one.base_model.layers.named_modules()}
        for one in (model, read_back)
    )
    if grown != again:
        place = next(name for name in {**grown, **again} if grown.get(name) != again.get(name))
        raise ConfigError(
            f"train.block_expansion: in a {model.config.model_type} the kind of a layer follows "
            f"from its number, so that one more would be read back as another model (layers."
            f"{place}); drop train.block_expansion, or train with train.lora."
        )


def _traits(part: nn.Module) -> dict[str, object]:
    """What sets one module apart from others of its place, but for its values."""
    settings = {
        name: value
        for name, value in vars(part).items()
        if isinstance(value, (bool, int, float, str)) and name[0] != "_" and name != "training"
    }
    shapes = {name: parameter.shape for name, parameter in part.named_parameters(recurse=False)}
    return {"": type(part), **settings, **shapes}


@torch.no_grad()
def refuse_active_blocks(model: Any) -> None:
    """Try on a few tokens whether new blocks pass on what they are given, bit for bit.

    Args:
        model: a causal language model from `prepare_model`, in which new blocks alone learn.

    Raises:
        ConfigError: one changes it, so that training would begin from another model.
    """
    changing: list[nn.Module] = []

    def compare(block: nn.Module, given: Any, named: Any, output: Any) -> None:
        before = given[0] if given else named["hidden_states"]
        if not torch.equal(output[0] if isinstance(output, tuple) else output, before):
            changing.append(block)

    hooks = [
        layer.register_forward_hook(compare, with_kwargs=True)
        for layer in model.base_model.layers
        if any(parameter.requires_grad for parameter in layer.parameters())
    ]
    embedding = model.get_input_embeddings().weight
    probe_tokens = torch.arange(1, 9, device=embedding.device)[None] % embedding.shape[0]
    was_training = model.training
    model.eval()
    try:
        model(input_ids=probe_tokens, use_cache=False)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if changing:
        raise ConfigError(
            f"train.block_expansion: a new block of a {model.config.model_type} "
            f"({type(changing[0]).__name__}) cannot be made to add nothing, so that training would "
            "begin from another model; drop train.block_expansion, or train with train.lora."
        )


@torch.no_grad()
def fill_new_blocks(model: Any) -> None:
    """Give new blocks the values of those that they are copies of, where these were read after the
    blocks were made.

    Args:
        model: a causal language model from `prepare_model`, whose parameters were filled since.
    """
    for new_block, layer in vars(model).pop("blocks_to_fill", ()):
        values_by_name = dict(layer.named_parameters())
        outputs = _block_outputs(new_block, model)
        for name, parameter in new_block.named_parameters():
            value = values_by_name[name].detach().clone()
            if name in outputs:
                value.zero_()
            put_in_place(parameter, nn.Parameter(value, parameter.requires_grad))
