"""`visible` and `thermal`: a detector of one camera, the control that a branch alone has to beat."""

from __future__ import annotations

from typing import Any

from rscmd_model.methods.base import Method


class Visible(Method):
    """The visible camera alone."""

    modalities = ("visible",)
    takes_incomplete = True

    @classmethod
    def shipped(cls, settings: Any) -> tuple[str, ...]:
        """Its only answer."""
        return cls.modalities


class Thermal(Visible):
    """The thermal camera alone."""

    modalities = ("thermal",)
    takes_incomplete = True
