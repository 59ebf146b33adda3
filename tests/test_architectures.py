"""Every causal language model that transformers can build small: trained, scored and merged as it
computes, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers.architectures import (
    causal_model_types,
    live_fault,
    packed_error,
    scored_error,
    small_model,
)
from toolkit.errors import CheckpointError

NOT_BUILT = {
    "gemma3n": "its tower is one of timm, which is not here",
    "gemma4_assistant": "it drafts from the states of another model, and computes nothing alone",
    "gemma4_unified_assistant": "it drafts from the states of another model",
    "musicgen": "AutoModelForCausalLM reads the decoder's settings off the whole's, and fails",
    "musicgen_melody": "AutoModelForCausalLM reads the decoder's settings off the whole's",
}
"""Without a small form, and why."""


class Architecture(NamedTuple):
    model_type: str
    model: Any


@pytest.fixture(scope="module", params=sorted(set(causal_model_types()) - set(NOT_BUILT)))
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return Architecture(request.param, small_model(request.param))


@pytest.mark.filterwarnings("ignore")
def test_packed_documents_have_the_loss_of_each_alone(architecture: Architecture):
    _, error = packed_error(architecture.model)
    assert error < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_each_text_alone(architecture: Architecture):
    _, error = scored_error(architecture.model)
    assert error < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_a_merge_in_memory_is_known_to_work_or_not(architecture: Architecture, tmp_path: Path):
    try:
        why = live_fault(architecture.model, tmp_path)
    except CheckpointError as error:
        why = str(error)
    assert not why
