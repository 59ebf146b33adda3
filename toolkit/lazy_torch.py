"""torch, loaded when it is first used: that takes over a second, and kernels need none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:

    class _Lazy:
        def __getattr__(self, name: str) -> Any:
            import torch as real

            return getattr(real, name)

    torch = _Lazy()
    Tensor = Any  # only ever written in annotations, which are not evaluated

__all__ = ["Tensor", "torch"]
