"""What a camera saw, whatever the place: features pooled over positions."""

from __future__ import annotations

from torch import Tensor


def pooled(feature: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C), the mean over positions; added up in 32 bits, since 16 may not hold the sum."""
    return feature.float().mean((2, 3)).to(feature.dtype)
