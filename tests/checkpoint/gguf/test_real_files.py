"""llama.cpp's own converter as oracle: SmolLM2 there and back is the file it came from."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from toolkit.checkpoint.gguf.read import convert_gguf
from toolkit.checkpoint.gguf.write import export_gguf
from toolkit.data.artifacts import extract_member, fetch_artifact
from toolkit.errors import DataError
from toolkit.recipe.load import load_recipe

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    artifact = load_recipe(ROOT / "recipes/finance.yaml").model.artifact
    assert artifact is not None
    try:
        archive = fetch_artifact(artifact)
    except DataError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no artifact: {error}")
    return extract_member(archive, artifact.member, tmp_path_factory.mktemp("gguf"))


def test_it_is_what_llama_cpp_wrote(original: Path, tmp_path: Path):
    convert_gguf(original, tmp_path / "model", torch.bfloat16)
    export_gguf(tmp_path / "model", tmp_path / "again.gguf", "BF16", name="again")
    theirs, ours = gguf.GGUFReader(original), gguf.GGUFReader(tmp_path / "again.gguf")
    for key, field in theirs.fields.items():
        # Names and types of files are their own; how the model and tokenizer work is not.
        if key.startswith(("llama.", "tokenizer.")) or key == "general.architecture":
            assert ours.fields[key].contents() == field.contents(), key
    found = {tensor.name: tensor for tensor in ours.tensors}
    assert set(found) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        wanted = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        got = gguf.dequantize(found[tensor.name].data, found[tensor.name].tensor_type)
        np.testing.assert_array_equal(got, wanted.to(torch.bfloat16).float().numpy())
