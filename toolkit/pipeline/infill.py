"""How well a run's models fill in middles: general model, specialist, and what was fine-tuned."""

from __future__ import annotations

from toolkit.checkpoint.load import load_causal_model
from toolkit.errors import ConfigError
from toolkit.evaluate.compare import ComparisonFigures, figures_of, show_figures
from toolkit.evaluate.load import settle_scoring
from toolkit.evaluate.middles import middles_sets
from toolkit.machine import dtype_of
from toolkit.pipeline.models import ensure_data, ensure_general, ensure_specialist
from toolkit.pipeline.run import Run
from toolkit.progress import progress, say
from toolkit.stage import MANIFEST, write_json
from toolkit.tokenizer_files import load_tokenizer

FIGURES = "infilling.json"


def measure_infilling(run: Run) -> ComparisonFigures:
    """Score the held-out middles of the test documents, and write
    `runs/<recipe>/infilling.json`.

    Returns:
        Figures of each set under each model, and of the differences, paired by middle.

    Raises:
        ConfigError: the recipe has no section `evaluate.infilling`.
    """
    section, infilling = run.recipe.evaluate, run.recipe.evaluate.infilling
    if infilling is None:
        raise ConfigError(
            f"{run.name}: the recipe has no section evaluate.infilling; give it (see "
            "recipes/code-llama.yaml)."
        )
    general, data, specialist = ensure_general(run), ensure_data(run), ensure_specialist(run)
    models = {"general": general, "specialist": specialist}
    # Fine-tuning is not begun for this: it is scored where it stands already.
    tuned_folder = run.root / "sft"
    if (tuned_folder / MANIFEST).is_file():
        models["sft"] = tuned_folder
    # One type of arithmetic for all: a difference between two types would look like one of models.
    section = settle_scoring(section, *models.values())
    # One tokenizer cuts the middles for all: figures are paired, so all models get the same items.
    tokenizer = load_tokenizer(general)
    middle_sets = middles_sets(data / "test.jsonl", tokenizer, section, infilling)
    losses: dict[str, dict[str, list[float]]] = {items.name: {} for items in middle_sets}
    total_tokens = len(models) * sum(sum(items.costs) for items in middle_sets)
    with progress("infilling, tokens", total_tokens) as advance:
        # Model by model, so that only one of them is in memory.
        for label, folder in models.items():
            model = load_causal_model(folder, dtype_of(section.precision))
            for items in middle_sets:
                losses[items.name][label] = items.score(model, range(len(items)))
                advance(sum(items.costs), label)
    results: ComparisonFigures = {
        "models": {label: folder.name for label, folder in models.items()},
        "tasks": {items.name: figures_of(items, losses[items.name]) for items in middle_sets},
    }
    show_figures(results["tasks"])
    write_json(run.root / FIGURES, results)
    say(f"Written to {run.root / FIGURES}.")
    return results
