"""Every causal language model of transformers, built small and sent through every stage: a table.

    PYTHONPATH=. python dev/architectures.py [MODEL_TYPE …]

Columns: the layout in which packed documents are trained on, and how far their loss is from that of
each alone; how texts are scored, and how far scores are from those of transformers for each text
alone; whether a merge of the model with itself in memory reproduces it; whether a merge on disk
does, and loads; and how far a merge with an adapter of rank 3, extracted from a tuned model, is
from what peft computes with it. Errors are relative; the last lines count.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers.utils import logging

from tests.helpers.architectures import (
    causal_model_types,
    live_fault,
    packed_error,
    random_documents,
    scored_error,
    small_model,
)
from toolkit.adapter.extract import run_extract
from toolkit.adapter.extract_plan import ExtractSettings
from toolkit.errors import ToolkitError
from toolkit.merge.config import parse_merge_config
from toolkit.merge.to_disk import run_merge

TOLERANCE = 1e-5
ADAPTER_TOLERANCE = 1e-4
"""Of logits one by one, not of a loss: rounding of factors weighs more."""


def attempt(act: Callable[[], Any]) -> tuple[Any, str]:
    """What is returned, or how it is refused or raised."""
    try:
        return act(), ""
    except ToolkitError as error:
        return None, f"refused: {first_line(error)}"
    except Exception as error:
        return None, f"raised {type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:110]


def merged_on_disk(model: Any, folder: Path, out: Path) -> str:
    """Whether a merge with itself on disk loads, and is the model.

    Loaded by the model's own class: transformers' table of classes lacks the text sides of some
    wrappers (emu3, mllama), which stand alone here only.
    """
    halves = [{"model": str(folder), "parameters": {"weight": 0.5}}] * 2
    run_merge(parse_merge_config({"merge_method": "linear", "models": halves}, where="dev"), out)
    one, other = (type(model).from_pretrained(f).state_dict() for f in (folder, out))
    return "same" if all(torch.equal(one[name], other[name]) for name in one) else "DIFFERS"


@torch.no_grad()
def adapter_error(model: Any, folder: Path) -> float:
    """Largest relative error of logits; the model is changed, to be the tuned one."""
    tuned, lora, out = (folder.with_suffix(f".{name}") for name in ("tuned", "lora", "out"))
    model.save_pretrained(folder)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.add_(0.02 * torch.randn_like(parameter) * parameter.std().clamp(min=1e-3))
    model.save_pretrained(tuned)
    run_extract(str(tuned), str(folder), lora, ExtractSettings(rank=3))
    whole = {"merge_method": "passthrough", "models": [{"model": f"{folder}+{lora}"}]}
    run_merge(parse_merge_config(whole, where="dev"), out)
    tokens = random_documents()[0][None]
    adapted = PeftModel.from_pretrained(type(model).from_pretrained(folder), str(lora))
    merged = type(model).from_pretrained(out)
    expected, found = (
        one.float().eval()(input_ids=tokens, use_cache=False).logits for one in (adapted, merged)
    )
    return float((found - expected).abs().max() / expected.abs().max())


def cells(model_type: str, root: Path, counts: Counter[str]) -> list[str]:
    model, fault = attempt(lambda: small_model(model_type))
    if fault:
        counts["not built"] += 1
        return [fault, "", "", "", ""]
    found = []
    for name, measure in (("packed", packed_error), ("scored", scored_error)):
        result, fault = attempt(lambda measure=measure: measure(model))
        if fault:
            cell = fault
        else:
            cell = f"{result[0]} {result[1]:.0e}"
            cell += "" if result[1] < TOLERANCE else " WRONG"
        counts[f"{name}: {'WRONG' if 'WRONG' in cell else cell.split(' ')[0]}"] += 1
        found.append(cell)
    folder, out = root / model_type, root / f"{model_type}.merged"
    why, fault = attempt(lambda: live_fault(model, folder))
    found.append(fault or why or "same")
    counts[f"live: {'same' if found[-1] == 'same' else 'not'}"] += 1
    same, fault = attempt(lambda: merged_on_disk(model, folder, out))
    found.append(fault or same)
    counts[f"disk: {'same' if found[-1] == 'same' else 'not'}"] += 1
    error, fault = attempt(lambda: adapter_error(model, root / "base"))
    found.append(fault or f"{error:.0e}" + ("" if error < ADAPTER_TOLERANCE else " WRONG"))
    kind = "WRONG" if "WRONG" in found[-1] else fault.split(" ")[0] if fault else "same"
    counts[f"adapter: {kind}"] += 1
    return found


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    began = time.monotonic()
    print("| model | packed in training | scored | merged live | merged on disk | adapter |")
    print("|---|---|---|---|---|---|")
    for model_type in sys.argv[1:] or causal_model_types():
        with tempfile.TemporaryDirectory() as root:
            row = cells(model_type, Path(root), counts)
        print(f"| {' | '.join([model_type, *row])} |", flush=True)
    print()
    for name, count in sorted(counts.items()):
        print(f"{name}: {count}")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
