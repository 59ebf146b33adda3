"""What belongs to a model folder beside its weights and config."""

from __future__ import annotations

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


def copy_side_files(source: Path, target: Path) -> None:
    """Copy tokenizer, chat template and generation settings from one model folder to another."""
    for name in SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
