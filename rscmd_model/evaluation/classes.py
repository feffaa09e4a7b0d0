"""Which classes a model and a data set have in common: matched by name, whatever their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rscmd_model.detections import Detections
from rscmd_model.errors import UserError, several
from rscmd_model.evaluation.scoring import Truth


@dataclass(frozen=True)
class SharedClasses:
    """The classes that are scored, and those that are not.

    Attributes:
        names: of the scored classes by the data's number.
        numbers: the data's number of each scored class by the model's.
        unknown: classes of the data that the model does not know.
        others: classes of the model that the data do not have.
    """

    names: Mapping[int, str]
    numbers: Mapping[int, int]
    unknown: tuple[str, ...]
    others: tuple[str, ...]

    def truth(self, truth: Truth) -> Truth:
        """The boxes of scored classes."""
        kept = np.isin(truth.classes, list(self.names))
        return Truth(truth.boxes[kept], truth.classes[kept])

    def found(self, found: Detections) -> Detections:
        """The boxes of scored classes, in the data's numbers."""
        kept = found.take(np.isin(found.classes, list(self.numbers)))
        return Detections(kept.boxes, kept.scores, np.array([self.numbers[n] for n in kept.classes.tolist()], np.int64))

    def lines(self) -> list[str]:
        """What is left out of the score, for people; none where both have the same classes."""
        left_out = (
            ("the data have classes that the model does not know", self.unknown),
            ("the model finds classes that the data do not have", self.others),
        )
        return [f"{what}; they are left out of the score: {several(names)}" for what, names in left_out if names]


def shared_classes(model: Mapping[int, str], data: Mapping[int, str], title: str) -> SharedClasses:
    """Match classes by name.

    Args:
        model: the model's class names by number.
        data: the data's.
        title: of the data, for the message.

    Raises:
        UserError: they have no class in common.
    """
    of_data = {name: number for number, name in data.items()}
    numbers = {number: of_data[name] for number, name in model.items() if name in of_data}
    if not numbers:
        raise UserError(
            f"the model finds {', '.join(model.values())}; {title} has {', '.join(data.values())}: no class has the "
            "same name in both"
        )
    return SharedClasses(
        {number: data[number] for number in sorted(numbers.values())},
        numbers,
        tuple(name for name in data.values() if name not in model.values()),
        tuple(name for name in model.values() if name not in of_data),
    )
