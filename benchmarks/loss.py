"""Output projection and cross entropy, forward and backward: ours against PyTorch's, in turn.

Prints the median time of each and the median of the ratios pair by pair.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from toolkit.train.loss import linear_cross_entropy

POSITIONS, HIDDEN, VOCABULARY, PAIRS = 1024, 576, 49152, 7


def main() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(POSITIONS, HIDDEN, requires_grad=True)
    head = (torch.randn(VOCABULARY, HIDDEN) * 0.05).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (POSITIONS,))

    def pytorch() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = F.linear(hidden, head)
        F.cross_entropy(logits.float(), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]

    def ours() -> None:
        linear_cross_entropy(hidden, head, labels, dtype=torch.bfloat16).backward()  # type: ignore[no-untyped-call]

    pairs = [(_seconds(pytorch, hidden, head), _seconds(ours, hidden, head)) for _ in range(PAIRS)]
    theirs, mine = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
    ratio = statistics.median(a / b for a, b in pairs[1:])
    print(f"{POSITIONS} positions, {HIDDEN} hidden, {VOCABULARY} tokens, bfloat16, medians")
    print(f"PyTorch {theirs:.3f} s, fused {mine:.3f} s: {ratio:.2f} times as fast")


def _seconds(act: Callable[[], None], *leaves: torch.Tensor) -> float:
    for leaf in leaves:
        leaf.grad = None
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
