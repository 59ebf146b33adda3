"""Merges by mergekit's own engine: what it is told, and what it cannot be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toolkit.checkpoint.models import Models
from toolkit.errors import MergeError
from toolkit.merge import to_disk as module
from toolkit.merge.config import parse_merge_config
from toolkit.merge.fallback import replace_names
from toolkit.merge.to_disk import run_merge


def test_every_name_of_a_model_is_its_folder(two_models: tuple[Path, Path]):
    base, tuned = two_models
    config = parse_merge_config(
        {
            "merge_method": "linear",
            "base_model": "base",
            "models": [{"model": "half"}, {"model": "half+./lora"}, {"model": f"{tuned}+./lora"}],
            "tokenizer": {
                "source": "half",
                "tokens": {
                    "<a>": {"source": "base"},
                    "<b>": {"source": "half"},
                    "<c>": {"source": {"kind": "model_token", "model": "half", "token_id": 3}},
                },
            },
        },
        where="test",
    )
    models = Models({"half": tuned, "base": base})
    plain = config.model_dump(mode="json", exclude_none=True)
    found = replace_names(plain, config, models)
    assert found["base_model"] == str(base)
    assert [item["model"] for item in found["models"]] == [
        str(tuned), f"{tuned}+./lora", f"{tuned}+./lora",
    ]  # fmt: skip
    assert found["tokenizer"]["source"] == str(tuned)
    tokens = {text: entry["source"] for text, entry in found["tokenizer"]["tokens"].items()}
    # `base` is a word of mergekit's for a vocabulary, and a name for the row of one token.
    assert tokens["<a>"] == str(base)
    assert tokens["<b>"] == tokens["<c>"]["model"] == str(tuned)
    source = replace_names({"tokenizer_source": "base"}, config, models)
    assert source == {"tokenizer_source": "base"}


@pytest.mark.parametrize(
    ("options", "key"),
    [({"truncate_embeddings": True}, "--truncate-embeddings"), ({"device": "meta"}, "--device")],
)
def test_what_mergekit_s_engine_would_pass_over_is_refused(
    two_models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    key: str,
):
    monkeypatch.setattr(module, "_is_mergekit_s", lambda _: True)
    monkeypatch.setattr(module, "check_device", lambda _: None)
    data = {"merge_method": "theirs", "models": [{"model": str(f)} for f in two_models]}
    config = parse_merge_config(data, where="test")
    with pytest.raises(MergeError, match=f"{key}: theirs is merged by mergekit's own engine"):
        run_merge(config, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
