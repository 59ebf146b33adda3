"""Everything a recipe's `evaluate` section asks for, as sets; and what must not be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.data.config import SplitName
from toolkit.errors import EvaluationError
from toolkit.evaluate.answers import Answers, load_answers
from toolkit.evaluate.config import BehaviorSection, EvaluateSection
from toolkit.evaluate.documents import likelihood_sets
from toolkit.evaluate.middles import middles_sets
from toolkit.evaluate.prompts import RetentionPrompt
from toolkit.evaluate.retention import retention_sets, split_prompts
from toolkit.evaluate.sets import EvaluationSet
from toolkit.machine import DTYPE_NAMES, cache_folder, dtype_of, precision_of
from toolkit.progress import progress
from toolkit.section import replace_values
from toolkit.stage import content_hash, hash_json, read_manifest
from toolkit.tokenizer_files import load_tokenizer


def load_sets(
    section: EvaluateSection,
    data: Path,
    general: Path,
    split: SplitName,
    *,
    tokenizer: Any = None,
    cache: Path | None = None,
) -> list[EvaluationSet]:
    """All sets of one split: documents by source, retention, multiple choice, tasks of lm-eval.

    Args:
        section: the recipe's.
        data: folder of the data stage.
        general: folder of the general model; it answers the prompts of the retention set once.
        split: `validation` or `test`.
        tokenizer: of the general model; loaded where it is not given.
        cache: folder for the answers; by default beside the artifacts.

    Returns:
        Sets with distinct names; at least one has the role `domain`.

    Raises:
        EvaluationError: a set cannot be read, two have one name, or none has the role `domain`.
    """
    # First of all: the type is part of every key in the cache, where `auto` would be one key for
    # different scores.
    section = settle_scoring(section, general)
    tokenizer = tokenizer or load_tokenizer(general)
    separator_token = read_manifest(data)["results"]["separator_token_id"]
    evaluation_sets = likelihood_sets(data / f"{split}.jsonl", tokenizer, separator_token, section)
    if section.retention.num_prompts:
        evaluation_sets += _retention(section, general, split, tokenizer, cache or cache_folder())
    if section.behavior is not None:
        place = cache or cache_folder()
        evaluation_sets += _behavior(section.behavior, section, general, split, tokenizer, place)
    if section.multiple_choice:
        from toolkit.evaluate.tasks import question_sets  # lm-eval takes seconds to import

        for choice_section in section.multiple_choice:
            evaluation_sets += question_sets(choice_section, tokenizer, section, split)
    if section.infilling is not None:
        evaluation_sets += middles_sets(
            data / f"{split}.jsonl", tokenizer, section, section.infilling
        )
    if section.tasks:
        from toolkit.evaluate.tasks import task_sets

        for task in section.tasks:
            evaluation_sets += task_sets(task, tokenizer, section, split)
    _check_sets(evaluation_sets, split)
    return evaluation_sets


def _check_sets(sets: Sequence[EvaluationSet], split: SplitName) -> None:
    """Refuse sets that share a name, or none of which is of the domain.

    Raises:
        EvaluationError: they are such.
    """
    refuse_same_names(sets, "evaluate", "name sources, choices and tasks apart")
    if not any(items.role == "domain" for items in sets):
        raise EvaluationError(
            f"evaluate: no set of the {split} split has role domain; the gain could not be seen."
        )


def refuse_same_names(sets: Sequence[EvaluationSet], where: str, remedy: str) -> None:
    """Refuse sets of one name, as losses and figures are kept by it.

    Raises:
        EvaluationError: there are some.
    """
    name_counts = Counter(items.name for items in sets)
    for set_name, count in name_counts.items():
        if count > 1:
            raise EvaluationError(f"{where}: two sets are called {set_name!r}; {remedy}.")


def _retention(
    section: EvaluateSection, general: Path, split: SplitName, tokenizer: Any, cache: Path
) -> list[EvaluationSet]:
    retention = section.retention
    prompts = split_prompts(section, split)
    # In another type the general model may answer otherwise.
    answers_hash = hash_json([content_hash(general), section.precision])
    answers = _general_answers(
        section,
        general,
        tokenizer,
        prompts,
        answers_hash,
        cache,
        title=f"answers of the general model ({split})",
        max_new_tokens=retention.max_new_tokens,
        top_tokens=retention.top_tokens,
    )
    return retention_sets(answers, prompts, section, answers_hash)


def _general_answers(
    section: EvaluateSection,
    general: Path,
    tokenizer: Any,
    prompts: Sequence[RetentionPrompt],
    answers_hash: str,
    cache: Path,
    *,
    title: str,
    max_new_tokens: int,
    top_tokens: int,
) -> Answers:
    """The general model's answers to prompts, made once."""
    with progress(title, len(prompts)) as advance:
        return load_answers(
            tokenizer,
            [prompt.text for prompt in prompts],
            lambda: _load(general, section),
            answers_hash,
            cache / "answers",
            max_new_tokens=max_new_tokens,
            top_tokens=top_tokens,
            advance=advance,
        )


def _behavior(
    behavior: BehaviorSection,
    section: EvaluateSection,
    general: Path,
    split: SplitName,
    tokenizer: Any,
    cache: Path,
) -> list[EvaluationSet]:
    from toolkit.evaluate.behavior import behavior_prompts, behavior_sets

    prompts = behavior_prompts(section, split)
    answers_hash = hash_json([content_hash(general), section.precision])
    answers = _general_answers(
        section,
        general,
        tokenizer,
        prompts,
        answers_hash,
        cache,
        title=f"answers to be compared with ({split})",
        max_new_tokens=behavior.max_new_tokens,
        top_tokens=0,  # what is compared with is their lengths
    )
    return behavior_sets(behavior, section, tokenizer, prompts, answers, answers_hash)


def _load(folder: Path, section: EvaluateSection) -> Any:
    from toolkit.checkpoint.load import load_causal_model

    return load_causal_model(folder, dtype_of(section.precision))


def settle_scoring(section: EvaluateSection, *folders: Path) -> EvaluateSection:
    """The section with the type of arithmetic in place of a wish such as `auto`.

    Args:
        section: as in the recipe, or settled already.
        folders: of the models whose stored types count. Models that are compared are scored in one
            type: where their own differ it is float32, which rounds none of them.
    """
    # Settled already, by a stage that began on another machine perhaps: the wish is not asked
    # again.
    if section.precision in DTYPE_NAMES:
        return section
    from toolkit.checkpoint.load import scoring_dtype

    dtypes = {scoring_dtype(folder, section.precision) for folder in folders}
    settled_precision = precision_of(dtypes.pop()) if len(dtypes) == 1 else "fp32"
    return replace_values(section, precision=settled_precision)


def refuse_too_few(validation: Sequence[EvaluationSet], test: Sequence[EvaluationSet]) -> None:
    """Refuse, before anything is scored, what nothing could be said of: a split without a general
    set, and sets of a single group, but for those that are only watched.

    Raises:
        EvaluationError: there are some.
    """
    for split, split_sets in (("validation", validation), ("test", test)):
        if not any(items.role == "general" for items in split_sets):
            raise EvaluationError(
                f"evaluate: no set of the {split} split has role general; what is lost could not "
                f"be seen. Give a general source a {split} split, or keep the retention set."
            )
        for items in split_sets:
            if (num_groups := items.num_groups) < 2 and items.role != "watch":
                raise EvaluationError(
                    f"{items.name}: its {split} set has {num_groups} "
                    f"{'document' if len(items) == 1 else 'group'}, and an interval needs 2 at "
                    f"least, better 20; give it more documents, prompts or questions for {split} "
                    "(of a source: a larger share, max_tokens, or long documents cut by "
                    "data.evaluation_document_tokens), or the role watch."
                )


def refuse_overlap(validation: Sequence[EvaluationSet], test: Sequence[EvaluationSet]) -> None:
    """Refuse test items whose content stands in validation too, under whatever name.

    Raises:
        EvaluationError: there are some; a choice made on them would confirm itself.
    """
    validation_places: dict[str, str] = {}
    for items in validation:
        # Not strict: sets without hashes of items have none at all.
        for item_id, item_hash in zip(items.ids, items.item_hashes, strict=False):
            validation_places.setdefault(item_hash, f"{items.name}: {item_id}")
    shared_items = [
        (f"{items.name}: {item_id}", validation_places[item_hash])
        for items in test
        for item_id, item_hash in zip(items.ids, items.item_hashes, strict=False)
        if item_hash in validation_places
    ]
    if shared_items:
        raise EvaluationError(
            f"{len(shared_items)} test items stand in validation too, such as {shared_items[0][0]} "
            f"(there {shared_items[0][1]}); the test would confirm what was chosen on it. Remove "
            "duplicates from the sources, or split by group."
        )
