"""What a recipe says about publishing. No torch here, and nothing slow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from toolkit.section import Count, Section

GgufType = Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]
Format = Literal["safetensors", "gguf", "adapter"]
FORMATS: tuple[Format, ...] = ("safetensors", "gguf", "adapter")


class ParentSection(Section):
    """What others may know of a parent of the merge."""

    name: str | None = None
    """Name on a hub, `org/name`. The general model's is `model.name` or `model.hub` by default; a
    specialist without one is called after the repository and described as not published."""

    revision: str | None = None
    """Commit or tag of `name`; by default `model.revision`."""

    license: str | None = None
    """Identifier of its terms; the general model's are `model.license` by default, and a specialist
    has the general model's."""

    license_file: Path | None = None
    """Its agreement as a text file, where its folder carries none."""

    notice_file: Path | None = None
    """Its NOTICE, where its folder carries none."""


class PublishedSource(Section):
    """What others may know of a source of documents."""

    dataset: str | None = None
    """Name on a hub. It also stands for the source's local paths in the published recipe."""

    not_for_publication: bool = False
    """Nothing that was trained on this source may leave: the check `sources` fails."""


class PublishSection(Section):
    """The published model: what cannot be read from the run."""

    former_keys: ClassVar = {"limits": "limitations"}

    language: tuple[str, ...] = ()
    """ISO 639 codes, for the card's metadata."""

    license: str | None = None
    """Identifier of the published model's terms; by default what follows from its parents'."""

    license_name: str | None = None
    """Name of terms that have no identifier on the hub."""

    license_link: str | None = None
    """Where those terms stand."""

    general: ParentSection = ParentSection()
    """The general model."""

    specialist: ParentSection = ParentSection()
    """The specialist."""

    parents: dict[str, ParentSection] = Field(default_factory=dict)
    """Further parents, by their names in `specialists` and `models`."""

    sources: dict[str, PublishedSource] = Field(default_factory=dict)
    """By the names of `data.sources`."""

    limitations: str = ""
    """A paragraph for the card: what the model must not be used for, what was seen to fail."""

    merged: str | None = None
    """Repository of the merged model in safetensors, which GGUF files are a quantized form of."""

    gguf: Annotated[tuple[GgufType, ...], Field(min_length=1)] = ("BF16", "Q8_0")
    """Types of the GGUF files that `--format gguf` writes. Q6_K, Q5_K_M and Q4_K_M are llama.cpp's
    mixtures; they need the extra `gguf`, and weigh their errors by the validation documents."""

    gguf_tolerance: Annotated[float, Field(ge=0.0)] | None = 0.05
    """Largest loss of a file that is not the merge exactly, against the merge on each domain and
    general test set: as a share of the merge's figure, or of answers where those are right or
    wrong; sets of role `watch` are shown alone. The check `files` fails where a loss is surely
    (95 %) larger; null scores no files."""

    adapter_rank: Count = 64
    """Rank of the LoRA that `--format adapter` extracts."""
