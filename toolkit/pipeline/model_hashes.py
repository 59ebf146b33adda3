"""Hashes of model folders and of the parts of them that stages depend on."""

from __future__ import annotations

from pathlib import Path

from toolkit.file_hashes import known_hash
from toolkit.stage import MANIFEST, content_hash, hash_file, hash_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    # Mistral's own format; the two above are SentencePiece's other names.
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def tokenizer_hashes(folder: Path) -> dict[str, str]:
    """Hashes of the files that a folder's tokenizer is made of."""
    return {file: hash_file(folder / file) for file in TOKENIZER_FILES if (folder / file).is_file()}


_OF_CONVERSATIONS = {"chat template": "chat_template.jinja", "ends": "generation_config.json"}


def conversation_hashes(folder: Path) -> dict[str, str]:
    """Of the files beside a tokenizer that say what is learned of a conversation."""
    return {
        title: hash_file(folder / file)
        for title, file in _OF_CONVERSATIONS.items()
        if (folder / file).is_file()
    }


def fingerprint(folder: Path) -> str:
    """Hash that tells model folders apart without reading a large one each time.

    A stage's folder has its hashes in the manifest; large files of other folders are read once for
    each change (`known_hash`).
    """
    if (folder / MANIFEST).is_file():
        return content_hash(folder)
    # Only its top: what lies in folders below, such as `original/` on the hub, is not loaded.
    files = sorted(item for item in folder.iterdir() if item.is_file())
    return hash_json({path.name: known_hash(path) for path in files})
