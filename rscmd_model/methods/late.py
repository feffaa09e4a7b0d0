"""`late`: two detectors of one camera each in one model, whose answers are joined box by box. Nothing is fused before.

What joins them is `inference.late_fusion`, and it is not trained. Each stream is the control of its camera, but for one
thing: the trainer clips the gradients of both by their common norm.
"""

from __future__ import annotations

from typing import Any

from rscmd_model.methods.base import Method


class Late(Method):
    """Late fusion."""

    takes_incomplete = True

    @classmethod
    def shipped(cls, settings: Any) -> tuple[str, ...]:
        """One answer for each modality, and no fused one."""
        return cls.modalities
