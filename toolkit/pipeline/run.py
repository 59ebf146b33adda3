"""A recipe as a run: its folder, the runs it is made of, and stages that are made once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from toolkit.errors import ConfigError, ToolkitError
from toolkit.progress import say
from toolkit.recipe.checks import library_faults, token_faults
from toolkit.recipe.layers import split_name
from toolkit.recipe.load import find_recipe, load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.stage import Stage

RUNS = Path("runs")
WITHOUT_EFFECT = (
    "config.model.name",
    "config.model.license",
    "config.data.sources.*.license",
    "config.train.gradient_checkpointing",  # computed again, the numbers are the same
    "config.train.max_nonfinite_steps",  # a run that was finished did not stop for it
)
"""Keys of stages that say something of them, or how they are computed, and change no result."""

_SEEN: set[Path] = set()
"""Stages that this process has spoken of: later stages ask for them again, silently."""


@dataclass(frozen=True)
class Run:
    """One recipe and the folder its stages write to.

    Attributes:
        name: of the recipe with its layers.
        recipe: all of it.
        root: folder of the stages.
        path: of the recipe's file.
        layers: variant and scale.
        runs: folder of all runs.
        lender: of a run that is repeated with another seed, the first one: what the seed does not
            change is made there, once.
        same_documents: whether the lender's documents, as they were split, are this run's too.
        also: roots of other runs whose complete stages serve where they were made from the same
            things; nothing is written there.
    """

    name: str
    recipe: Recipe
    root: Path
    path: Path | None = None
    layers: tuple[str, ...] = ()
    runs: Path = RUNS
    lender: Run | None = None
    same_documents: bool = False
    also: tuple[Path, ...] = ()

    @classmethod
    def of(cls, path: Path, recipe: Recipe, runs: Path = RUNS, layers: tuple[str, ...] = ()) -> Run:
        name = "@".join([path.stem, *layers])
        return cls(name, recipe, runs / name, path, layers, runs)

    @classmethod
    def open(cls, name: str, runs: Path = RUNS) -> Run:
        """A recipe by name or path, with the layers that follow: `NAME@variant@scale`.

        Raises:
            ConfigError: there is no such recipe, or it is not valid.
        """
        base, layers = split_name(name)
        path = find_recipe(base)
        run = cls.of(path, load_recipe(path, layers), runs, layers)
        faults = [*library_faults(run.recipe), *token_faults(run.recipe, run.root / "general")]
        if faults:
            raise ConfigError.listing(f"{run.asked_for} is not a valid recipe:", faults)
        _refuse_loops(run, (run.asked_for,))
        return run

    @property
    def asked_for(self) -> str:
        """What `open` finds this run by, from any folder."""
        return "@".join([str(self.path), *self.layers])

    def stage(
        self,
        name: str,
        config: Mapping[str, object],
        inputs: dict[str, str],
        without_effect: tuple[str, ...] = (),
    ) -> Stage:
        """A stage of this run, or the same one of another run in `also` that is complete."""

        def in_folder(root: Path) -> Stage:
            return Stage(
                root / name,
                config,
                inputs,
                self.recipe.seed,
                without_effect=(*WITHOUT_EFFECT, *without_effect),
                runs=self.runs,
            )

        # Its own comes first: other runs are asked only for what it lacks.
        own_stage = in_folder(self.root)
        if self.also and not own_stage.is_complete():
            for root in self.also:
                # Only looked at: nothing is written in a lender's folder.
                if (other := in_folder(root)).stands():
                    return other
        return own_stage

    def below(self, *names: str) -> Run:
        """The same in a folder below its own, and the lender's below the lender's."""
        lender = None if self.lender is None else self.lender.below(*names)
        also = tuple(root.joinpath(*names) for root in self.also)
        return replace(self, root=self.root.joinpath(*names), lender=lender, also=also)

    def ensure(self, stage: Stage, title: str, act: Callable[[], None]) -> Path:
        """The folder of a stage, which `act` makes where it is not up to date."""
        return ensure_stage(stage, title, act)


def _refuse_loops(run: Run, within: tuple[str, ...]) -> None:
    """Follow the runs whose specialists are taken as models, before anything is fetched.

    Raises:
        ConfigError: one leads back to where it began, or there is no such recipe.
    """
    sections = {"model": run.recipe.model}
    sections |= {f"models.{name}": section for name, section in run.recipe.models.items()}
    # A copy, as the mapping grows: a mixture takes a base and experts, each of them a model.
    for key, section in list(sections.items()):
        if (moe := section.moe) is not None:
            sections[f"{key}.moe.base"] = moe.base
            sections |= {f"{key}.moe.experts.{n}": e for n, e in enumerate(moe.experts)}
    named_runs = {key: section.run for key, section in sections.items()}
    if (specialist := run.recipe.specialist) is not None:
        named_runs["specialist"] = specialist.run
    named_runs |= {f"specialists.{n}": one.run for n, one in run.recipe.specialists.items()}
    for key, name in named_runs.items():
        if name is None:
            continue
        base, layers = split_name(name)
        try:
            path = find_recipe(base)
            other = Run.of(path, load_recipe(path, layers), run.runs, layers)
        except ConfigError as error:
            raise ConfigError(f"{run.path}: {key}.run: {error}") from None
        # With layers, as the same file under another variant is another run.
        if other.asked_for in within:
            raise ConfigError(
                f"{run.path}: {key}.run: leads in a circle: "
                f"{' -> '.join((*within, other.asked_for))}; a model cannot be made of itself."
            )
        _refuse_loops(other, (*within, other.asked_for))


def ensure_stage(stage: Stage, title: str, act: Callable[[], None]) -> Path:
    """The folder of a stage, which `act` makes where it is not up to date."""
    if stage.is_complete():
        if stage.folder not in _SEEN:
            say(f"{title}: up to date ({stage.folder})")
        _SEEN.add(stage.folder)
        return stage.folder
    _SEEN.add(stage.folder)
    say(f"{title}:")
    # It stands but is not up to date: what changed is said before hours go into it.
    if stage.folder.exists():
        for note in stage.notes:
            say(f"  changed: {note}")
        say(f"  runs anew; the old folder is kept beside it ({stage.folder}.1, .2, …)")
    if stage.has_begun():
        say(f"  continues in {stage.work}")
    elif changes := stage.begun_otherwise():
        say("  was begun under other settings; that work is put aside beside the stage:")
        for change in changes:
            say(f"    {str(change).removeprefix('config.')}")
        say("  to continue it instead, put these back and rename its folder to what it was")
    # Not believed but asked for again below: an act may end early without an error.
    act()
    if not stage.is_complete():
        raise ToolkitError(f"{stage.folder}: is not complete after its stage ran; run it again.")
    return stage.folder


Result = TypeVar("Result")


def first_alone(act: Callable[[], Result]) -> Result:
    """Under `accelerate launch`, the first process makes what the others then find."""
    from toolkit.train.processes import is_first, num_processes, start_processes, wait_for_all

    if num_processes() == 1:
        return act()
    # Two processes must never write one stage. The others wait, find everything complete, and are
    # silent, or each line would be printed once per process.
    start_processes()
    if is_first():
        result = act()
        wait_for_all()
        return result
    wait_for_all()
    with contextlib.redirect_stdout(None):
        return act()
