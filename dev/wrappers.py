"""Every vision-language wrapper of transformers, built small and sent through every stage: a table.

    PYTHONPATH=. python dev/wrappers.py [MODEL_TYPE …]

Columns: what becomes the text side; how far packed documents are from each alone in training, and
scores from those of transformers; whether a step of training changes the text side alone and the
folder then loads as the wrapper and computes what was trained; how far a merge of the trained
wrapper with the general one in memory is from that on disk; and how far a merge with an adapter of
rank 3 is from what peft computes with it. Errors are relative; the last lines count.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from dev.architectures import ADAPTER_TOLERANCE, TOLERANCE, attempt
from tests.helpers.architectures import packed_error, random_documents, scored_error
from tests.helpers.wrappers import small_wrapper, wrapper_model_types
from toolkit.adapter.extract import run_extract
from toolkit.adapter.extract_plan import ExtractSettings
from toolkit.checkpoint.folder import save_model
from toolkit.checkpoint.load import load_causal_model
from toolkit.merge.config import parse_merge_config
from toolkit.merge.in_memory import LiveMerge
from toolkit.merge.in_memory_proof import why_not_live
from toolkit.merge.to_disk import run_merge
from toolkit.train.layout import packed
from toolkit.train.model import NextTokenLoss

Tensors = dict[str, torch.Tensor]


def stored_tensors(folder: Path) -> Tensors:
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def text_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.float().eval()(input_ids=random_documents()[0][None]).logits
    return logits


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def trained(model: Any, folder: Path, out: Path) -> str:
    """Take a step on all parameters of the text side, write it, and load the folder again."""
    module = NextTokenLoss(model, torch.float32)
    module.layout = "alone"
    (loss := module(*packed(random_documents()[:1]))).backward()
    rate = 0.01 / max(1.0, float(loss.detach()))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad.clamp(-1, 1))
                parameter.grad = None
    out.mkdir()
    save_model(model, out, dtype=torch.float32, like=folder)
    before, after = stored_tensors(folder), stored_tensors(out)
    if before.keys() != after.keys():
        return "OTHER TENSORS"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if not changed:
        return "NOTHING CHANGED"
    touched = [n for n in changed if any(word in n for word in ("vision", "visual", "image_"))]
    if touched:
        return f"TOWER CHANGED: {touched[0]}"
    loaded = AutoModelForImageTextToText.from_pretrained(out)
    error = distance(text_logits(loaded), text_logits(model))
    return f"{len(changed)} of {len(before)} {error:.0e}" + ("" if error < TOLERANCE else " WRONG")


def merged(folder: Path, other: Path, out: Path) -> str:
    """Merge two wrappers in memory and on disk, and compare both."""
    if why := why_not_live(folder):
        return f"refused: {why}"
    places = {"general": folder, "specialist": other}
    weights = dict(zip(places, (0.75, 0.25), strict=True))
    logits = []
    for names in ({n: n for n in places}, {n: str(path) for n, path in places.items()}):
        models = [{"model": names[n], "parameters": {"weight": w}} for n, w in weights.items()]
        config = parse_merge_config({"merge_method": "linear", "models": models}, where="dev")
        if names["general"] == "general":
            model = load_causal_model(folder, torch.float32)
            LiveMerge(places).apply(config, model)
        else:
            run_merge(config, out)
            model = AutoModelForImageTextToText.from_pretrained(out)
        logits.append(text_logits(model))
    error = distance(*logits)
    return f"{error:.0e}" + ("" if error < TOLERANCE else " WRONG")


@torch.no_grad()
def adapted(whole: Any, folder: Path, root: Path) -> str:
    """Extract an adapter of a tuned wrapper; merge with it, and load it by peft."""
    tuned, lora, out = (root / name for name in ("tuned", "lora", "adapted"))
    torch.manual_seed(3)
    for parameter in whole.parameters():
        if parameter.dim() > 1:
            parameter.add_(0.02 * torch.randn_like(parameter) * parameter.std().clamp(min=1e-3))
    whole.save_pretrained(tuned)
    run_extract(str(tuned), str(folder), lora, ExtractSettings(rank=3))
    config = {"merge_method": "passthrough", "models": [{"model": f"{folder}+{lora}"}]}
    run_merge(parse_merge_config(config, where="dev"), out)
    base = AutoModelForImageTextToText.from_pretrained(folder)
    expected = text_logits(PeftModel.from_pretrained(base, str(lora)))
    error = distance(text_logits(AutoModelForImageTextToText.from_pretrained(out)), expected)
    return f"{error:.0e}" + ("" if error < ADAPTER_TOLERANCE else " WRONG")


def cells(model_type: str, root: Path) -> list[str]:
    whole, fault = attempt(lambda: small_wrapper(model_type))
    if fault:
        return [fault.replace("raised", "not built:")]
    folder = root / "general"
    _, fault = attempt(lambda: whole.save_pretrained(folder))
    if fault:
        return [f"not saved by transformers: {fault}"]
    model, fault = attempt(lambda: load_causal_model(folder, torch.float32))
    if fault:
        return [fault]
    row = [type(model).__name__]
    for measure in (packed_error, scored_error):
        result, fault = attempt(lambda measure=measure: measure(model))
        cell = fault or f"{result[0]} {result[1]:.0e}"
        row.append(cell + (" WRONG" if not fault and result[1] >= TOLERANCE else ""))
    acts = (
        lambda: trained(model, folder, root / "trained"),
        lambda: merged(folder, root / "trained", root / "merged"),
        lambda: adapted(whole, folder, root),
    )
    for act in acts:
        result, fault = attempt(act)
        row.append(fault or result)
    return row


def kind_of(cell: str) -> str:
    if any(word in cell for word in ("WRONG", "CHANGED", "OTHER TENSORS")):
        return "WRONG"
    first = cell.split(" ")[0].rstrip(":")
    return first if first in ("refused", "raised", "not") else "right"


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    names = ("text side", "packed in training", "scored", "trained", "merged", "adapter")
    counts: Counter[str] = Counter()
    began = time.monotonic()
    print(f"| model | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for model_type in sys.argv[1:] or wrapper_model_types():
        with tempfile.TemporaryDirectory() as root:
            row = cells(model_type, Path(root))
        for name, cell in zip(names, row, strict=False):
            counts[f"{name}: {kind_of(cell)}"] += 1
        row += [""] * (len(names) - len(row))
        print(f"| {' | '.join([model_type, *row])} |", flush=True)
    print()
    for name, count in sorted(counts.items()):
        print(f"{name}: {count}")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
