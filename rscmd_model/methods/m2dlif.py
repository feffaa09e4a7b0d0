"""`m2dlif`: M2D-LIF, distillation and fusion by light together (Zhao et al., ICCV 2025, arXiv 2503.11780).

    L = L_det(h(2 W f_v + 2 (1 - W) f_t)) + lambda_m2d (L_inner + L_cross) + lambda_lif L_brightness

What is faithful and what is adapted stands in `m2d` and `lif`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rscmd_model.methods.lif import Lif, LifSettings
from rscmd_model.methods.m2d import M2d, M2dSettings


@dataclass(frozen=True)
class M2dLifSettings(LifSettings, M2dSettings):
    """Settings of both."""


class M2dLif(Lif, M2d):
    """Both halves."""

    Settings = M2dLifSettings
