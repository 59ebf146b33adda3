"""The merge stage: search on the tuning sets, one choice, one look at the test sets, one model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from toolkit.checkpoint.folder import stored_dtype
from toolkit.checkpoint.load import load_causal_model
from toolkit.evaluate.likelihood import ItemSet, load_items, score_documents
from toolkit.manifest import Stage, load_json, read_manifest, write_json
from toolkit.merge.config import MergeConfig, parse_merge_config
from toolkit.merge.live import LiveMerge
from toolkit.merge.run import run_merge, to_yaml
from toolkit.progress import progress, say
from toolkit.recipe import Recipe, merge_folder
from toolkit.reporting import write_report
from toolkit.search.outcome import Resampler, final_figures, tuning_rows
from toolkit.search.run import run_search
from toolkit.search.space import GENERAL, SPECIALIST, Candidate, load_candidates
from toolkit.select import Candidate as Option
from toolkit.select import choose

_SCORES, _TEST = "scores.jsonl", "test.json"


def run_choosing(
    name: str, recipe: Recipe, stage: Stage, general: Path, specialist: Path, data: Path
) -> None:
    """Run the merge stage.

    Args:
        name: of the recipe, for the report.
        recipe: all of it.
        stage: the merge stage.
        general: folder of the general model.
        specialist: folder of the specialist.
        data: folder of the data stage.
    """
    from transformers import AutoTokenizer

    candidates = load_candidates(recipe.search.merges, merge_folder())
    tokenizer = AutoTokenizer.from_pretrained(general)
    separator = read_manifest(data)["results"]["separator_token_id"]
    tuning = load_items(data / "tuning.jsonl", tokenizer, separator)
    test = load_items(data / "test.jsonl", tokenizer, separator)
    with stage.running() as work:
        dtype = torch.float32 if recipe.evaluate.precision == "fp32" else stored_dtype(general)
        live = LiveMerge({GENERAL: general, SPECIALIST: specialist}, seed=recipe.seed)
        model = load_causal_model(general, dtype)
        say(f"  {len(candidates)} candidates on {len(tuning.ids)} tuning documents")
        scores = run_search(candidates, live, model, tuning, recipe.evaluate, work / _SCORES)

        resampler = Resampler(tuning, recipe.evaluate.resamples, recipe.seed)
        rows = tuning_rows(scores, resampler, recipe.select.confidence)
        options = [
            Option(r.name, r.domain, r.general, r.general_loss_bound, r.distance) for r in rows
        ]
        choice = choose(options, GENERAL, recipe.select)
        chosen = next(c for c in candidates if c.name == choice.chosen)
        say(f"  chosen: {chosen.name}")

        wanted = {GENERAL: GENERAL, SPECIALIST: SPECIALIST, "merge": chosen.name}
        nats = _score_test(wanted, candidates, live, model, test, recipe, work / _TEST)
        figures = final_figures(nats, Resampler(test, recipe.evaluate.resamples, recipe.seed))

        config = _named(chosen.config, general, specialist, stored_dtype(general))
        _write_model(config, work, recipe.seed)
        results: dict[str, Any] = {
            "recipe": name,
            "description": recipe.description,
            "chosen": chosen.name,
            "reason": choice.reason,
            "any_merge": choice.any_merge,
            "tolerance": recipe.select.general_tolerance,
            "confidence": recipe.select.confidence,
            "candidates": [
                {**vars(row), "qualified": row.name in choice.qualified} for row in rows
            ],
            "tuning": {r: len(tuning.only(r)) for r in ("domain", "general")},
            "test": {r: len(test.only(r)) for r in ("domain", "general")},
            **figures,
        }
        write_report(
            results,
            work,
            stage=stage,
            recipe=recipe,
            general=general,
            specialist=specialist,
            merge_yaml=to_yaml(config),
        )
        stage.finish(results, drop=(_TEST,))


def _score_test(
    wanted: dict[str, str],
    candidates: list[Candidate],
    live: LiveMerge,
    model: Any,
    test: ItemSet,
    recipe: Recipe,
    log: Path,
) -> dict[str, list[float]]:
    """Losses on the test documents, each model once, even where the stage was interrupted."""
    known: dict[str, list[float]] = load_json(log) if log.is_file() else {}
    by_name = {candidate.name: candidate for candidate in candidates}
    total = sum(len(tokens) - 1 for tokens in test.tokens)
    names = list(dict.fromkeys(wanted.values()))
    with progress("test, tokens", total * len(names)) as advance:
        for name in names:
            if name in known:
                advance(total, name)
                continue
            live.apply(by_name[name].config, model)
            known[name] = score_documents(model, test, recipe.evaluate, advance=advance)
            write_json(log, known)
    return {label: known[name] for label, name in wanted.items()}


def _named(config: MergeConfig, general: Path, specialist: Path, dtype: torch.dtype) -> MergeConfig:
    """The merge as a plain mergekit configuration: real paths, float32 arithmetic, one cast.

    Paths count from the folder the command runs in, so that nothing of this machine enters.
    """
    paths = {GENERAL: _relative(general), SPECIALIST: _relative(specialist)}
    plain = json.loads(config.model_dump_json(exclude_none=True))

    def rename(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                key: paths.get(value, value) if key in {"model", "base_model"} else rename(value)
                for key, value in node.items()
            }
        return [rename(item) for item in node] if isinstance(node, list) else node

    named = {**rename(plain), "dtype": "float32", "out_dtype": str(dtype).removeprefix("torch.")}
    return parse_merge_config(named, where="merge.yaml")


def _relative(folder: Path) -> str:
    """Beginning with a dot, so that mergekit does not take it for a name on the hub."""
    path = Path(os.path.relpath(folder)).as_posix()
    return path if path.startswith("../") else f"./{path}"


def _write_model(config: MergeConfig, work: Path, seed: int) -> None:
    """Merge to disk beside the scores; done anew when a killed call left it half."""
    merged = work / "model"
    if not merged.exists():
        with progress("writing the merge", 1) as advance:
            run_merge(config, merged, seed=seed)
            advance(1, "")
    for path in sorted(merged.iterdir()):
        path.rename(work / path.name)
    merged.rmdir()
