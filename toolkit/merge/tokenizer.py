"""The merged model's tokenizer and chat template: whose they are, and what is not supported."""

from __future__ import annotations

from pathlib import Path

from toolkit.checkpoint.side_files import copy_side_files
from toolkit.errors import MergeError
from toolkit.manifest import write_atomically
from toolkit.merge.config import MergeConfig
from toolkit.merge.models import Models


def check_tokenizer(config: MergeConfig) -> None:
    """Refuse what cannot be done, before anything is merged.

    Raises:
        MergeError: vocabularies would have to be united, or a template is known by name only.
    """
    source = _source(config)
    if source == "union":
        raise MergeError(
            "tokenizer_source: uniting vocabularies is not supported yet; give base, or a model "
            "whose vocabulary the others share."
        )
    if config.tokenizer is not None and (
        config.tokenizer.tokens or config.tokenizer.pad_to_multiple_of
    ):
        raise MergeError(
            "tokenizer: tokens and pad_to_multiple_of are not supported yet; leave them out where "
            "the models share a vocabulary."
        )
    template = config.chat_template
    if template not in (None, "auto") and "{" not in str(template):
        raise MergeError(
            f"chat_template: {template!r} is a name, and only auto and a template itself (Jinja) "
            "are supported."
        )


def write_tokenizer(config: MergeConfig, models: Models, target: Path) -> None:
    """Copy tokenizer, generation settings and chat template into the merged folder."""
    source = _source(config)
    leader = config.base_model or config.model_names()[0]
    name = leader if source in (None, "base") else str(source)
    copy_side_files(models.checkpoint(name).folder, target)
    if config.chat_template not in (None, "auto"):
        with write_atomically(target / "chat_template.jinja") as file:
            file.write(str(config.chat_template))


def _source(config: MergeConfig) -> str | None:
    return config.tokenizer.source if config.tokenizer is not None else config.tokenizer_source
