"""Two tiny sites and models that are at home on the first one, for the tests of what a second site changes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from test_train import two_class_world
from torch import Tensor, nn

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs, split_hash
from rscmd_model.methods import parse_method
from rscmd_model.network.memory import save_memory
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import ModelHeader, load_model, save_model
from rscmd_model.training.remembering import remember


def other_world(root: Path) -> Path:
    """The pairs of `two_class_world` with other pictures: inverted."""
    data = two_class_world(root)
    for file in sorted((root / "visible/train").iterdir()) + sorted((root / "thermal/train").iterdir()):
        cv2.imwrite(str(file), 255 - cv2.imread(str(file), cv2.IMREAD_UNCHANGED))
    return data


class Sites:
    """Two tiny sites, and a model of each method that is at home on the first one, with its memory.

    The weights are random ones, and BatchNorm has the statistics of the first site's pairs: every layer says something
    about them, which a network after a few steps of training does not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first, self.second = two_class_world(folder / "first"), other_world(folder / "second")

    def model(self, method: str) -> Path:
        file = self.folder / method / "model.safetensors"
        if not file.is_file():
            data = open_data(self.first)
            torch.manual_seed(0)
            model = RscmdModel(parse_method(method), data.names).train()
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.momentum = 1.0
            with torch.no_grad():
                model.answers(inputs(self.first))
            about = {"name": data.name, "split_hash": split_hash(find_pairs(data, "train"))}
            save_model(file, model, ModelHeader(model.config, data.names, 32, data.thermal_contract, about))
        return file

    def memory(self, method: str) -> Path:
        file = self.model(method).with_name("memory.safetensors")
        if not file.is_file():
            save_memory(file, remember(self.model(method), open_data(self.first)))
        return file


def inputs(data: Path, split: str = "train") -> Tensor:
    """The network's inputs (B, 4, 32, 32) for the pairs of a site, as a memory is made of them."""
    config = open_data(data)
    stacks = []
    for pair in find_pairs(config, split):
        visible, thermal = cv2.imread(str(pair.visible)), cv2.imread(str(pair.thermal), 0)
        stack = np.dstack((visible[..., ::-1], thermal))
        stacks.append(cv2.resize(stack, (32, 32), interpolation=cv2.INTER_LINEAR))
    return torch.from_numpy(np.stack(stacks)).permute(0, 3, 1, 2).float() / 255


def answers(file: Path, x: Tensor) -> dict[str, Tensor]:
    """By answer and part what the heads of a model say, before it becomes boxes and scores."""
    model = load_model(file)[0]
    with torch.no_grad():
        found = model.answers(x)
    return {f"{name} {part}": raw[part] for name, (_, raw) in found.items() for part in ("boxes", "scores")}


def change(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """The largest change of what is answered, as a share of the largest number in it."""
    assert set(before) == set(after)
    parts = [(before[name], after[name]) for name in before if name != "feats"]
    return max(float((new - old).abs().max() / old.abs().max()) for old, new in parts)
