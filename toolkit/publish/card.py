"""The model card, written from what the stages recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

MODELS = (("general", "general model"), ("specialist", "specialist"), ("merge", "this model"))


def model_card(
    repository: str,
    results: Mapping[str, Any],
    *,
    general: str,
    license_name: str,
    sources: Sequence[Mapping[str, str]],
    merge_yaml: str,
) -> str:
    """The card (README.md) of a merged model, with metadata for the hub.

    Args:
        repository: `org/name` that it is published as.
        results: of the merge stage.
        general: public name of the general model.
        license_name: SPDX identifier of its licence.
        sources: name, role and licence of each source of text.
        merge_yaml: the merge, with public names.
    """
    metadata = {
        "license": license_name,
        "base_model": [general],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "mergekit", "continued-pretraining"],
    }
    rows = [
        f"| {title} | {_interval(results['models'][key]['domain'])} | "
        f"{_interval(results['models'][key]['general'])} |"
        for key, title in MODELS
    ]
    texts = [f"| {s['name']} | {s['role']} | {s['license']} |" for s in sources]
    lines = [
        "---",
        yaml.safe_dump(metadata, sort_keys=False).strip(),
        "---",
        f"# {repository.rsplit('/', 1)[-1]}",
        "",
        f"{general}, adapted to a domain by continued pre-training and merged back with itself so "
        "that it keeps what it could do.",
        f"{results['description']}." if results["description"] else "",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{repository}")',
        f'model = AutoModelForCausalLM.from_pretrained("{repository}")',
        "```",
        "",
        "## What was measured",
        "",
        "Bits per byte on test documents that were scored once, lower is better, with 95 % "
        "intervals (bootstrap over documents).",
        "",
        f"| | domain ({results['test']['domain']} documents) | "
        f"general ({results['test']['general']} documents) |",
        "|---|---|---|",
        *rows,
        "",
        f"The merge `{results['chosen']}` is one of {len(results['candidates'])} candidates, "
        "compared on other documents than these. " + results["reason"],
        "",
        "## How it was made",
        "",
        "```yaml",
        merge_yaml.strip(),
        "```",
        "",
        "| text | role | terms |",
        "|---|---|---|",
        *texts,
        "",
        "## Limits",
        "",
        "Likelihood of text says how well a model knows a domain's language, not whether its "
        "answers are right. Chat behaviour was not measured; try it on your own questions before "
        "you rely on it.",
        "",
    ]
    return "\n".join(lines)


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['estimate']:.4f} ({value['low']:.4f} to {value['high']:.4f})"
