"""Both kinds of machine in one: a processor with bfloat16 that behaves as one without."""

from __future__ import annotations

from toolkit.machine import product_speeds

AVX2_ONLY = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Environment that makes torch on a processor with AVX-512 and bfloat16 behave as on one without:
on a Zen 4, the gradient of a linear layer's input then takes 2.7 GFLOP/s in bfloat16 and 197 in
float32, and training SmolLM2 in bfloat16 falls to a few tokens per second (dev/LOG.md)."""


def is_fast_in_bfloat16() -> bool:
    """Whether this machine is the other kind already."""
    speeds = product_speeds("cpu").flops
    return speeds["bf16"] > speeds["fp32"]
