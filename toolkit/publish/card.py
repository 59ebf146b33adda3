"""The model card, written from what the stages recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from toolkit.evaluate.retention import LOSS
from toolkit.publish.config import Format
from toolkit.publish.licenses import License, Parent, built_with
from toolkit.publish.public import public_reference
from toolkit.publish.settings import SourceFacts
from toolkit.publish.tables import (
    result_rows,
    result_titles,
    source_rows,
    table,
    training_rows,
)
from toolkit.report.verdict import count_of, percent, several_lines
from toolkit.select.results import MergeResults


@dataclass(frozen=True)
class CardFacts:
    """All that a card is written from.

    Attributes:
        repository: `org/name` that the model is published as.
        format: what kind of bundle the card belongs to.
        description: the recipe's line for people.
        parents: of the merge.
        merged_license: terms that follow from theirs, or None.
        license: overrides of the recipe: identifier, name, link.
        language: ISO codes.
        sources: sources of documents.
        training: settings and figures of the cpt stage, by their titles.
        results: what the merge stage found.
        merge_yaml: the merge with public names.
        limits: the author's own paragraph.
        merged: repository of the merged model that a GGUF file is made from.
        files: what the bundle's model files are, with their errors: a row each.
        loaded_by: class of transformers that opens the model.
        accepted: checks that failed and were accepted, with the reason given.
        trains: whether the recipe trained the specialist.
        writers: what models wrote for the run, each with the model's name and the terms of it.
        start: role of the parent that training started from, where it is not the general model.
    """

    repository: str
    format: Format
    description: str
    parents: Sequence[Parent]
    merged_license: License | None
    license: tuple[str | None, str | None, str | None]
    language: Sequence[str]
    sources: Sequence[SourceFacts]
    training: Mapping[str, object]
    results: MergeResults
    merge_yaml: str
    limits: str = ""
    merged: str | None = None
    files: Sequence[Mapping[str, str]] = ()
    loaded_by: str = "AutoModelForCausalLM"
    accepted: Mapping[str, str] = field(default_factory=dict)
    trains: bool = True
    start: str | None = None
    writers: Sequence[tuple[str, str, str]] = ()


def model_card(facts: CardFacts) -> str:
    """README.md: metadata for the hub, and the text."""
    parts = [
        f"---\n{_metadata(facts).strip()}\n---",
        f"# {facts.repository.rsplit('/', 1)[-1]}",
        "\n".join(f"**{line}**" for line in built_with(facts.parents)),
        _what_it_is(facts),
        "## Use",
        _use(facts),
        "## What was measured",
        _measured(facts),
        "## Parents",
        table(
            ("model", "role", "revision", "weights", "terms"),
            [_parent_row(parent, facts.trains) for parent in facts.parents],
        ),
        "## Texts",
        table(
            ("source", "role", "terms", "training tokens", "validation", "test"),
            source_rows(facts.sources),
        ),
        "\n\n".join(
            f"{what} were written by {name} (terms: {terms})."
            for what, name, terms in facts.writers
        ),
        "## Training and merge" if facts.trains else "## Merge",
        table(("setting", "value"), training_rows(facts.training)) if facts.trains else "",
        f"```yaml\n{facts.merge_yaml.strip()}\n```",
        "`recipe.yaml` is the whole recipe; `toolkit publish verify` checks the files against "
        "`SHA256SUMS` and, with the parents at hand, makes the merge again and compares the bytes.",
        "## Limits",
        _limits(facts),
        facts.limits.strip(),
        _accepted(facts.accepted),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    identifier, name, link = facts.license
    merged = facts.merged_license
    known = identifier or (merged.id if merged else None)
    general = next(parent for parent in facts.parents if parent.role == "general")
    found = [parent.name for parent in facts.parents if parent.is_published]
    if facts.format == "gguf" and facts.merged:
        bases, relation = [facts.merged], "quantized"
    elif facts.format == "gguf":
        bases, relation = found, "quantized"
    elif facts.format == "adapter":
        bases, relation = [general.name], "adapter"
    else:
        bases, relation = found, "merge"
    datasets = [source.dataset for source in facts.sources if source.dataset]
    library = {"safetensors": "transformers", "gguf": "gguf", "adapter": "peft"}
    data = ModelCardData(
        base_model=bases,
        base_model_relation=relation,
        library_name=library[facts.format],
        pipeline_tag=_pipeline(facts),
        tags=["merge", "mergekit", *_way_tags(facts), *_format_tags(facts.format)],
        # The hub reads `license_name` beside the license `other` only.
        license=known if name is None else "other",
        license_name=name,
        license_link=link or (merged.link if merged and not identifier else None),
        datasets=datasets or None,
        language=list(facts.language) or None,
        model_name=facts.repository.rsplit("/", 1)[-1],
        eval_results=_eval_results(facts) or None,
    )
    values: dict[str, object] = data.to_dict()  # type: ignore[no-untyped-call]
    # The client wants it for `eval_results`, and takes it out only where there are any.
    values.pop("model_name", None)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _pipeline(facts: CardFacts) -> str:
    # Of a model of images, GGUF files hold the language model alone.
    of_images = facts.loaded_by == "AutoModelForImageTextToText" and facts.format != "gguf"
    return "image-text-to-text" if of_images else "text-generation"


def _way_tags(facts: CardFacts) -> list[str]:
    return ["continued-pretraining"] if facts.trains else []


def _format_tags(kind: Format) -> list[str]:
    return {"safetensors": [], "gguf": ["gguf"], "adapter": ["lora"]}[kind]


def _eval_results(facts: CardFacts) -> list[Any]:
    """The merged model's figures; files that were changed since have none of their own."""
    from huggingface_hub import EvalResult

    if facts.format != "safetensors":
        return []
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text Generation",
            dataset_type=title.slug,
            dataset_name=title.name,
            dataset_split="test",
            metric_type=title.metric,
            metric_name=f"{title.unit}, 95 % interval {figure.low:.4f} to {figure.high:.4f}",
            metric_value=round(figure.estimate, 4),
        )
        for title in result_titles(facts.results, facts.sources)
        for figure in [facts.results.models.merge.sets[title.key]]
    ]


def _parent_row(parent: Parent, trains: bool) -> tuple[str, ...]:
    is_made = parent.role == "specialist" and trains
    # What the reader of a row can get: a repository, a package, or the recipe that makes it.
    made = "made by recipe.yaml, not public" if is_made else "not public"
    weights = parent.origin or ("as in the repository" if parent.is_published else made)
    revision = parent.revision or "not pinned" if parent.is_published and not parent.origin else ""
    return parent.name, parent.role, revision, weights, parent.license or "not stated"


def _what_it_is(facts: CardFacts) -> str:
    general = next(parent for parent in facts.parents if parent.role == "general")
    results = facts.results
    kind = {
        "safetensors": "",
        "gguf": " These are GGUF files of it, for llama.cpp and what builds on it.",
        "adapter": " This is a LoRA adapter that stands for the change, not the model itself: see "
        "its error below.",
    }[facts.format]
    start = next((parent.name for parent in facts.parents if parent.role == facts.start), None)
    way = (
        f"adapted to a domain by continued pre-training of its base, {start}, and a merge with it"
        if start is not None
        else "adapted to a domain by continued pre-training and merged back with the original"
        if facts.trains
        else "merged with a model that was tuned elsewhere for a domain"
        if results.several is None
        else f"merged with {len(results.several.specialists)} models that were tuned elsewhere"
    )
    chosen = (
        f"{way} (`{results.chosen}`) so that it keeps what it could do"
        if results.any_merge
        else "unchanged: no merge kept its general abilities within the limit that was set"
    )
    said = f" {facts.description.rstrip('.')}." if facts.description else ""
    return f"{general.name}, {chosen}.{said}{kind}"


def _use(facts: CardFacts) -> str:
    general = next(parent for parent in facts.parents if parent.role == "general")
    repository = facts.repository
    if facts.format == "adapter":
        # On another revision of its base an adapter makes another model.
        revision = f", revision={general.revision!r}" if general.revision else ""
        load = (
            f"from peft import PeftModel\nfrom transformers import {facts.loaded_by}, "
            "AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{repository}")\n'
            f'base = {facts.loaded_by}.from_pretrained("{general.name}"{revision})\n'
            f'model = PeftModel.from_pretrained(base, "{repository}")'
        )
    else:
        file = f', gguf_file="{facts.files[0]["file"]}"' if facts.format == "gguf" else ""
        kind = "AutoModelForCausalLM" if facts.format == "gguf" else facts.loaded_by
        load = (
            f"from transformers import {kind}, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{repository}")\n'
            f'model = {kind}.from_pretrained("{repository}"{file})'
        )
    run = (
        'messages = [{"role": "user", "content": "What is a balance sheet?"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
        ")\n"
        "answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)\n"
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], '
        "skip_special_tokens=True))"
    )
    code = f"```python\n{load}\n\n{run}\n```"
    if not facts.files:
        return code
    # Files may lack figures that others have: an exact one is not scored on the test sets.
    heads = tuple(dict.fromkeys(key for row in facts.files for key in row))
    rows = [tuple(row.get(head, "") for head in heads) for row in facts.files]
    return f"{code}\n\n{table(heads, rows)}"


def _measured(facts: CardFacts) -> str:
    results = facts.results
    titles = result_titles(results, facts.sources)
    num_scorings = results.test_scorings
    scored = (
        "once, lower is better,"
        if num_scorings == 1
        else f"{num_scorings} times, so that what was chosen after the first look is biased; lower "
        "is better,"
    )
    lines = [
        f"On test items that were scored {scored} with 95 % intervals over groups of "
        "items; signed figures are changes against the general model on the same items.",
        table(("", *(title.head for title in titles)), result_rows(results, titles)),
        f"`{results.chosen}` is one of {len(results.candidates)} candidates that were tried, "
        f"compared on other documents than these. {results.reason}{_kept(results)}",
    ]
    if facts.format != "safetensors":
        lines.insert(1, "The figures are those of the merged model in full, not of these files.")
    if facts.format == "gguf":
        # The sentence that was put in just now: a GGUF file is no safetensors.
        lines[1] += " What each file loses against it stands in the table above."
    return "\n\n".join(lines)


def _kept(results: MergeResults) -> str:
    if results.several is not None:
        return " " + " ".join(several_lines(results, results.several))
    if results.gain_kept is None:
        return ""
    return f" It keeps {percent(results.gain_kept)} of the specialist's domain gain."


def _limits(facts: CardFacts) -> str:
    parts = [
        "Likelihood of text says how well a model knows a domain's language, not whether its "
        "answers are right: it makes things up as its parents do. It was compared with its parents "
        "and with nothing else. The intervals are of other items, not of other runs: with another "
        "seed, another merge may be chosen."
    ]
    sets = facts.results.sets
    # How far they reach is for the intervals to say: the counts alone are given.
    parts.append(f"It was tested on {', '.join(f'{row.name} ({count_of(row)})' for row in sets)}.")
    parts += [f"{row.name}: {row.speaks_for}." for row in sets if row.speaks_for]
    names = [source.name for source in facts.sources if source.role == "general"]
    if names:
        answers = any(row.name == LOSS for row in sets)
        replayed = ", which was also replayed in training" if facts.trains else ""
        parts.append(
            f"What counts as general here is {', '.join(names)}{replayed}"
            + (
                ", and the general model's own answers to prompts of everyday use; "
                "forgetting elsewhere, in other languages for one, was not measured."
                if answers
                else "; forgetting elsewhere, in conversation and other languages, was not "
                "measured by it."
            )
        )
    elif facts.trains:
        parts.append(
            "No general text was replayed in training or watched; what was forgotten was measured "
            "by the general model's own answers to prompts and by questions alone."
        )
    if not facts.trains:
        parts.append(
            "What the specialist was trained on is not known here: test documents that it has seen "
            "flatter it."
            if facts.results.several is None
            else "What the specialists were trained on is not known here: test documents that they "
            "have seen flatter them."
        )
    general = next(parent for parent in facts.parents if parent.role == "general")
    base = public_reference(general.name, general.revision)
    parts.append(f"Nothing was done about its safety beyond what {base} brings.")
    return " ".join(parts)


def _accepted(accepted: Mapping[str, str]) -> str:
    if not accepted:
        return ""
    rows = [f"- `{name}`: {reason}" for name, reason in accepted.items()]
    return "\n".join(["Checks that failed before publication and were accepted:", "", *rows])
