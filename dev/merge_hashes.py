"""sha256 of what merge configurations write, to hold a refactor to the same bytes.

    python dev/merge_hashes.py > before.json     # on the code as it was
    python dev/merge_hashes.py > after.json      # on the code as it is now
    diff before.json after.json

Every method, in each stored type that has arithmetic of its own, with the options that choose
another kernel, on models that are tiny but for some tensors that are larger than what is ranked
whole, and others that are larger than a block. Run it again with `NUMBA_CPU_NAME` and
`NUMBA_CPU_FEATURES` set, or with `--without-numba`, for the same kernels on another processor or
none at all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from toolkit.merge.config import parse_merge_config
from toolkit.merge.registry import all_methods
from toolkit.merge.to_disk import run_merge

HIDDEN, VOCABULARY = 64, 8203
SHAPES = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
    "model.layers.0.input_layernorm.weight": (HIDDEN,),
    "model.layers.0.mlp.up_proj.weight": (1200, HIDDEN),
    "model.layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "model.layers.1.input_layernorm.weight": (HIDDEN,),
    "model.layers.1.mlp.up_proj.weight": (1200, HIDDEN),
    "model.layers.1.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "lm_head.weight": (VOCABULARY, HIDDEN),
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}

REQUIRED: dict[str, dict[str, Any]] = {
    "nearswap": {"t": 0.002},
    "slerp": {"t": 0.35},
    "sce": {"select_topk": 0.4},
    "ramplus_tl": {"r": 0.2},
}
"""Parameters of a whole merge, for methods that need some or do nothing by default."""

TWO_MODELS = {"slerp", "nearswap", "arcee_fusion"}
"""Methods that join a base and one model."""

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"normalize": False}),
    ("task_arithmetic", {"normalize": True, "lambda": 0.7}),
    ("ties", {"normalize": False, "lambda": 1.3}),
    ("ties", {"rescale": True}),
    ("breadcrumbs", {"normalize": True, "rescale": True}),
    ("breadcrumbs_ties", {"normalize": True}),
    ("dare_linear", {"normalize": True}),
    ("dare_ties", {"normalize": True, "rescale": False}),
    ("della", {"normalize": False, "rescale": False}),
    ("nuslerp", {"nuslerp_flatten": False}),
]
"""Options that choose another kernel, or none."""


def write_models(folder: Path) -> None:
    """`base`, `a`, `b` and `c` in every type; in bfloat16 many task vectors' entries tie."""
    for model, name in enumerate(("base", "a", "b", "c")):
        for dtype_name, dtype in DTYPES.items():
            generator = torch.Generator().manual_seed(0)
            state = {}
            for key, shape in SHAPES.items():
                tensor = torch.randn(shape, generator=generator) * 0.02
                own = torch.Generator().manual_seed(model)
                if model:
                    tensor += torch.randn(shape, generator=own) * 0.003
                state[key] = tensor.to(dtype)
            path = folder / f"{name}-{dtype_name}"
            path.mkdir()
            save_file(state, path / "model.safetensors")
            config = {
                # One that no library knows: its odd tensors would not load as any other.
                "model_type": "made_up",
                "hidden_size": HIDDEN,
                "num_hidden_layers": 2,
                "vocab_size": VOCABULARY,
                "dtype": dtype_name,
            }
            (path / "config.json").write_text(json.dumps(config))
            write_tokenizer(path, number=model)


def write_tokenizer(folder: Path, *, number: int) -> None:
    """Words that all models know, and some that only one does."""
    size, own = VOCABULARY, 8
    words = [f"w{index}" for index in range(size - own)]
    words += [f"of{number}_{index}" for index in range(own)]
    vocabulary = {word: index for index, word in enumerate(words)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="w0")).save(str(folder / "tokenizer.json"))  # noqa: S106
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def configuration(
    method: str, dtype: str, names: tuple[str, ...] = ("a", "b"), **options: Any
) -> dict[str, Any]:
    """A merge by a method of models stored in a type."""
    found = all_methods()[method]
    per_model = {"weight": (0.6, -0.25, 0.3), "density": (0.5, 0.3, 0.8), "gamma": (0.01, 0.1, 0)}
    if method in {"nuslerp", "multislerp", "karcher"}:
        per_model["weight"] = (0.6, 0.3, 0.2)
    inputs = [
        {
            "model": f"{name}-{dtype}",
            "parameters": {
                key: values[index] for key, values in per_model.items() if key in found.parameters
            },
        }
        for index, name in enumerate(names[: 1 if method in TWO_MODELS else None])
    ]
    data: dict[str, Any] = {"merge_method": method, "models": inputs}
    if found.needs_base:
        data["base_model"] = f"base-{dtype}"
    if given := REQUIRED.get(method, {}) | options:
        data["parameters"] = given
    return data


def configurations() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every configuration with its name."""
    for method, found in sorted(all_methods().items()):
        if found.needs_moments:  # statistics of models that run, which these are not
            continue
        names = ("a",) if method == "passthrough" else ("a", "b")
        for dtype in DTYPES:
            yield f"{method} {dtype}", configuration(method, dtype, names)
    for method, options in OPTIONS:
        for dtype in ("bfloat16", "float32"):
            text = " ".join(f"{key}={value}" for key, value in options.items())
            yield f"{method} {dtype} {text}", configuration(method, dtype, **options)
    for method in ("linear", "ties", "dare_ties", "della"):
        three = configuration(method, "bfloat16", ("a", "b", "c"))
        yield f"{method} three models", three
        yield f"{method} into float32", {**three, "out_dtype": "float32"}
        yield f"{method} into float16", {**three, "out_dtype": "float16"}
    mixed = configuration("ties", "bfloat16")
    mixed["base_model"] = "base-float32"
    yield "ties of mixed types", {**mixed, "dtype": "bfloat16"}
    based = configuration("nuslerp", "bfloat16")
    yield "nuslerp with a base", {**based, "base_model": "base-bfloat16"}
    yield (
        "ties of united vocabularies",
        {
            **configuration("ties", "bfloat16"),
            "tokenizer_source": "union",
        },
    )
    by_part = configuration("linear", "float32")
    by_part["models"][0]["parameters"]["weight"] = [
        {"filter": "mlp", "value": [0.1, 0.7]},
        {"value": 0.5},
    ]
    yield "linear by part and depth", by_part
    piece = configuration("ties", "float32")
    slices = [
        {"sources": [{**item, "layer_range": [layer, layer + 1]} for item in piece["models"]]}
        for layer in (0, 1, 0)
    ]
    del piece["models"]
    yield "ties of slices", {**piece, "slices": slices}


def hash_folder(folder: Path) -> dict[str, str]:
    """sha256 of every file of a model folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="configurations whose name begins so")
    parser.add_argument("--without-numba", action="store_true", help="as where it is not installed")
    options = parser.parse_args()
    if options.without_numba:
        sys.modules["numba"] = None  # type: ignore[assignment]  # an import of it then fails
    hashes: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder)
        folders = {path.name: path for path in folder.iterdir()}
        for title, data in configurations():
            if title.startswith(options.only):
                out = folder / f"out {title}"
                run_merge(parse_merge_config(data, where=title), out, folders=folders, seed=7)
                hashes[title] = hash_folder(out)
    json.dump(hashes, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
