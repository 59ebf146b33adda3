"""What belongs to a model folder beside its weights and config.

Whatever stands there is copied, as nobody can list what readers look for (pooling modules of
sentence-transformers, further chat templates, licenses, the code of a model that brings its own),
except for what is known to be wrong beside other weights.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Files that make a folder of weights a usable model."""

_TOKENIZER = re.compile(
    r"tokenizer|vocab|merges\.txt|special_tokens_map|added_tokens|chat_template|\.tiktoken$|"
    r"^(?:spiece|sentencepiece.*|source|target)\.(?:model|spm)$|\.bpe\.model$|^tekken\.json$"
)
_WEIGHTS = re.compile(
    r"\.(?:safetensors|bin|pt|pth|ckpt|gguf|onnx|onnx_data|h5|msgpack|ot|npz|tflite|mlmodel)$|"
    r"\.(?:safetensors|bin)\.index\.json$|^params\.json$|^consolidated"
)
_OF_ANOTHER = re.compile(
    r"^(?:config\.json|adapter_config\.json|manifest\.json|merge(?:-moe)?\.yaml|"
    r"mergekit_(?:moe_)?config\.yml|report\..*|results\.json|README.*\.md|trainer_state\.json|"
    r"(?:all|train|eval)_results\.json|.*\.log|.*\.jsonl|.*\.csv|.*\.html|SHA256SUMS)$"
)
"""What describes other weights, their training or their making: a card, logs, our own manifests."""

_NOT_NAMED = ("config.json", "manifest.json")
"""Left behind without a word: the merge and every stage write their own."""

_LARGEST_BYTES = 1 << 28


def is_tokenizer_file(name: str) -> bool:
    """Whether a file or folder, by its name, belongs to a tokenizer or its chat templates.

    >>> [is_tokenizer_file(n) for n in ("vocab.txt", "additional_chat_templates", "modules.json")]
    [True, True, False]
    """
    return bool(_TOKENIZER.search(name))


def copy_side_files(source: Path, target: Path, *, with_tokenizer: bool = True) -> list[str]:
    """Copy what stands beside the weights of one model folder to another.

    Args:
        source: a model's folder.
        target: where it goes; files of these names are written over.
        with_tokenizer: whether the tokenizer's files and chat templates are copied too.

    Returns:
        Names of what was left behind: weights in other formats and folders of them, a model card,
        records of a training. Hidden files, the config, the weights themselves and the manifest of
        a stage of ours are not named.
    """
    left_names: list[str] = []
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or (is_tokenizer_file(path.name) and not with_tokenizer):
            continue
        if path.is_dir():
            # A numbered module of sentence-transformers may have weights of its own.
            if re.fullmatch(r"\d+_\w+", path.name) or _is_beside(path):
                shutil.copytree(path, target / path.name, dirs_exist_ok=True)
            else:
                left_names.append(f"{path.name}/")
        elif _is_wrong(path):
            if path.suffix != ".safetensors" and path.name not in _NOT_NAMED:
                left_names.append(path.name)
        else:
            shutil.copyfile(path, target / path.name)
    return [name for name in left_names if not name.endswith(".index.json")]


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Copy tokenizer, chat templates and generation settings alone."""
    for path in sorted(source.iterdir()):
        if path.name in SIDE_FILES or (is_tokenizer_file(path.name) and not _is_wrong(path)):
            if path.is_dir():
                shutil.copytree(path, target / path.name, dirs_exist_ok=True)
            elif path.is_file():
                shutil.copyfile(path, target / path.name)


def _is_wrong(path: Path) -> bool:
    name = path.name
    is_large = path.is_file() and path.stat().st_size > _LARGEST_BYTES
    return bool(_WEIGHTS.search(name) or _OF_ANOTHER.match(name)) or is_large


def _is_beside(folder: Path) -> bool:
    """Whether a folder holds neither weights, nor records of a training, nor much of anything."""
    if re.match(r"checkpoint|runs$|logs?$|wandb$|__pycache__$", folder.name):
        return False
    total_bytes = 0
    for path in folder.rglob("*"):
        if path.is_file():
            total_bytes += path.stat().st_size
            if _WEIGHTS.search(path.name) or total_bytes > _LARGEST_BYTES:
                return False
    return True
