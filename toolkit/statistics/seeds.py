"""Seeds by name, so that no order of calls decides what is drawn."""

from __future__ import annotations

from toolkit.stage import hash_bytes


def named_seed(seed: int, *names: str) -> int:
    """A seed of its own for each purpose: what else is drawn, and when, changes nothing."""
    return int(hash_bytes("/".join([str(seed), *names]).encode())[:8], 16)
