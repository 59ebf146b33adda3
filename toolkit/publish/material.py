"""What a bundle is made from: the stages of a run, and what may be said of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.checkpoint.wrapped import opened_by
from toolkit.load_yaml import load_yaml
from toolkit.publish.card import CardFacts
from toolkit.publish.config import Format, ParentSection, PublishSection
from toolkit.publish.licenses import Parent, license_id, merged_license
from toolkit.publish.public import parents_of, public_merge, public_reference, to_yaml
from toolkit.publish.settings import source_facts, training_facts
from toolkit.recipe.model import ModelSection, SpecialistSection
from toolkit.recipe.schema import Recipe
from toolkit.select.results import read_results
from toolkit.stage import MANIFEST, read_manifest


@dataclass(frozen=True)
class Material:
    """The stages that a bundle is made from.

    Attributes:
        recipe: whose merge it is.
        root: folder of the run.
        general: folder of the general model.
        specialists: folders of the specialists by name; one is called `specialist`.
        data: folder of the data stage.
        merged: folder of the merge stage.
        others: folders of the recipe's further models, by name.
    """

    recipe: Recipe
    root: Path
    general: Path
    specialists: Mapping[str, Path]
    data: Path
    merged: Path
    others: Mapping[str, Path] = field(default_factory=dict)

    @property
    def places(self) -> dict[str, Path]:
        """Folders of the merge's parents, by role."""
        main_parents = {"general": self.general, **self.specialists}
        if not self.others:
            return main_parents
        start = self.recipe.train.start  # an ancestor of the specialist, whatever the merge names
        # A recipe may list more models than the chosen merge uses; only those are its parents.
        merge_config = load_yaml(self.merged / "merge.yaml")
        used = parents_of(merge_config, {**main_parents, **self.others})
        return main_parents | {
            name: folder for name, folder in self.others.items() if name in {*used, start}
        }


def find_parents(
    recipe: Recipe, repository: str, others: Collection[str] = ()
) -> tuple[Parent, ...]:
    """General model, specialist and the further models of a merge, as others may know them."""
    model, section = recipe.model, recipe.publish
    name = section.general.name or model.name or model.hub
    general = Parent(
        role="general",
        name=name or (model.path.name if model.path else "general"),
        revision=section.general.revision or model.revision,
        license=section.general.license or model.license,
        is_published=name is not None,
        origin=_origin(model),
    )
    own, start = section.specialist, recipe.train.start
    # A specialist that was trained from another model is under the terms of that one.
    inherited = general.license if start is None else recipe.models[start].license
    specialist = Parent(
        role="specialist",
        name=own.name or f"{repository}-specialist",
        revision=own.revision,
        license=own.license or inherited,
        is_published=own.name is not None,
        trained_from=start or general.role,
    )
    if recipe.specialist is not None:
        specialist = _finished_parent("specialist", recipe.specialist, own, repository, general)
    several = [
        _finished_parent(
            name, finished, section.parents.get(name, ParentSection()), repository, general
        )
        for name, finished in recipe.specialists.items()
    ]
    further = [
        _further_parent(name, model, section.parents.get(name, ParentSection()))
        for name, model in recipe.models.items()
        if name in others
    ]
    return (general, *(several or [specialist]), *further)


def _further_parent(role: str, model: ModelSection, own: ParentSection) -> Parent:
    name = own.name or model.name or model.hub
    return Parent(
        role=role,
        name=name or role,
        revision=own.revision or model.revision,
        license=own.license or model.license,
        is_published=name is not None,
        origin=_origin(model),
    )


def _finished_parent(
    role: str, section: SpecialistSection, own: ParentSection, repository: str, general: Parent
) -> Parent:
    """A specialist that the recipe names: its terms are its own, and are not guessed."""
    name = own.name or section.name or section.hub
    origin = ""
    if section.adapter is not None:
        at = public_reference(section.adapter, section.revision)
        # A path of this machine says nothing to others, and may name its user.
        at = "an adapter" if Path(section.adapter).exists() else at
        times = "" if section.strength == 1.0 else f", {section.strength:g} times"
        origin = f"{general.name} with {at} merged into it{times}"
    elif section.run is not None:
        origin = f"trained by the recipe {Path(section.run).name}"
    elif section.artifact is not None:
        origin = _origin(section.as_model())
    own_license = own.license or section.license
    return Parent(
        role=role,
        name=name or f"{repository}-{role}",
        # The revision of an adapter is not one of `name`; it stands in `origin`.
        revision=own.revision or (section.revision if section.hub is not None else None),
        # What a recipe of ours trained is under the general model's terms.
        license=own_license or (general.license if section.run is not None else None),
        is_published=name is not None,
        origin=origin,
        trained_from=general.role if section.run is not None else None,
    )


def _origin(model: ModelSection) -> str:
    """A package may hold other weights than the repository of that name: quantized ones."""
    artifact = model.artifact
    if artifact is None:
        return ""
    file_name = artifact.member.rsplit("/", 1)[-1]
    return f"{file_name} of {artifact.package} {artifact.version} on PyPI"


def parent_section(section: PublishSection, parent: Parent) -> ParentSection:
    """What the recipe says of a parent."""
    main_sections = {"general": section.general, "specialist": section.specialist}
    return {**section.parents, **main_sections}.get(parent.role, ParentSection())


def card_facts(
    material: Material,
    kind: Format,
    repository: str,
    parents: tuple[Parent, ...],
    figures: Mapping[str, Mapping[str, Any]],
) -> CardFacts:
    """All that the card is written from.

    Raises:
        PublishError: merge.yaml names a model that is none of the run's.
        ToolkitError: the report of the merge stage is damaged, or of another version.
    """
    recipe, section = material.recipe, material.recipe.publish
    data_manifest = _manifest(material.data)
    names = {parent.role: public_reference(parent.name, parent.revision) for parent in parents}
    merge_config = public_merge(load_yaml(material.merged / "merge.yaml"), material.places, names)
    return CardFacts(
        repository=repository,
        format=kind,
        description=recipe.description,
        parents=parents,
        merged_license=merged_license(parents)[0],
        license=(license_id(section.license), section.license_name, section.license_link),
        language=section.language,
        sources=source_facts(
            recipe.data.sources, section, data_manifest.get("results", {}).get("sources", {})
        ),
        training=training_facts(data_manifest, _training_manifest(material))
        if recipe.trains
        else {},
        results=read_results(material.merged),
        merge_yaml=to_yaml(merge_config),
        limits=section.limitations,
        merged=section.merged,
        files=[{"file": file_name, **row["card"]} for file_name, row in figures.items()],
        loaded_by=opened_by(material.merged),
        trains=recipe.trains,
        start=recipe.train.start,
        writers=_writers(recipe),
    )


def _writers(recipe: Recipe) -> list[tuple[str, str, str]]:
    """What models wrote of the documents: questions, and texts that were trained on."""
    is_written = any(source.written_from for source in recipe.data.sources.values())
    asked = {
        "Some questions": recipe.questions.writer,
        "Some training texts": recipe.writing.writer if is_written else None,
    }
    return [
        (what, writer.name, writer.license) for what, writer in asked.items() if writer is not None
    ]


def _training_manifest(material: Material) -> dict[str, Any]:
    """Of the stage that trained: a mean of its states has no settings of training itself."""
    manifest = _manifest(material.specialists["specialist"])
    is_trained = "train" in manifest.get("config", {})
    return manifest if is_trained else _manifest(material.root / "cpt")


def _manifest(folder: Path) -> dict[str, Any]:
    return read_manifest(folder) if (folder / MANIFEST).is_file() else {}
