"""The paired torch dataset: ultralytics' own, whose image is the 4-channel stack of a pair.

Geometry (mosaic, affine, flips, letterbox) acts on the stack and so on both images alike. Photometric changes act on
each in its own way, see `PairedPhotometric`.

An image is resized to the size that `preprocess.place` gives. What is validated has the pixels that the predictor
shows the network, if the pairs of its batch are of one shape; other batches have more grey around some of them. What
is trained on goes through ultralytics' augmentation, which places it in a square.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from ultralytics.data.augment import BaseTransform, Compose, RandomHSV
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import LOGGER

from rscmd_model.config import MODALITIES
from rscmd_model.datasets.inspection import check_pairs
from rscmd_model.datasets.pairs import DataConfig, find_pairs
from rscmd_model.errors import UserError
from rscmd_model.imaging.images import read_thermal, read_visible, stack_pair
from rscmd_model.imaging.preprocess import place
from rscmd_model.imaging.registration import FILL
from rscmd_model.network.detection_loss import MOST
from rscmd_model.network.lost import LOST
from rscmd_model.training.disk_cache import check_room, read_stack, stack_file, write_stack

if TYPE_CHECKING:
    from rscmd_model.training.resume import Epoch

_PLANES = {"visible": slice(0, 3), "thermal": slice(3, 4)}


class PairedPhotometric(RandomHSV):
    """Hue, saturation and value for the visible image; level and contrast for the thermal one.

    The options are ultralytics' own: hsv_h, hsv_s, hsv_v for the visible image as always. For the thermal image hsv_v
    also bounds the change of contrast about the mean, and a quarter of it the change of level (fractions of full
    scale).
    """

    def apply_image(self, labels: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Change labels["img"], (H, W, 4) uint8 red, green, blue, thermal."""
        stack = labels["img"]
        # The parent expects blue first. Its random hue shift is symmetric about zero, so the order does not matter.
        visible = super().apply_image({"img": cv2.cvtColor(stack, cv2.COLOR_RGBA2RGB)}, params)["img"]
        thermal = cv2.extractChannel(stack, 3)
        contrast = 1 + np.random.uniform(-1, 1) * self.vgain
        level = np.random.uniform(-1, 1) * self.vgain / 4 * 255
        mean = thermal.astype(np.float32).mean()
        table = (np.arange(256, dtype=np.float32) - mean) * contrast + mean + level  # once a value, not once a pixel
        thermal = cv2.LUT(thermal, np.clip(table, 0, 255).astype(np.uint8))
        labels["img"] = cv2.merge((visible, thermal))  # np.dstack takes several times as long
        return labels


class ThermalShift(BaseTransform):
    """Moves the thermal channel against the visible ones, by whole pixels drawn evenly from -most to most.

    Args:
        most: pixels of the network's input, for right and down each.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def apply_image(self, labels: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Change the last channel of labels["img"], (H, W, 4) uint8; what becomes free is the letterbox's grey."""
        stack = labels["img"]
        dx, dy = np.random.randint(-self.most, self.most + 1, 2)
        matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        plane = cv2.extractChannel(stack, 3)
        plane = cv2.warpAffine(plane, matrix, plane.shape[::-1], flags=cv2.INTER_NEAREST, borderValue=(FILL,))
        labels["img"] = cv2.merge((cv2.cvtColor(stack, cv2.COLOR_RGBA2RGB), plane))
        return labels


class PairedDataset(YOLODataset):
    """Pairs of a split as the ultralytics trainer wants its data. Writes nothing into the data's folders.

    Where labels that are trained on have weights or regions to ignore, three columns beside the class carry the weights
    (for fused, visible, thermal) through the augmentation, and a region goes along as a box of weight 0. A batch has
    them as "weights". Elsewhere, and in what is validated, there are the objects alone.

    Args:
        data: with "config" (a `DataConfig`) and the keys ultralytics looks for.
        img_path: name of the split.
        thermal_shift: as in `Augmentation`; acts only when the images are augmented at all.
        lost: the camera that pairs have lost for good, "visible" or "thermal", by their stems. Its image is black, to
            the letterbox and after the augmentation, and a batch has "lost" as `network.lost` describes it. Mosaic,
            mixup and cutmix put together pairs that have the same cameras.
        cameras: that the model has. A pair that has lost the only one is left out.
        cache_folder: where cache="disk" keeps decoded and resized pairs, see `disk_cache`.
        kwargs: as `ultralytics.data.dataset.YOLODataset`.

    Raises:
        UserError: pairs that cannot be used (their number and the first ones), no room for cache="disk", or a training
            split without an object.
    """

    def __init__(
        self,
        *args: Any,
        data: dict[str, Any],
        hyp: SimpleNamespace,
        thermal_shift: int = 0,
        lost: Mapping[str, str] | None = None,
        cameras: Sequence[str] = MODALITIES,
        cache_folder: Path | None = None,
        **kwargs: Any,
    ) -> None:
        self.lost, self.cameras = dict(lost or {}), cameras
        self.epoch: Epoch | None = None  # set by the loader of a training
        self.thermal_shift = thermal_shift  # the parent's constructor builds the transforms, and fills the cache
        self.cache_folder = cache_folder
        super().__init__(*args, data=data, hyp=hyp, **kwargs)
        self.lost_of = [self.lost.get(self.pairs[file].stem) for file in self.im_files]
        self.wanted: str | None = None  # what the sample has lost that is being made
        if self.augment and not any(len(label["cls"]) for label in self.labels):
            of = f" of classes={kwargs['classes']}" if kwargs.get("classes") else ""
            raise UserError(f"{data['config'].root}: no label of the training split names an object{of}")

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """Visible images of the split's pairs (all of them, or the first `fraction`)."""
        config: DataConfig = self.data["config"]
        pairs = find_pairs(config, str(img_path))
        count = self.fraction if isinstance(self.fraction, int) else max(1, round(len(pairs) * self.fraction))
        pairs = pairs[:count]
        if self.lost and len(self.cameras) == 1:
            pairs = [pair for pair in pairs if self.lost.get(pair.stem) not in self.cameras]
            self.lost = {}
            if not pairs:
                raise UserError(
                    f"{config.root}: no pair of {img_path} is left that has not lost its {self.cameras[0]} image"
                )
        self.pairs = {str(pair.visible): pair for pair in pairs}
        return list(self.pairs)

    def get_labels(self) -> list[dict[str, Any]]:
        """Labels of the pairs, after every file has been read once."""
        config: DataConfig = self.data["config"]
        checked, read_over = check_pairs(config, list(self.pairs.values()))
        self.frames = {file: check["size"] for file, check in zip(self.im_files, checked)}
        for line in read_over:
            LOGGER.warning(f"{self.prefix}{line}")
        labels = [
            {
                "im_file": file,
                "shape": check["size"],
                "cls": check["labels"][:, :1],
                "bboxes": check["labels"][:, 1:],
                "segments": [],
                "keypoints": None,
                "normalized": True,
                "bbox_format": "xywh",
            }
            for file, check in zip(self.im_files, checked)
        ]
        if self.augment and any(c["weights"] is not None or c["ignore"] is not None for c in checked):
            for label, check in zip(labels, checked):
                weights, ignore = check["weights"], check["ignore"]
                label["weights"] = np.ones((len(label["cls"]), 3), np.float32) if weights is None else weights
                label["ignore"] = np.zeros((0, 4), np.float32) if ignore is None else ignore[:, 1:]
            self._tell(labels)
        return labels

    def _tell(self, labels: list[dict[str, Any]]) -> None:
        """Say in the log how many labels teach less than others."""
        weights = np.concatenate([label["weights"] for label in labels])
        regions = sum(len(label["ignore"]) for label in labels)
        LOGGER.info(
            f"{self.prefix}{len(weights)} boxes: {(weights[:, 0] < 1).sum()} weighted by score; "
            f"{(weights[:, 1] == 0).sum()} hidden from the visible branch, "
            f"{(weights[:, 2] == 0).sum()} from the thermal; {regions} regions ignored"
        )

    def update_labels(self, include_class: list[int] | None) -> None:
        """The parent's choice of classes, also for the weights. A region is ignored whatever its class."""
        for label in self.labels:
            if include_class is not None and "weights" in label:
                label["weights"] = label["weights"][np.isin(label["cls"][:, 0], include_class)]
        super().update_labels(include_class)

    def update_labels_info(self, label: dict[str, Any]) -> dict[str, Any]:
        """As the parent's, which makes `Instances` of the boxes; regions become boxes, and weights columns."""
        weights, ignore = label.pop("weights", None), label.pop("ignore", None)
        if weights is not None:
            objects = np.hstack((label["cls"], weights))
            label["cls"] = np.vstack((objects, np.zeros((len(ignore), objects.shape[1]), np.float32)))
            label["bboxes"] = np.vstack((label["bboxes"], ignore))
        return super().update_labels_info(label)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The parent's sample; where pairs have lost cameras, without the image of its lost one."""
        if self.epoch is not None:
            self.epoch.meet(self)
        camera = self.wanted = self.lost_of[index]
        sample: dict[str, Any] = super().__getitem__(index)
        if self.lost:
            sample["lost"] = LOST[camera] if camera else 0
            if camera:
                sample["img"][_PLANES[camera]] = 0
        return sample

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """The parent's. A partner for a sample that has other cameras gives way to one that has the same."""
        if self.lost_of[index] != self.wanted:
            alike = [i for i in self.buffer if self.lost_of[i] == self.wanted]  # in memory already, see `load_image`
            index = random.choice(alike or [i for i, lost in enumerate(self.lost_of) if lost == self.wanted])
        label: dict[str, Any] = super().get_image_and_label(index)
        return label

    @staticmethod
    def collate_fn(batch: list[dict[str, Any]]) -> dict[str, Any]:
        """The parent's batch and `MOST`; where the samples have them, with "weights" (R, 3) beside "cls", and "lost"
        (B,)."""
        width = max(sample["cls"].shape[1] for sample in batch)  # that of a sample without labels is always 1
        if width > 1:
            batch = [{**sample, "cls": sample["cls"].reshape(len(sample["cls"]), width)} for sample in batch]
        collated: dict[str, Any] = YOLODataset.collate_fn(batch)
        collated[MOST] = max(len(sample["cls"]) for sample in batch)
        if width > 1:
            classes, weights = torch.split(collated["cls"], [1, width - 1], dim=1)
            collated["cls"], collated["weights"] = classes.contiguous(), weights.contiguous()
        if "lost" in collated:
            collated["lost"] = torch.tensor(collated["lost"])
        return collated

    def set_rectangle(self) -> None:
        """Sort the pairs by their shape; those of a batch share the smallest input that holds them all.

        The parent leaves half a stride of grey around the images that are validated, and the predictor leaves none.
        """
        super().set_rectangle()  # sorts the labels
        networks = np.array([place(self.frames[label["im_file"]], self.imgsz).network for label in self.labels])
        self.batch_shapes = np.array([networks[self.batch == number].max(0) for number in range(self.batch[-1] + 1)])

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """Stack of pair i, its longer side resized to imgsz (or stretched to a square when not `rect_mode`).

        Returns:
            (h, w, 4) uint8, original (height, width) of the visible image, and (h, w).
        """
        if self.ims[i] is None:
            stack, (h0, w0) = self._cached(i) if rect_mode else None, self.frames[self.im_files[i]]
            if stack is None:
                stack, (h0, w0) = self._decoded(i, rect_mode)
            if not self.augment or self.cache == "ram":
                return stack, (h0, w0), stack.shape[:2]
            # The mosaic takes its partners from images that are in memory already, as in the parent class.
            self.ims[i], self.im_hw0[i], self.im_hw[i] = stack, (h0, w0), stack.shape[:2]
            self.buffer.append(i)
            if 1 < len(self.buffer) >= self.max_buffer_length:
                j = self.buffer.pop(0)
                self.ims[j] = self.im_hw0[j] = self.im_hw[j] = None
            return stack, (h0, w0), stack.shape[:2]
        return self.ims[i], self.im_hw0[i], self.im_hw[i]

    def _cached(self, i: int) -> np.ndarray | None:
        """The stack of pair i as cache="disk" has it; a file that is gone or damaged is none."""
        return read_stack(self.npy_files[i]) if self.cache == "disk" else None

    def _decoded(self, i: int, rect_mode: bool = True) -> tuple[np.ndarray, tuple[int, int]]:
        """What `load_image` makes of the files of pair i, and (height, width) of the visible image."""
        pair = self.pairs[self.im_files[i]]
        config: DataConfig = self.data["config"]
        contract = config.thermal_contract
        thermal = contract.apply(read_thermal(pair.thermal, contract))
        stack = stack_pair(read_visible(pair.visible), thermal, config.registration)
        h0, w0 = stack.shape[:2]
        height, width = place((h0, w0), self.imgsz).inner if rect_mode else (self.imgsz, self.imgsz)
        if (height, width) != (h0, w0):
            stack = cv2.resize(stack, (width, height), interpolation=cv2.INTER_LINEAR)
        return stack, (h0, w0)

    def check_cache_disk(self, safety_margin: float = 0.1) -> bool:
        """Name the files of cache="disk", in place of the parent's beside the images, and look for room for them.

        Raises:
            UserError: there is not enough. The parent would go on without a cache.
        """
        assert self.cache_folder is not None
        sizes = [place(self.frames[file], self.imgsz).inner for file in self.im_files]
        pairs, config = [self.pairs[file] for file in self.im_files], self.data["config"]
        self.npy_files = [stack_file(self.cache_folder, config, pair, size) for pair, size in zip(pairs, sizes)]
        check_room(self.cache_folder, [size for file, size in zip(self.npy_files, sizes) if not file.exists()])
        return True

    def cache_images_to_disk(self, i: int) -> None:
        """Write the stack of pair i, unless it is there; raises as `write_stack`."""
        if self._cached(i) is None:
            write_stack(self.npy_files[i], self._decoded(i)[0])

    def build_transforms(self, hyp: SimpleNamespace) -> Compose:
        """The parent's transforms, with `PairedPhotometric` for the photometric one and `ThermalShift` at the end."""
        transforms = super().build_transforms(hyp)
        for i, transform in enumerate(transforms.transforms):
            if type(transform) is RandomHSV:
                transforms.transforms[i] = PairedPhotometric(hyp.hsv_h, hyp.hsv_s, hyp.hsv_v)
        if self.augment and self.thermal_shift:
            transforms.insert(len(transforms.transforms) - 1, ThermalShift(self.thermal_shift))  # the last one formats
        return transforms
