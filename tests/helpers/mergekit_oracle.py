"""One configuration run by mergekit and by this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from toolkit.merge.config import parse_merge_config
from toolkit.merge.to_disk import run_merge


def both(
    data: dict[str, Any], tmp_path: Path, **more: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same configuration by us and by mergekit, with more of its options."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge as mergekit_run
    from mergekit.options import MergeOptions

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    run_merge(parse_merge_config(data, where="test"), ours)
    options = MergeOptions(quiet=True, write_model_card=False, **more)
    mergekit_run(MergeConfiguration.model_validate(data), str(theirs), options)
    return _load(ours), _load(theirs)


def _load(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found
