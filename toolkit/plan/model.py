"""The general model of a plan: where it is, what it is made of, how it reads and trains here.

Weights are looked for on this machine only; of a hub model that is not here no more than its
configuration and tokenizer is fetched, and where that fails the recipe's `shape` stands in.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoint.config import ShapeSection, shape_of_folder
from toolkit.checkpoint.read import lacks_shards
from toolkit.data.config import ArtifactSection
from toolkit.errors import EvaluationError, ToolkitError
from toolkit.pipeline.run import Run
from toolkit.plan.devices import Device
from toolkit.plan.evidence import Looked
from toolkit.plan.shape import count_parameters
from toolkit.plan.surprise import Surprise, cut_pieces, measure_surprise
from toolkit.plan.words import FolderTokenizer
from toolkit.recipe.model import ModelSection, shape_of
from toolkit.recipe.schema import Recipe
from toolkit.stage import MANIFEST, load_json

if TYPE_CHECKING:
    from toolkit.plan.speed import Speed

PIECE_TOKENS, PIECES = 96, 16
"""Length and number of the documents of each role that the model reads, twice (shuffled too)."""

LARGEST_READ, LARGEST_TIMED = 2_000_000_000, 600_000_000
"""Parameters of models that are read with, and whose steps are timed, on this machine's CPU."""

TIMED_SECONDS = 5.0
BUSY = 0.75
"""Share of the processors below which a measurement is noted as disturbed: waiting for each other
takes threads a little of their own time."""
_HUB_FILES = (
    "config.json", "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt",
    "chat_template*", "README.md", "LICENSE*",
)  # fmt: skip


@dataclass(frozen=True)
class Located:
    """A model as far as it is here.

    Attributes:
        shape: its measures, None where nothing tells them.
        tokenizer: folder with its tokenizer.
        weights: folder with its weights.
        why: reason that something is missing, for the reader.
        model_type: kind of model, as in its `config.json`.
    """

    shape: ShapeSection | None = None
    tokenizer: Path | None = None
    weights: Path | None = None
    why: str = ""
    model_type: str | None = None

    @classmethod
    def in_folder(cls, folder: Path) -> Located:
        """A model of which everything is in one folder."""
        return cls(shape_of_folder(folder), folder, folder, model_type=model_type_of(folder))


def model_type_of(folder: Path) -> str | None:
    """What transformers calls the kind of model in a folder."""
    model_type = load_json(folder / "config.json").get("model_type")
    return model_type if isinstance(model_type, str) else None


def _untimed_machine() -> Device:
    from toolkit.plan.speed import this_machine

    return this_machine(None)


@dataclass
class MeasuredModel:
    """What the model did here; None where it could not be tried."""

    surprise: Surprise | None = None
    training_tokens_per_second: float | None = None
    reading_tokens_per_second: float | None = None
    flops: float | None = None
    how: str = "not measured"
    machine: Device = field(default_factory=_untimed_machine)
    notes: list[str] = field(default_factory=list)


def locate_model(run: Run) -> Located:
    """Find the recipe's general model without fetching anything large.

    Raises:
        ToolkitError: a local folder is no causal language model, or a package cannot be read.
    """
    return _locate(run, run.recipe.model, "general")


def _locate(run: Run, model: ModelSection, name: str) -> Located:
    if model.path is not None:
        from toolkit.checkpoint.load import load_model_config

        load_model_config(model.path)
        return Located.in_folder(model.path)
    if model.run is not None:
        return _other_run(run, model.run)
    if model.artifact is not None:
        return _packaged(run, model, model.artifact, name)
    if model.hub is not None:
        return _on_hub(model.hub, model.revision, shape_of(model))
    return _to_be_made(run, model, name)


def _to_be_made(run: Run, model: ModelSection, name: str) -> Located:
    """A mixture of experts or a model from scratch: its measures and its tokenizer are known."""
    made_folder = run.root / name
    if (made_folder / MANIFEST).is_file():
        return Located.in_folder(made_folder)
    tokenizer_model = Located()
    why = "the model is not made yet: it was not tried"
    if model.moe is not None:
        tokenizer_model = _locate(run, model.moe.base, f"{name}-base")
    elif model.scratch is not None:
        tokenizer_model = _locate(run, model.scratch.tokenizer, f"{name}-tokenizer")
        why = "the model begins from random weights, so this is its first training and not CPT"
    return Located(shape_of(model), tokenizer_model.tokenizer, None, why)


def _other_run(run: Run, name: str) -> Located:
    """The specialist of another recipe; before it is trained its general model stands in."""
    other_run = Run.open(name, run.runs)
    specialist = other_run.root / "cpt"
    if (specialist / MANIFEST).is_file():
        return Located.in_folder(specialist)
    general = locate_model(other_run)
    why = f"{name} is not trained yet: its general model stands in for its specialist"
    return replace(general, why=f"{why}; {general.why}" if general.why else why)


def _packaged(run: Run, model: ModelSection, artifact: ArtifactSection, name: str) -> Located:
    from toolkit.pipeline.models import ensure_model
    from toolkit.plan.sample import is_fetched

    if not (run.root / name / MANIFEST).is_file() and not is_fetched(artifact, 20.0):
        return Located(
            model.shape,
            why=f"{artifact.package} {artifact.version} is not in the cache and could not be "
            "fetched in 20 s; the model was not tried",
        )
    return Located.in_folder(ensure_model(run, model, name, f"{name} model"))


def _on_hub(name: str, revision: str | None, shape: ShapeSection | None) -> Located:
    snapshot_folder = fetch_small_files(name, revision)
    if snapshot_folder is None:
        shape_hint = "" if shape is not None else "; give its measures under model.shape"
        return Located(
            shape,
            why=f"{name} is not on this machine and the hub cannot be reached: neither its "
            f"tokenizer nor its weights were tried{shape_hint}",
        )
    has_tokenizer = (snapshot_folder / "tokenizer.json").is_file()
    is_here = any(snapshot_folder.glob("*.safetensors")) and not lacks_shards(snapshot_folder)
    return Located(
        shape_of_folder(snapshot_folder),
        snapshot_folder if has_tokenizer else None,
        snapshot_folder if is_here else None,
        "" if is_here else f"the weights of {name} are not on this machine: it was not tried",
        model_type_of(snapshot_folder),
    )


def fetch_small_files(name: str, revision: str | None) -> Path | None:
    """A hub model's snapshot with its configuration, from the cache or else from the hub."""
    from huggingface_hub import snapshot_download

    # The cache first: a plan must not wait for a network that is not needed.
    for offline in (True, False):
        try:
            snapshot = snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(_HUB_FILES),
                local_files_only=offline,
                etag_timeout=5.0,
            )
        except Exception:  # noqa: S112  (whatever the hub or its client raises: it is not here)
            continue
        if (Path(snapshot) / "config.json").is_file():
            return Path(snapshot)
    return None


def measure_model(
    located: Located,
    looked: Looked,
    tokenizer: FolderTokenizer | None,
    separator: int,
    recipe: Recipe,
) -> MeasuredModel:
    """Let the model read, and time training here.

    Where the weights are not here, or the model is too large for this, matrix products of its
    shapes are timed instead.
    """
    from toolkit.plan.speed import this_machine, time_products
    from toolkit.train.precision import is_low, precision_on

    measured = MeasuredModel()
    shape = located.shape
    num_parameters = count_parameters(shape).total if shape is not None else 0
    memory_bytes = measured.machine.memory_bytes
    speed: Speed | None = None
    # Read in bfloat16 it takes 2 bytes per parameter, and what is read some more.
    can_read = num_parameters <= LARGEST_READ and 3.0 * num_parameters < 0.5 * memory_bytes
    if located.weights is not None and tokenizer is not None and can_read:
        model = _load(located.weights, recipe)
        _read(measured, model, looked, tokenizer, separator, recipe)
        # Parameters, gradients and two moments in float32 are 16 bytes per parameter.
        can_train = num_parameters <= LARGEST_TIMED and 20.0 * num_parameters < 0.7 * memory_bytes
        if shape is not None and can_train and recipe.trains:
            speed = _time_training(model, shape, looked, tokenizer, recipe)
            measured.training_tokens_per_second = speed.tokens_per_second
    # The speed of products of its shapes is timed below in its place.
    elif located.weights is not None:
        measured.notes.append(
            f"{num_parameters / 1e9:.1f}B parameters are too many to be read with on this machine "
            "in a minute"
        )
    if speed is None and shape is not None:
        low = is_low(precision_on(recipe.train, "CPU"))
        speed = time_products(shape, 1024, seconds=2.0, low=low)
    if speed is not None:
        measured.flops, measured.how = speed.flops, speed.how
        if speed.share < BUSY:
            measured.notes.append(
                f"other work was running while this machine was timed ({1.0 - speed.share:.0%} of "
                "the processors): alone it is that much faster"
            )
        measured.machine = this_machine(speed)
    return measured


def _load(weights: Path, recipe: Recipe) -> Any:
    """The model as it would be scored on this machine's CPU."""
    from toolkit.checkpoint.folder import stored_dtype
    from toolkit.checkpoint.load import load_causal_model
    from toolkit.machine import choose_scoring_precision, dtype_of

    precision = choose_scoring_precision(recipe.evaluate.precision, stored_dtype(weights), "cpu")
    return load_causal_model(weights, dtype_of(precision))


def _time_training(
    model: Any,
    shape: ShapeSection,
    looked: Looked,
    tokenizer: FolderTokenizer,
    recipe: Recipe,
) -> Speed:
    """Time some steps on the domain's text, in the longest blocks of the recipe."""
    from toolkit.plan.speed import time_steps
    from toolkit.train.precision import precision_on

    longest_block = max(
        [recipe.data.sequence_length, *(s.sequence_length or 0 for s in recipe.data.stages)]
    )
    encoded_texts = tokenizer.encode_many(looked.texts("domain")[:20])
    tokens = [token for tokens_of_text in encoded_texts for token in tokens_of_text]
    section = precision_on(recipe.train, "CPU")
    return time_steps(
        model.float(), section, shape, tokens or [0], longest_block, seconds=TIMED_SECONDS
    )


def _read(
    measured: MeasuredModel,
    model: Any,
    looked: Looked,
    tokenizer: FolderTokenizer,
    separator: int,
    recipe: Recipe,
) -> None:
    """Score pieces of both roles, fewer with a larger model."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    # About the same time for every size of model, and enough documents for an interval.
    num_pieces = max(4, min(PIECES, round(PIECES * 2e8 / num_parameters)))
    domain_pieces, general_pieces = (
        cut_pieces(
            looked.texts(role),
            tokenizer.text,
            separator,
            num_tokens=PIECE_TOKENS,
            count=num_pieces,
        )
        for role in ("domain", "general")
    )
    if min(len(domain_pieces), len(general_pieces)) < 2:
        few = "no general text" if "general" not in recipe.data.roles else "too few documents"
        measured.notes.append(f"{few} to compare the domain with: no bits per byte")
        return
    # The reading that answers the question is also the measurement of speed.
    began = time.perf_counter()
    try:
        surprise = measure_surprise(
            model, domain_pieces, general_pieces, tokenizer.text, recipe.evaluate, seed=recipe.seed
        )
    except EvaluationError as error:
        raise ToolkitError(f"the general model: {error}") from error
    measured.surprise = surprise
    measured.reading_tokens_per_second = surprise.num_tokens / (time.perf_counter() - began)
