"""What peft can load of an adapter, asked of peft itself on a model without memory."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checkpoint.loadable import build_on_meta
from toolkit.checkpoint.lora import PREFIX, WEIGHTS_FILE
from toolkit.checkpoint.read import read_header
from toolkit.errors import CheckpointError
from toolkit.library_errors import first_line

_ADAPTER = "default"


@dataclass(frozen=True)
class Placement:
    """How peft adapts what is to get factors.

    Attributes:
        refused: peft's reason, by the names of what it puts no LoRA on.
        moved: modules whose names peft takes for others' (the experts of older files), so that they
            are reached as parameters alone.
        parameters: parameters of each module that are adapted as such, in the order in which peft
            wraps them, by the module's name.
        swapped: those whose experts are `[outputs, inputs]`.
    """

    refused: Mapping[str, str]
    moved: frozenset[str]
    parameters: Mapping[str, tuple[str, ...]]
    swapped: frozenset[str]


def place_adapter(base: Path, modules: Sequence[str], parameters: Sequence[str]) -> Placement:
    """Ask peft what it can adapt of a model, and how.

    Args:
        base: folder of the model.
        modules: names of linear modules in memory.
        parameters: names of parameters with a matrix per expert, in memory.

    Returns:
        The answer; nothing is refused where transformers does not know the model.
    """
    refused = _refused_modules(base, modules)
    left = [module for module in modules if module not in refused]
    # peft decides by names, and what is adapted changes names: each question is asked of what the
    # ones before have left.
    moved_modules = _moved_modules(base, left)
    lost_modules = _lost_modules(base, [module for module in left if module not in moved_modules])
    refused |= dict.fromkeys(lost_modules, "peft takes its tensors for others' when it loads them")
    around = _around_others(parameters, [*left, *(name.rpartition(".")[0] for name in parameters)])
    refused |= dict.fromkeys(around, "peft would wrap a module around others that are adapted too")
    # Parameters last: whether peft wraps one depends on the modules that remain.
    refused |= _refused_parameters(base, [name for name in parameters if name not in around])
    wanted_parameters = [name for name in parameters if name not in refused]
    wanted_parameters += [f"{module}.weight" for module in sorted(moved_modules)]
    orders: dict[str, tuple[str, ...]] = {}
    swapped_names: set[str] = set()
    if wanted_parameters and (model := build_on_meta(base)) is not None:
        for wrapper_path, wrapper in read_wrappers(
            _wrap(model, _parameter_config(wanted_parameters))
        ).items():
            module = ".".join(part for part in wrapper_path.split(".") if part != "base_layer")
            name = f"{module}.{wrapper.parameter_name}"
            orders[module] = (name, *orders.get(module, ()))  # the outermost comes first
            if wrapper._did_swap_in_out_features or wrapper.num_experts == 1:
                swapped_names.add(name)
    return Placement(refused, frozenset(moved_modules), orders, frozenset(swapped_names))


def read_wrappers(adapted: Any) -> dict[str, Any]:
    """The parameters that a model of peft has wrapped, by their modules' paths."""
    from peft.tuners.lora.layer import ParamWrapper

    named_modules = adapted.get_base_model().named_modules()
    return {name: module for name, module in named_modules if isinstance(module, ParamWrapper)}


def _refused_modules(base: Path, modules: Sequence[str]) -> dict[str, str]:
    """Modules that peft puts no LoRA on, such as those whose weight is read by a kernel."""
    refusal_reasons: dict[str, str] = {}
    left_modules = list(modules)
    # A new model each time: peft wraps modules in place, and a refusal leaves some wrapped.
    while left_modules and (model := build_on_meta(base)) is not None:
        try:
            _wrap(model, _module_config(left_modules))
            break
        except ValueError as error:
            error_text = first_line(error)
            # peft names one module per error, by its last words or whole; ask again without it.
            named = re.search(r"[Mm]odule '?([\w.]+)'?", error_text)
            lost_modules = [
                m for m in left_modules if named and (m == named[1] or m.endswith(f".{named[1]}"))
            ]
            if not lost_modules:
                break  # of another kind; the comparison at the end will say so
            refusal_reasons |= dict.fromkeys(lost_modules, error_text)
            left_modules = [module for module in left_modules if module not in refusal_reasons]
    return refusal_reasons


def _moved_modules(base: Path, modules: Sequence[str]) -> set[str]:
    """Modules that peft no longer adapts under their own names.

    Where transformers has joined what were modules (`gate_proj` of every expert), peft takes every
    module of that last name for them, those that still are modules too.
    """
    if not modules or (model := build_on_meta(base)) is None:
        return set()
    from peft.tuners.lora.layer import LoraLayer

    try:
        whole = _wrap(model, _module_config(modules)).get_base_model()
    except (ValueError, TypeError):
        # peft names parts that are joined and not asked for; each last name by itself tells which.
        return _moved_one_by_one(base, modules)
    adapted = {name for name, module in whole.named_modules() if isinstance(module, LoraLayer)}
    return set(modules) - adapted


def _moved_one_by_one(base: Path, modules: Sequence[str]) -> set[str]:
    from peft.tuners.lora.layer import LoraLayer

    moved_modules: set[str] = set()
    for last_word in sorted({module.rpartition(".")[2] for module in modules}):
        named_modules = [module for module in modules if module.rpartition(".")[2] == last_word]
        try:
            whole = _wrap(build_on_meta(base), _module_config(named_modules)).get_base_model()
        except (ValueError, TypeError):
            moved_modules |= set(named_modules)
            continue
        adapted = {name for name, module in whole.named_modules() if isinstance(module, LoraLayer)}
        moved_modules |= set(named_modules) - adapted
    return moved_modules


def _lost_modules(base: Path, modules: Sequence[str]) -> set[str]:
    """Modules whose factors peft would not find again in a file that it wrote itself.

    On loading it renames tensors as transformers renames the model's, by patterns that take some
    names in memory for names in files.
    """
    if not modules or (model := build_on_meta(base)) is None:
        return set()
    from peft import get_peft_model_state_dict

    try:
        adapted_model = _wrap(model, _module_config(modules))
    except (ValueError, TypeError):
        return set()  # said elsewhere
    adapter_state = get_peft_model_state_dict(adapted_model, save_embedding_layers=False)
    lost_names = set(adapter_state) - set(_as_loaded(adapted_model, adapter_state))
    return {name.removeprefix(PREFIX).partition(".lora_")[0] for name in lost_names}


def _as_loaded(whole: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter's tensors by the names under which peft looks for them."""
    from peft.utils.transformers_weight_conversion import (
        convert_peft_adapter_state_dict_for_transformers,
    )

    adapter_config = whole.peft_config[_ADAPTER]
    loaded_state: dict[str, Any] = convert_peft_adapter_state_dict_for_transformers(
        whole, adapter_config, dict(state), _ADAPTER
    )
    return loaded_state


def _around_others(parameters: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Parameters of modules that hold other adapted modules: a wrapper would rename these.

    >>> _around_others(["h.0.mamba.x", "h.0.experts.up"], ["h.0.mamba.in_proj", "h.0.experts"])
    ['h.0.mamba.x']
    """
    outer_modules = {
        ".".join(parts[:num_words])
        for parts in (module.split(".") for module in modules)
        for num_words in range(1, len(parts))
    }
    return [name for name in parameters if name.rpartition(".")[0] in outer_modules]


def _refused_parameters(base: Path, parameters: Sequence[str]) -> dict[str, str]:
    """Parameters that peft cannot wrap; those of one kind in all layers are asked about at once."""
    if not parameters or build_on_meta(base) is None or not _reason(base, parameters):
        return {}
    names_by_kind: dict[str, list[str]] = {}
    for name in parameters:
        names_by_kind.setdefault(re.sub(r"\d+", "", name), []).append(name)
    reasons = {kind: _reason(base, names) for kind, names in names_by_kind.items()}
    return {name: why for kind, why in reasons.items() if why for name in names_by_kind[kind]}


def _reason(base: Path, parameters: Sequence[str]) -> str:
    """Why peft cannot wrap some parameters, or nothing."""
    try:
        found = read_wrappers(_wrap(build_on_meta(base), _parameter_config(parameters)))
    except (ValueError, TypeError) as error:
        return first_line(error)
    return "" if len(found) == len(parameters) else "peft finds no such parameter"


def refuse_unloadable_adapter(folder: Path, base: Path) -> None:
    """Refuse to finish an adapter whose tensors are not those that peft makes of its settings.

    Args:
        folder: of the adapter.
        base: folder of the model it belongs to; nothing is asked where transformers does not know
            it.

    Raises:
        CheckpointError: names the first tensor, or gives peft's reason.
    """
    if (model := build_on_meta(base)) is None:
        return
    from peft import LoraConfig, get_peft_model_state_dict

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped_model = _wrap(model, LoraConfig.from_pretrained(str(folder)))
            adapter_state = get_peft_model_state_dict(wrapped_model, save_embedding_layers=False)
            lost_names = set(adapter_state) - set(_as_loaded(wrapped_model, adapter_state))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{base}: peft could not load the adapter ({first_line(error)})."
        ) from error
    if lost_names:
        raise CheckpointError(
            f"{base}: peft could not load the adapter: it takes {sorted(lost_names)[0]} for "
            "another tensor's name. Leave the module out (--exclude)."
        )
    wanted_shapes = {name: tuple(tensor.shape) for name, tensor in adapter_state.items()}
    stored_shapes = {name: info.shape for name, info in read_header(folder / WEIGHTS_FILE).items()}
    for name in sorted({*wanted_shapes, *stored_shapes}):
        if wanted_shapes.get(name) != stored_shapes.get(name):
            raise CheckpointError(
                f"{base}: peft could not load the adapter: {name} is "
                f"{list(stored_shapes[name]) if name in stored_shapes else 'missing'}, and its "
                "settings ask for "
                f"{list(wanted_shapes[name]) if name in wanted_shapes else 'no such tensor'}. "
                "Leave the module out (--exclude)."
            )


def _module_config(modules: Sequence[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=1, target_modules=list(modules))


def _parameter_config(parameters: Sequence[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=1, target_modules=[], target_parameters=list(parameters))


def _wrap(model: Any, config: Any) -> Any:
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, config, adapter_name=_ADAPTER, low_cpu_mem_usage=True)
