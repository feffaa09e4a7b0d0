"""What to evaluate: all of it as plain values, so that a job can be sent to another process. Imports little."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rscmd_ros.bags.topics import THERMAL_TOPIC, VISIBLE_TOPIC
from rscmd_ros.node.pairing_options import PairingOptions

BATCH = 8
"""Pairs that go through the network together; docs/bags.md has what that gains."""
LOWEST_SCORE = 0.001
"""The precision-recall curve is measured down to here."""


@dataclass(frozen=True)
class Job:
    """What to evaluate and how.

    Attributes:
        bag: rosbag2 folder, or a .mcap or .db3 file.
        model: the model's file.
        visible_topic: of the visible images.
        thermal_topic: of the thermal images.
        options: of pairing.
        truth: COCO file of the truth.
        truth_topic: topic of the truth, where there is no file; with neither the usual topic, if it is there.
        registration: registration.yaml in place of the model's own.
        answer: what answers a pair, "fused" or "ensemble"; None: as the model says.
        device: auto, cpu or cuda:N.
        batch: pairs that go through the network together.
        samples: pairs to keep as pictures.
    """

    bag: Path
    model: Path
    visible_topic: str = VISIBLE_TOPIC
    thermal_topic: str = THERMAL_TOPIC
    options: PairingOptions = field(default_factory=PairingOptions)
    truth: Path | None = None
    truth_topic: str | None = None
    registration: Path | None = None
    answer: str | None = None
    device: str = "auto"
    batch: int = BATCH
    samples: int = 0

    @property
    def topics(self) -> dict[str, str]:
        """By stream."""
        return {"visible": self.visible_topic, "thermal": self.thermal_topic}
