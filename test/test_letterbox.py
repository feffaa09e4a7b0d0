"""One letterbox: what the predictor shows the network is what a training validates on, and ultralytics' LetterBox."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from test_inference import NAMES, image, model_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import LetterBox

from rscmd_model.datasets.opening import open_data
from rscmd_model.imaging.images import stack_pair
from rscmd_model.imaging.preprocess import fill, place
from rscmd_model.imaging.registration import FILL, Registration
from rscmd_model.inference.device_input import Images, Letterbox
from rscmd_model.inference.predictor import Predictor
from rscmd_model.inference.prepared import Prepared, stacked
from rscmd_model.inference.torch_backends import TorchBackend, _Key
from rscmd_model.training.paired_dataset import PairedDataset

SIDE = 128
# (height, width): the network's own, larger, smaller, upright, thin, and shorter sides that fall between two pixels.
SIZES = [(128, 128), (96, 128), (512, 640), (480, 640), (540, 960), (60, 80), (200, 60), (37, 100), (333, 517)]
SIZES += [(301, 400), (257, 400), (129, 130), (31, 500), (77, 123), (123, 77)]


def pairs(root: Path, batch: int, rect: bool = True) -> PairedDataset:
    """A pair of each of the sizes, as a training validates on them; its name says which."""
    for kind in ("visible", "thermal", "labels"):
        (root / kind / "val").mkdir(parents=True)
    for n, size in enumerate(SIZES):
        visible, thermal = image(*size, n)
        cv2.imwrite(str(root / f"visible/val/{n}.png"), visible)
        cv2.imwrite(str(root / f"thermal/val/{n}.png"), thermal)
        (root / f"labels/val/{n}.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    file = root / "data.yaml"
    folders = {kind: {split: f"{kind}/{split}" for split in ("train", "val")} for kind in ("visible", "thermal")}
    file.write_text(yaml.safe_dump({**folders["visible"], "thermal": folders["thermal"], "names": NAMES}))
    data = {"config": open_data(file), "names": NAMES, "nc": 2, "channels": 4}
    options = get_cfg(overrides={"imgsz": SIDE})
    return PairedDataset(
        img_path="val",
        imgsz=SIDE,
        augment=False,
        hyp=options,
        rect=rect,
        batch_size=batch,
        stride=32,
        pad=0.5,
        data=data,
    )


def pixels(dataset: PairedDataset, index: int) -> tuple[int, np.ndarray]:
    """Which of the sizes it is, and the network's input (H, W, 4) uint8."""
    item = dataset[index]
    return int(Path(item["im_file"]).stem), item["img"].permute(1, 2, 0).numpy()


def test_what_is_validated_has_the_predictor_s_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = pairs(tmp_path, 1)
    predictor = Predictor(model_file(tmp_path / "model.safetensors"), device="cpu")
    shown: list[np.ndarray] = []
    forward = predictor.backend.forward
    monkeypatch.setattr(
        predictor.backend, "forward", lambda batch, a: (shown.append(batch.copy()), forward(batch, a))[1]
    )
    for index in range(len(SIZES)):
        n, validated = pixels(dataset, index)
        predictor.predict(*image(*SIZES[n], n))
        np.testing.assert_array_equal(shown[-1][0], validated)


@pytest.mark.parametrize("rect", [True, False])
def test_in_a_batch_of_several_shapes_there_is_more_grey_and_nothing_else(tmp_path: Path, rect: bool) -> None:
    """Without `rect` everything is a square, as in the recorder of gradients."""
    dataset = pairs(tmp_path, 4, rect)
    more = 0
    for index in range(len(SIZES)):
        n, validated = pixels(dataset, index)
        height, width = validated.shape[:2]
        own, here = place(SIZES[n], SIDE), place(SIZES[n], SIDE, (height, width))
        assert here.inner == own.inner
        expected = np.empty(validated.shape, np.uint8)
        fill(expected, here, *image(*SIZES[n], n))
        np.testing.assert_array_equal(validated, expected)
        more += own.network != (height, width)
    assert more > 0
    assert max(dataset.batch_shapes.max(0)) == SIDE if rect else more > len(SIZES) // 2


def test_placing_is_ultralytics_letterbox() -> None:
    for height, width in SIZES:
        visible, thermal = image(height, width)
        for fixed in (None, (128, 192)):
            placement = place((height, width), SIDE, fixed)
            got = np.empty((*placement.network, 4), np.uint8)
            fill(got, placement, visible, thermal)
            letterbox = LetterBox(fixed or (SIDE, SIDE), auto=fixed is None, stride=32)
            np.testing.assert_array_equal(got, letterbox(image=stack_pair(visible, thermal)))


@pytest.mark.parametrize("cameras", ["both", "visible", "thermal"])
@pytest.mark.parametrize("fixed", [None, (128, 192)])
def test_a_device_places_as_the_processor_does(fixed: tuple[int, int] | None, cameras: str) -> None:
    """The same pixels, up to one level in a few of them."""
    for height, width in [*SIZES, (256, 256), (1, 1), (1, 300)]:
        placement = place((height, width), SIDE, fixed)
        batch = [image(height, width, seed) for seed in range(2)]
        visible, planes = (np.stack(of) for of in zip(*batch))
        box = Letterbox(placement, torch.device("cpu"))
        got = box(
            torch.from_numpy(visible) if cameras != "thermal" else None,
            torch.from_numpy(planes) if cameras != "visible" else None,
        )
        assert got.dtype == torch.uint8
        for out, v, p in zip(got.numpy(), visible, planes):
            wanted = np.empty((*placement.network, 4), np.uint8)
            fill(wanted, placement, v if cameras != "thermal" else None, p if cameras != "visible" else None)
            off = np.abs(out.astype(int) - wanted)
            assert off.max() <= 1
            assert (off > 0).mean() < 0.005


def test_images_as_they_are_are_answered_as_their_stacks(tmp_path: Path) -> None:
    """What a GPU is given, here on the processor: at a size that no pixel is interpolated for, the very same."""
    backend = TorchBackend(model_file(tmp_path / "model.safetensors"), "cpu", None)
    registration = Registration(((2.0, 0, 3.5), (0, 2.0, 1), (0, 0, 1.0)), (64, 48), (128, 96))
    for answers, has in ((("fused",), (1, 1)), (("fused", "visible", "thermal"), (1, 1)), (("thermal",), (0, 1))):
        pairs = []
        for seed in range(2):
            visible, plane = image(96, 128, seed)[0], image(48, 64, seed)[1]
            placement = place((96, 128), SIDE)
            pairs.append(
                Prepared(answers, visible if has[0] else None, plane if has[1] else None, placement, registration)
            )
        for raw, stacks in zip(
            backend.forward(Images.of(pairs), answers), backend.forward(stacked(pairs, None), answers)
        ):
            np.testing.assert_array_equal(raw, stacks)
    assert Images.alike(pairs)
    other = replace(pairs[0], placement=place((96, 96), SIDE))
    assert not Images.alike([*pairs, other])
    assert not Images.alike([*pairs, replace(pairs[0], visible=image(96, 128)[0])])


class OfTheHost(TorchDispatchMode):
    """Notes the operations that read or write a tensor of the host's."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operation(*args, **(kwargs or {}))
        if any(isinstance(of, Tensor) and of.device.type == "cpu" for of in tree_leaves((args, kwargs, out))):
            self.met.append(str(operation))
        return out


@pytest.mark.parametrize("frame", [(96, 128), (333, 517)])
def test_what_a_gpu_records_needs_nothing_of_the_host(frame: tuple[int, int], tmp_path: Path) -> None:
    """A CUDA graph may hold no copy from the host, and nothing that waits for a number or a size. torch follows the
    devices and shapes without a GPU, and refuses what depends on a tensor's numbers."""
    backend = TorchBackend(model_file(tmp_path / "model.safetensors"), "cpu", None)
    placement, answers = place(frame, SIDE), ("fused", "visible", "thermal")
    backend.forward(np.zeros((1, *placement.network, 4), np.uint8), answers)  # as before recording: it makes anchors
    backend.network.half()
    with FakeTensorMode() as abstract:
        backend.network._apply(lambda of: abstract.from_tensor(of).to("cuda"))
        backend._device, backend._dtype = torch.device("cuda"), torch.float16
        stacking = backend._stacking(placement)
        parts = {name: torch.zeros(1, *frame, *rest, dtype=torch.uint8, device="cuda") for name, rest in
                 (("visible", (3,)), ("planes", ()))}  # fmt: skip
        with torch.inference_mode(), OfTheHost() as seen:
            given = torch.stack(backend._answers(stacking(parts), answers))
    assert given.device.type == "cuda"
    assert given.shape[:3] == (3, 1, 4 + len(NAMES))
    assert not seen.met


def test_what_comes_again_is_recorded_and_done_without_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which graphs there are; the recording itself is left out, for which there has to be a GPU."""
    backend = TorchBackend(model_file(tmp_path / "model.safetensors"), "cpu", None)
    recorded: list[tuple[str, ...]] = []

    def record(self: TorchBackend, pinned: Any, placement: Any, answers: tuple[str, ...]) -> Any:
        if answers == ("large",):
            raise torch.OutOfMemoryError("CUDA out of memory")
        if answers == ("broken",):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        recorded.append(answers)
        return len(recorded)

    monkeypatch.setattr(TorchBackend, "_record", record)

    def ask(name: str) -> Any:
        return backend._graph(_Key((name,), None, ()), {})

    assert [ask("a"), ask("b"), ask("a"), ask("a"), ask("b")] == [None, None, 1, 1, 2]
    for name in "cdefgh":
        ask(name)
        ask(name)
    ask("a")
    ask("i")
    assert ask("i") == 9
    assert ask("a") == 1, "it was used again, and b was not"
    assert ask("b") == 10
    assert ask("c") == 11, "the eight that were used last have one"
    ask("large")
    assert [ask("large"), ask("large")] == [None, None]
    assert not backend._graphs, "their memory was given back"
    assert ask("a") == 12
    ask("broken")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        ask("broken")


def test_32_bits_are_32_bits(tmp_path: Path) -> None:
    """cuDNN's convolutions take TF32 by default; what others have set is as it was afterwards."""
    backend, cudnn = TorchBackend(model_file(tmp_path / "model.safetensors"), "cpu", None), torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    assert before[-1]
    with backend._exact():
        assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (*before[:3], False)
    assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == before


def test_grey_is_ultralytics() -> None:
    assert LetterBox().padding_value == FILL
