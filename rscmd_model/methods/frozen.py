"""`frozen`: a neck and head on two backbones that stay as their single-camera controls left them.

The control of distillation: it asks whether training the backbones together is needed at all (asked of M2D-LIF's
authors in issue 7 of their repository). Ours; no paper. The controls' backbones are copied at the start, with their
running statistics, and held still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from rscmd_model.methods.sum import Sum

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel


class Frozen(Sum):
    """Plain fusion of backbones that are not trained."""

    frozen: ClassVar[tuple[str, ...]] = ("backbones",)

    @classmethod
    def needs_teachers(cls, settings: Any) -> bool:
        """It takes their backbones."""
        return True

    @classmethod
    def asks_teachers(cls, settings: Any) -> bool:
        """A finished model has them."""
        return False

    def start(self, model: RscmdModel, pairs: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """Take the teachers' backbones. They are part of the model from here on, and their files are not needed.

        Without teachers it goes on from a finished model.
        """
        if model.teachers is None:
            return
        for m in self.modalities:
            model.backbones[m].load_state_dict(model.teachers.backbone(m).state_dict())
        model.teachers = None
