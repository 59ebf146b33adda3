"""Texts written from a recipe's training documents: a stage beside the data stage, which reads them
where the recipe names them."""

from __future__ import annotations

from pathlib import Path

from toolkit.data.config import DataSection
from toolkit.errors import ConfigError
from toolkit.knowledge.config import identity_of_writing
from toolkit.knowledge.documents import chosen_sources
from toolkit.knowledge.texts import TEXTS, run_writing
from toolkit.pipeline.model_hashes import fingerprint
from toolkit.pipeline.models import ensure_data, ensure_general
from toolkit.pipeline.run import Run, ensure_stage
from toolkit.pipeline.specialist import data_stage
from toolkit.progress import say
from toolkit.section import replace_values
from toolkit.stage import content_hash

WRITTEN = "written"


def write_texts_of(run: Run) -> Path:
    """The folder of texts written from a recipe's training documents, made where it is not up to
    date.

    Raises:
        ConfigError: the recipe trains nothing.
        DataError: nothing can be written of the documents.
    """
    recipe = run.recipe
    if not recipe.trains:
        raise ConfigError(
            "writing: the recipe's specialist is finished, so that there are no training documents "
            "to write about; leave specialist out."
        )
    section, original = recipe.writing, without_written(recipe.data)
    # Of a recipe that has taken the texts in, the documents without them are prepared: texts would
    # otherwise be written of written texts, and anew each time, as their own input changed.
    data = (
        ensure_data(run)
        if original is recipe.data
        else data_stage(run, "data-unwritten", original, ensure_general(run))
    )
    inputs = {"data": content_hash(data)}
    if section.writer is not None and section.writer.path is not None:
        inputs["writer"] = fingerprint(section.writer.path)
    stage = run.stage(WRITTEN, {"writing": identity_of_writing(section)}, inputs)
    folder = ensure_stage(
        stage, "written texts", lambda: run_writing(section, original, stage, data)
    )
    # Nothing to advise where the recipe names the texts already.
    if original is recipe.data:
        (parent, *_) = chosen_sources(original, section.sources, "writing.sources")
        say("Read some of them. In the recipe, beside the other sources:")
        say(f"  written: {{role: domain, written_from: {parent}, files: [{folder / TEXTS}]}}")
    return folder


def without_written(data: DataSection) -> DataSection:
    """The section without the sources that were written; the same where there are none."""
    sources = {name: source for name, source in data.sources.items() if source.written_from is None}
    return data if len(sources) == len(data.sources) else replace_values(data, sources=sources)
