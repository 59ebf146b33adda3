"""What memory packed blocks take, by how their pieces are kept apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from toolkit.train.layout import Layout, without_mask
from toolkit.train.model import NextTokenLoss


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation within makes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.num_bytes = max(self.num_bytes, tensor.untyped_storage().nbytes())
        return made


def largest_tensor(layout: Layout, num_tokens: int, num_pieces: int = 2) -> tuple[int, float]:
    """Largest tensor of a forward and backward pass over one packed block, and the mean loss."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=32, max_position_embeddings=num_tokens,
    )  # fmt: skip
    loss_module = NextTokenLoss(LlamaForCausalLM(config).train(), torch.float32)
    loss_module.layout = layout
    tokens = torch.randint(1, 32, (1, num_tokens))
    segments = (torch.arange(num_tokens) * num_pieces // num_tokens)[None]
    with LargestTensor() as largest:
        loss = loss_module(tokens, tokens.roll(-1, 1), segments)
        loss.backward()
    return largest.num_bytes, float(loss.detach()) / num_tokens


def test_a_mask_grows_with_the_square_and_rows_do_not():
    masks, losses = zip(*(largest_tensor("positions", n) for n in (2048, 4096)), strict=True)
    assert masks[0] >= 2048**2
    assert masks[1] == 4 * masks[0]
    rows, row_losses = zip(*(largest_tensor("rows", n) for n in (2048, 4096)), strict=True)
    assert rows[1] <= 2 * rows[0] < masks[0]
    assert row_losses == pytest.approx(losses, rel=1e-6)


def test_a_block_of_32_thousand_tokens_takes_memory_by_its_length():
    half, whole = (largest_tensor("rows", n)[0] for n in (16_384, 32_768))
    assert whole <= 2 * half
    assert whole < 32_768 * 16 * 4 * 8  # a few hidden states; a mask would be 1 GiB


def test_where_masks_are_done_without():
    assert without_mask("positions", "sdpa", "cuda", 32_768) == "rows"
    assert without_mask("positions", "sdpa", "cuda", 2048) == "positions"
    assert without_mask("positions", "sdpa", "cpu", 32_768) == "positions"
    assert without_mask("positions", "flash_attention_2", "cuda", 32_768) == "positions"
    assert without_mask("lengths", "sdpa", "cuda", 32_768) == "lengths"
    assert without_mask("alone", "eager", "cuda", 32_768) == "alone"
