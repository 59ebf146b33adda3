"""Adapters made up for tests, and what peft makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM


def make_adapter(model: Path, folder: Path, **settings: Any) -> Path:
    torch.manual_seed(7)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings),
    )
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(folder)
    return folder


def through_peft(base: Path, adapter: Path) -> dict[str, Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base)
    merged: dict[str, Tensor] = (
        PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    )
    return merged
