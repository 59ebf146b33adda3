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
    moved = _moved_modules(base, left)
    lost = _lost_modules(base, [module for module in left if module not in moved])
    refused |= dict.fromkeys(lost, "peft takes its tensors for others' when it loads them")
    around = _around_others(parameters, [*left, *(name.rpartition(".")[0] for name in parameters)])
    refused |= dict.fromkeys(around, "peft would wrap a module around others that are adapted too")
    refused |= _refused_parameters(base, [name for name in parameters if name not in around])
    wanted = [name for name in parameters if name not in refused]
    wanted += [f"{module}.weight" for module in sorted(moved)]
    orders: dict[str, tuple[str, ...]] = {}
    swapped: set[str] = set()
    if wanted and (model := build_on_meta(base)) is not None:
        for path, wrapper in read_wrappers(_wrap(model, _parameter_config(wanted))).items():
            module = ".".join(part for part in path.split(".") if part != "base_layer")
            name = f"{module}.{wrapper.parameter_name}"
            orders[module] = (name, *orders.get(module, ()))  # the outermost comes first
            if wrapper._did_swap_in_out_features or wrapper.num_experts == 1:
                swapped.add(name)
    return Placement(refused, frozenset(moved), orders, frozenset(swapped))


def read_wrappers(adapted: Any) -> dict[str, Any]:
    """The parameters that a model of peft has wrapped, by their modules' paths."""
    from peft.tuners.lora.layer import ParamWrapper

    modules = adapted.get_base_model().named_modules()
    return {name: module for name, module in modules if isinstance(module, ParamWrapper)}


def _refused_modules(base: Path, modules: Sequence[str]) -> dict[str, str]:
    """Modules that peft puts no LoRA on, such as those whose weight is read by a kernel."""
    refused: dict[str, str] = {}
    left = list(modules)
    while left and (model := build_on_meta(base)) is not None:
        try:
            _wrap(model, _module_config(left))
            break
        except ValueError as error:
            words = _first_line(error)
            named = re.search(r"[Mm]odule '?([\w.]+)'?", words)
            lost = [m for m in left if named and (m == named[1] or m.endswith(f".{named[1]}"))]
            if not lost:
                break  # of another kind; the comparison at the end will say so
            refused |= dict.fromkeys(lost, words)
            left = [module for module in left if module not in refused]
    return refused


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

    moved: set[str] = set()
    for last in sorted({module.rpartition(".")[2] for module in modules}):
        named = [module for module in modules if module.rpartition(".")[2] == last]
        try:
            whole = _wrap(build_on_meta(base), _module_config(named)).get_base_model()
        except (ValueError, TypeError):
            moved |= set(named)
            continue
        adapted = {name for name, module in whole.named_modules() if isinstance(module, LoraLayer)}
        moved |= set(named) - adapted
    return moved


def _lost_modules(base: Path, modules: Sequence[str]) -> set[str]:
    """Modules whose factors peft would not find again in a file that it wrote itself.

    On loading it renames tensors as transformers renames the model's, by patterns that take some
    names in memory for names in files.
    """
    if not modules or (model := build_on_meta(base)) is None:
        return set()
    from peft import get_peft_model_state_dict

    try:
        whole = _wrap(model, _module_config(modules))
    except (ValueError, TypeError):
        return set()  # said elsewhere
    state = get_peft_model_state_dict(whole, save_embedding_layers=False)
    lost = set(state) - set(_as_loaded(whole, state))
    return {name.removeprefix(PREFIX).partition(".lora_")[0] for name in lost}


def _as_loaded(whole: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter's tensors by the names under which peft looks for them."""
    from peft.utils.transformers_weight_conversion import (
        convert_peft_adapter_state_dict_for_transformers,
    )

    config = whole.peft_config[_ADAPTER]
    found: dict[str, Any] = convert_peft_adapter_state_dict_for_transformers(
        whole, config, dict(state), _ADAPTER
    )
    return found


def _around_others(parameters: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Parameters of modules that hold other adapted modules: a wrapper would rename these.

    >>> _around_others(["h.0.mamba.x", "h.0.experts.up"], ["h.0.mamba.in_proj", "h.0.experts"])
    ['h.0.mamba.x']
    """
    above = {
        ".".join(parts[:end])
        for parts in (module.split(".") for module in modules)
        for end in range(1, len(parts))
    }
    return [name for name in parameters if name.rpartition(".")[0] in above]


def _refused_parameters(base: Path, parameters: Sequence[str]) -> dict[str, str]:
    """Parameters that peft cannot wrap; those of one kind in all layers are asked about at once."""
    if not parameters or build_on_meta(base) is None or not _reason(base, parameters):
        return {}
    kinds: dict[str, list[str]] = {}
    for name in parameters:
        kinds.setdefault(re.sub(r"\d+", "", name), []).append(name)
    reasons = {kind: _reason(base, names) for kind, names in kinds.items()}
    return {name: why for kind, why in reasons.items() if why for name in kinds[kind]}


def _reason(base: Path, parameters: Sequence[str]) -> str:
    """Why peft cannot wrap some parameters, or nothing."""
    try:
        found = read_wrappers(_wrap(build_on_meta(base), _parameter_config(parameters)))
    except (ValueError, TypeError) as error:
        return _first_line(error)
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
            wrapped = _wrap(model, LoraConfig.from_pretrained(str(folder)))
            state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
            lost = set(state) - set(_as_loaded(wrapped, state))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{base}: peft could not load the adapter ({_first_line(error)})."
        ) from error
    if lost:
        raise CheckpointError(
            f"{base}: peft could not load the adapter: it takes {sorted(lost)[0]} for another "
            "tensor's name. Leave the module out (--exclude)."
        )
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = {name: info.shape for name, info in read_header(folder / WEIGHTS_FILE).items()}
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"{base}: peft could not load the adapter: {name} is "
                f"{list(found[name]) if name in found else 'missing'}, and its settings ask for "
                f"{list(wanted[name]) if name in wanted else 'no such tensor'}. Leave the module "
                "out (--exclude)."
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
