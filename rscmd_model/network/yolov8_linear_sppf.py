"""YOLOv8 as files of format 3 and older have it: layer 9, SPPF, without the activation after its first convolution.

Releases of ultralytics built it so for a while. Models that were trained so go on as they are; no new one is built so.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from rscmd_model.network import yolov8


class Backbone(yolov8.Backbone):
    """YOLOv8's backbone for one modality, with the linear SPPF."""

    def __init__(self, channels: int, scale: str) -> None:
        super().__init__(channels, scale)
        self.b9.cv1.act = nn.Identity()


FAMILY = replace(yolov8.FAMILY, Backbone=Backbone)
