"""What each layer of a model is, asked of transformers: of which type, dense or sparse, with which
window. A stack of moved layers must say the same of every layer in its new place.

Configs say it in many ways: a list with an entry per layer, a pattern that repeats, a number of
first layers, a list of layers. So the model is built on the meta device from its config and from
the merge's, layer by layer compared, and what the config says is changed until they agree.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checkpoint.loadable import build_on_meta
from toolkit.load_yaml import JsonObject, JsonView

Signature = Mapping[str, object]
"""Of one layer: types, shapes and plain attributes of its modules, by their paths."""

_INDEX = re.compile(r"layer_?(?:idx|id|index|number)$|^(?:idx|index)$")


@dataclass(frozen=True)
class LayerKinds:
    """The layers of one model.

    Attributes:
        layers: what each is.
        varying: paths at which layers of this model differ from each other.
    """

    layers: tuple[Signature, ...]
    varying: frozenset[str]


def derived_config(values: JsonView) -> JsonObject | None:
    """A config with all that transformers derives from it, such as a type for each layer.

    Returns:
        None where transformers does not know the model.
    """
    import transformers

    with tempfile.TemporaryDirectory() as config_folder:
        _write(config_folder, values)
        try:
            config = transformers.AutoConfig.from_pretrained(config_folder, trust_remote_code=False)
        except Exception:  # classes check their values in their own ways
            return None
    # By default values that equal the class's own are left out.
    config_json: JsonObject = json.loads(config.to_json_string(use_diff=False))
    return config_json


def read_layer_kinds(values: JsonView, stack: str, num_layers: int) -> LayerKinds | None:
    """Build a model on the meta device and look at its layers.

    Args:
        values: of its config.json.
        stack: prefix of the layers in the files, such as `model.layers`.
        num_layers: how many there are.

    Returns:
        None where transformers does not know the model, or the stack cannot be told from others.
    """
    with tempfile.TemporaryDirectory() as config_folder:
        _write(config_folder, values)
        model = build_on_meta(Path(config_folder))
    if model is None or (stack_layers := _find_stack(model, stack, num_layers)) is None:
        return None
    signatures = [dict(_signature(layer)) for layer in stack_layers]
    # A layer's own number differs everywhere and says nothing of its kind.
    index_paths = {path for path in signatures[0] if _is_index(path, signatures)}
    for signature in signatures:
        for path in index_paths:
            signature.pop(path, None)
    paths = {path for signature in signatures for path in signature}
    varying = {path for path in paths if len({repr(s.get(path, "-")) for s in signatures}) > 1}
    return LayerKinds(tuple(signatures), frozenset(varying))


def differing_layers(
    wanted: Sequence[tuple[LayerKinds, int]], found: LayerKinds
) -> list[tuple[int, str]]:
    """Layers that are not what they were.

    Args:
        wanted: for each layer of the merge the model it comes from, and its place there.
        found: layers of the merge by its config.

    Returns:
        Number of each such layer, and the path of the first difference. What is the same for all
        layers of every model is no kind of layer, and is passed over.
    """
    varying_paths = set(found.varying).union(*(kinds.varying for kinds, _ in wanted))
    differing_numbers: list[tuple[int, str]] = []
    for layer_number, ((kinds, layer), own) in enumerate(zip(wanted, found.layers, strict=True)):
        was = kinds.layers[layer]
        path = next((p for p in sorted(varying_paths) if was.get(p, "-") != own.get(p, "-")), None)
        if path is not None:
            differing_numbers.append((layer_number, path))
    return differing_numbers


def _write(folder: str, values: JsonView) -> None:
    # Quantized configs ask for packages that need not be there; shapes on the meta device do not.
    plain_values = {key: value for key, value in values.items() if key != "quantization_config"}
    (Path(folder) / "config.json").write_text(json.dumps(plain_values), encoding="utf-8")


def _find_stack(model: Any, stack: str, num_layers: int) -> Any | None:
    """The list of layers whose name in memory ends most like the stack's in the files."""
    import torch

    module_lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers
    }
    last_word = stack.rpartition(".")[2]
    module_lists = {
        n: m for n, m in module_lists.items() if n.rpartition(".")[2] == last_word
    } or module_lists
    if stack in module_lists:
        return module_lists[stack]
    common = {name: len(set(name.split(".")) & set(stack.split("."))) for name in module_lists}
    best_names = [name for name in module_lists if common[name] == max(common.values())]
    return module_lists[best_names[0]] if len(best_names) == 1 else None


def _signature(layer: Any) -> Iterator[tuple[str, Any]]:
    for path, module in layer.named_modules():
        yield f"{path}:", type(module).__name__
        for tensor_name, tensor in (*module._parameters.items(), *module._buffers.items()):
            yield f"{path}.{tensor_name}", None if tensor is None else tuple(tensor.shape)
        for attribute, value in vars(module).items():
            is_plain = value is None or isinstance(value, (bool, int, float, str))
            if is_plain and not attribute.startswith("_") and attribute != "training":
                yield f"{path}.{attribute}", value


def _is_index(path: str, signatures: Sequence[Signature]) -> bool:
    """Whether an attribute is the layer's own number."""
    if _INDEX.search(path.rpartition(".")[2]):
        return True
    values_by_layer = [signature.get(path) for signature in signatures]
    integer_values = [v for v in values_by_layer if isinstance(v, int) and not isinstance(v, bool)]
    if len(values_by_layer) < 2 or len(integer_values) < len(values_by_layer):
        return False
    # Under whatever name: it rises by one from layer to layer.
    return all(value - number == integer_values[0] for number, value in enumerate(integer_values))


def layer_candidates(
    part: JsonView, origin: Sequence[int], num_layers: int
) -> Iterator[JsonObject]:
    """Changes of a config that may say where its layers have gone, from likely to less so.

    Args:
        part: the config of the stack as it was, with all that is derived from it.
        origin: the old number of each layer.
        num_layers: that there were.
    """
    for key, value in part.items():
        if isinstance(value, list) and value and _are_layers(value, num_layers):
            yield {key: [new for new, old in enumerate(origin) if old in value]}
    for key, value in part.items():
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= num_layers:
            # The number may count from the front (first k dense) or from the back (windowed ones
            # last).
            first_layers = sum(old < value for old in origin)
            last_layers = sum(old >= num_layers - value for old in origin)
            yield from ({key: number} for number in dict.fromkeys((first_layers, last_layers)))


def _are_layers(values: Sequence[Any], num_layers: int) -> bool:
    are_numbers = all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    return are_numbers and sorted(set(values)) == values and values[-1] < num_layers


def fit_config(
    part: JsonObject,
    candidates: Sequence[JsonView],
    count_differing: Callable[[], int],
) -> int:
    """Change a config as long as it brings layers nearer to what they were.

    Args:
        part: changed in place.
        candidates: changes to try, each kept where it helps.
        count_differing: how many layers differ by the config as it stands.

    Returns:
        How many differ in the end.
    """
    num_differing = count_differing()
    for change in candidates:
        if num_differing == 0:
            break
        old_values = {key: part[key] for key in change if key in part}
        part.update(change)
        if (new_count := count_differing()) < num_differing:
            num_differing = new_count
            continue
        # No nearer: what the change brought goes, keys that were not there too.
        for key in change:
            part.pop(key)
        part.update(old_values)
    return num_differing
