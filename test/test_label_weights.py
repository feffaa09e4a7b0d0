"""Labels that no person drew: what is read of them, how it goes through augmentation, and what it teaches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from controls import controls
from test_objective import make_batch, make_model
from test_pairs import write_world
from test_train import QUICK
from torch import Tensor
from ultralytics.cfg import get_cfg

from rscmd_model import train as train_command
from rscmd_model.datasets.check import check
from rscmd_model.datasets.inspection import check_pairs
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import Labels, find_pairs, read_labels
from rscmd_model.datasets.sidecars import Found, Sidecar, label_line, label_text, write_sidecar
from rscmd_model.errors import UserError
from rscmd_model.methods import METHODS, method_config, needs_teachers
from rscmd_model.network.objective import Detection, seen_by
from rscmd_model.network.teachers import Teachers
from rscmd_model.training.paired_dataset import PairedDataset
from rscmd_model.training.run import train
from rscmd_model.training.trainer import PairedTrainer

FUSED, VISIBLE, THERMAL = range(3)
# Of one pair: seen by both cameras, by the thermal one alone, and by one that was never asked about single cameras.
BOTH = Found(label_line(0, (0.25, 0.3, 0.3, 0.4)), 0.9, visible=0.8, thermal=0.7, track=4)
HOT = Found(label_line(1, (0.7, 0.7, 0.4, 0.4)), 0.5, visible=0.02, thermal=0.6)
UNASKED = Found(label_line(0, (0.6, 0.2, 0.2, 0.2)), 0.4)
UNSURE = Found(label_line(1, (0.2, 0.8, 0.3, 0.3)), 0.2)
DRAWN = Sidecar((BOTH, HOT, UNASKED), (UNSURE,))


def labelled_world(
    root: Path, keys: dict[str, Any] | None = None, stems: tuple[str, ...] = ("a", "b", "c", "d")
) -> Path:
    """A set whose pair "a" has the sidecar `DRAWN`, "b" one without objects; the other pairs have none."""
    file = write_world(root, stems)
    for split in ("train", "val"):
        for stem, sidecar in (("a", DRAWN), ("b", Sidecar((), (UNSURE,)))):
            write_sidecar(root / f"sidecars/{split}/{stem}.json", sidecar)
            (root / f"labels/{split}/{stem}.txt").write_text(label_text(sidecar))
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**content, "sidecars": "sidecars", **(keys or {})}))
    return file


def labels_of(data: Path, stem: str = "a", **given: Any) -> Labels:
    config = open_data(data, **given)
    pair = next(pair for pair in find_pairs(config, "train") if pair.stem == stem)
    return config.reader.labels(pair, config.names)


def weights_by_class_and_place(labels: Labels) -> dict[tuple[int, float], list[float]]:
    """The three weights of each box by its class and centre."""
    assert labels.weights is not None
    assert labels.weights.dtype == np.float32
    return {
        (int(box[0]), round(float(box[1]), 3)): [round(float(w), 6) for w in weights]
        for box, weights in zip(labels.boxes, labels.weights, strict=True)
    }


# From sidecars to labels


def test_a_sidecar_says_what_each_box_teaches_whom(tmp_path: Path) -> None:
    data = labelled_world(tmp_path, {"confidence": True, "teach": "own"})
    found = weights_by_class_and_place(labels_of(data))
    assert found == {(0, 0.25): [0.9, 0.9, 0.9], (1, 0.7): [0.5, 0.0, 0.5], (0, 0.6): [0.4, 0.4, 0.4]}
    found = weights_by_class_and_place(labels_of(data, teach="both"))
    assert found == {(0, 0.25): [0.9] * 3, (1, 0.7): [0.5] * 3, (0, 0.6): [0.4] * 3}
    found = weights_by_class_and_place(labels_of(data, confidence=False))
    assert found == {(0, 0.25): [1.0] * 3, (1, 0.7): [1.0, 0.0, 1.0], (0, 0.6): [1.0] * 3}
    labels = labels_of(data, confidence=False, teach="both")
    assert labels.weights is None, "every box teaches fully"
    assert labels.ignore is not None
    np.testing.assert_allclose(labels.ignore, [[1, 0.2, 0.8, 0.3, 0.3]], atol=1e-6)


def test_clipped_and_doubled_boxes_keep_their_weights(tmp_path: Path) -> None:
    data = labelled_world(tmp_path, {"confidence": "true"})
    edge = Found(label_line(0, (0.0002, 0.5, 0.1, 0.2)), 0.3)
    twice = replace(BOTH, score=0.6)
    sidecar = Sidecar((twice, edge, BOTH, HOT), (Found(label_line(0, (0.95, 0.5, 0.3, 0.2)), 0.1),))
    write_sidecar(tmp_path / "sidecars/train/a.json", sidecar)
    (tmp_path / "labels/train/a.txt").write_text(label_text(sidecar))
    labels = labels_of(data)
    assert [problem.kind for problem in labels.problems] == ["outside", "repeated_box"]
    assert weights_by_class_and_place(labels) == {(0, 0.25): [0.9] * 3, (0, 0.025): [0.3] * 3, (1, 0.7): [0.5] * 3}
    np.testing.assert_allclose(labels.ignore, [[0, 0.9, 0.5, 0.2, 0.2]], atol=1e-6)


def test_what_a_person_changed_is_the_whole_truth(tmp_path: Path) -> None:
    data = labelled_world(tmp_path, {"confidence": "true", "teach": "own"})
    file = tmp_path / "labels/train/a.txt"
    file.write_text("\n".join(reversed(file.read_text().splitlines())))
    assert labels_of(data).weights is not None, "another order is no change"
    file.write_text(file.read_text().replace("0.25", "0.26"))
    labels = labels_of(data)
    assert len(labels.boxes) == 3
    assert (labels.weights, labels.ignore) == (None, None)
    file.unlink()  # nothing is there, says the person
    assert (len(labels_of(data).boxes), labels_of(data).ignore) == (0, None)
    assert labels_of(data, "b").ignore is not None
    write_sidecar(tmp_path / "sidecars/train/b.json", Sidecar((), (UNSURE,), person=True))
    left = labels_of(data, "b")
    assert (left.weights, len(left.ignore if left.ignore is not None else ())) == (None, 1), (
        "left as unsure by a person"
    )
    assert labels_of(data, "c").weights is None


def test_a_damaged_sidecar_is_named(tmp_path: Path) -> None:
    data = labelled_world(tmp_path)
    (tmp_path / "sidecars/train/a.json").write_text('{"version": 1, "labels": [{"line": "0 0.5"}]')
    write_sidecar(tmp_path / "sidecars/val/a.json", DRAWN)
    content = json.loads((tmp_path / "sidecars/val/a.json").read_text())
    content["labels"][0]["score"] = 7
    (tmp_path / "sidecars/val/a.json").write_text(json.dumps(content))
    found = check(open_data(data)).problems
    assert [(problem.kind, problem.file.parent.name) for problem in found if problem.kind == "bad_label"] == [
        ("bad_label", "train"),
        ("bad_label", "val"),
    ]
    with pytest.raises(UserError, match=r"1 of 4 pairs cannot be used: .*sidecars/train/a\.json"):
        train(data, method_config("sum"), {**QUICK, "epochs": 1, "project": str(tmp_path), "name": "run"})


def test_the_check_knows_sidecars(tmp_path: Path) -> None:
    data = labelled_world(tmp_path)
    near = {"near_copy"}  # the drawn pictures are noise
    report = check(open_data(data))
    assert not {problem.kind for problem in report.problems} - near
    assert not report.unused
    write_sidecar(tmp_path / "sidecars/train/aa.json", DRAWN)
    assert [unused.file.name for unused in check(open_data(data)).unused] == ["aa.json"]
    for name in ("a", "b"):
        (tmp_path / f"sidecars/train/{name}.json").unlink()
    with pytest.raises(UserError, match="none of the 1 sidecars"):
        find_pairs(open_data(data), "train")


def test_a_fold_keeps_sidecars(tmp_path: Path) -> None:
    data = labelled_world(tmp_path / "set", {"teach": "own"})
    (tmp_path / "folds.csv").write_text("name,fold\na,0\nb,1\nc,1\nd,0\n")
    fold = {"list": str(tmp_path / "folds.csv"), "held_out": "1", "of": ["train"]}
    folded = open_data(data).resolved | {"fold": fold}
    file = tmp_path / "folded.yaml"
    file.write_text(yaml.safe_dump(folded))
    config = open_data(file)
    assert [pair.stem for pair in find_pairs(config, "train")] == ["a", "d"]
    checked = check_pairs(config, find_pairs(config, "train"))[0]
    assert [c["weights"] is None for c in checked] == [False, True]
    assert checked[0]["ignore"] is not None


WRONG = {
    "no folder": ({"sidecars": "sidcars"}, {}, "no folder .*sidcars, which the key 'sidecars'"),
    "confidence": ({"confidence": "maybe"}, {}, "confidence is true or false, got 'maybe'"),
    "teach": ({"teach": "mine"}, {}, "teach is one of own, both, got 'mine'"),
    "path": ({"sidecars": ["a"]}, {}, "sidecars is .*, which is no path"),
    "alone": ({"sidecars": None}, {}, "sidecars is None, which is no path"),
    "thermal": (
        {"labels": {s: {"thermal": f"labels/{s}"} for s in ("train", "val")}},
        {},
        "leave out 'boxes: thermal'",
    ),
    "lists": (
        {"train": "v.txt", "val": "v.txt", "thermal": {"train": "t.txt", "val": "t.txt"}},
        {},
        "leave out the .txt",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_keys_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    keys, given, said = WRONG[case]
    data = labelled_world(tmp_path, keys)
    with pytest.raises(UserError, match=said) as refused:
        find_pairs(open_data(data, **given), "train")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given", [{"teach": "own"}, {"confidence": True}])
def test_without_sidecars_there_is_nothing_to_say_of_them(given: dict[str, Any], tmp_path: Path) -> None:
    data = write_world(tmp_path)
    with pytest.raises(UserError, match=f"{next(iter(given))} is about labels that no person drew.*have no 'sidecars'"):
        open_data(data, **given)


def test_other_readers_know_no_sidecars(tmp_path: Path) -> None:
    both = {"train": "visible"}
    keys = {"reader": "coco", "visible": both, "thermal": both, "annotations": both, "sidecars": "sidecars"}
    with pytest.raises(UserError, match="unknown key 'sidecars'"):
        open_data(yaml.safe_dump({"path": str(tmp_path), **keys}, default_flow_style=True))


def test_the_spec_carries_what_was_said(tmp_path: Path) -> None:
    data = labelled_world(tmp_path, {"teach": "both"})
    spec = open_data(data, teach="own", confidence=True).spec
    for config in (open_data(spec), open_data(open_data(spec).spec)):
        labels = config.reader.labels(find_pairs(config, "train")[0], config.names)
        assert weights_by_class_and_place(labels)[1, 0.7] == [0.5, 0.0, 0.5]
    resolved = open_data(data).resolved
    assert resolved["teach"] == "both"
    assert resolved["confidence"] in ("true", "false"), "a default is written down, so that it can change"


# Through the augmentation


def dataset(
    data: Path, *, augment: bool = True, single: bool = False, classes: Any = None, **hyp: Any
) -> PairedDataset:
    config = open_data(data, teach="own", confidence=True)
    rect = bool(hyp.pop("rect", False))
    mapping = {"config": config, "names": config.names, "nc": len(config.names), "channels": 4}
    kwargs: dict[str, Any] = {"single_cls": single, "classes": classes, "rect": rect, "stride": 32}
    options = get_cfg(overrides={"imgsz": 64, **hyp})
    return PairedDataset(img_path="train", imgsz=64, augment=augment, hyp=options, data=mapping, batch_size=4, **kwargs)


STILL = {"mosaic": 0.0, "scale": 0.0, "translate": 0.0, "fliplr": 0.0}


def rows_of(sample: dict[str, Any]) -> set[tuple[float, ...]]:
    return {tuple(round(float(value), 4) for value in row) for row in sample["cls"]}


def test_weights_and_regions_are_columns_and_rows(tmp_path: Path) -> None:
    data = labelled_world(tmp_path)
    pairs = dataset(data, **STILL)
    names = [Path(file).stem for file in pairs.im_files]
    drawn = {(0.0, 0.9, 0.9, 0.9), (1.0, 0.5, 0.0, 0.5), (0.0, 0.4, 0.4, 0.4), (0.0, 0.0, 0.0, 0.0)}
    assert rows_of(pairs[names.index("a")]) == drawn
    assert rows_of(pairs[names.index("b")]) == {(0.0, 0.0, 0.0, 0.0)}
    assert rows_of(pairs[names.index("c")]) == {(0.0, 1.0, 1.0, 1.0)}
    assert [label["cls"].shape for label in pairs.labels] == [(3, 1), (0, 1), (1, 1), (1, 1)]
    batch = pairs.collate_fn([pairs[i] for i in range(4)])
    assert batch["cls"].shape == (7, 1)
    assert batch["weights"].shape == (7, 3)
    assert batch["bboxes"].shape == (7, 4)
    assert batch["batch_idx"].tolist() == [0.0] * 4 + [1.0] + [2.0] + [3.0]
    plain = dataset(data, augment=False)
    assert "weights" not in plain.collate_fn([plain[i] for i in range(4)])


def test_a_sample_without_labels_joins_a_batch(tmp_path: Path) -> None:
    data = labelled_world(tmp_path)
    (tmp_path / "labels/train/c.txt").write_text("")
    pairs = dataset(data, **STILL)
    batch = pairs.collate_fn([pairs[2], pairs[0]])
    assert batch["batch_idx"].tolist() == [1.0] * 4
    assert batch["weights"].shape == (4, 3)
    alone = pairs.collate_fn([pairs[2]])
    assert (alone["cls"].shape, "weights" in alone) == ((0, 1), False)


def test_chosen_classes_and_a_single_one_keep_their_weights(tmp_path: Path) -> None:
    data = labelled_world(tmp_path)
    assert rows_of(dataset(data, classes=[1], **STILL)[0]) == {(1.0, 0.5, 0.0, 0.5), (0.0, 0.0, 0.0, 0.0)}
    rows = rows_of(dataset(data, single=True, **STILL)[0])
    assert rows == {(0.0, 0.9, 0.9, 0.9), (0.0, 0.5, 0.0, 0.5), (0.0, 0.4, 0.4, 0.4), (0.0, 0.0, 0.0, 0.0)}
    pairs = dataset(data, classes=[1], single=True, **STILL)
    assert rows_of(pairs[0]) == {(0.0, 0.5, 0.0, 0.5), (0.0, 0.0, 0.0, 0.0)}


@pytest.mark.parametrize(
    "hyp",
    [
        {"mosaic": 1.0},
        {"mosaic": 1.0, "mixup": 1.0},
        {"cutmix": 1.0},
        {**STILL, "fliplr": 1.0, "flipud": 1.0},
        {"rect": 1},
    ],
    ids=str,
)
def test_weights_go_with_their_boxes_through_augmentation(hyp: dict[str, Any], tmp_path: Path) -> None:
    """No box is larger than that which its weights belong to; the pictures are 64 x 48 px there, nothing is scaled."""
    pairs = dataset(labelled_world(tmp_path), **{"degrees": 0.0, "scale": 0.0, "translate": 0.0, **hyp})
    names = [Path(file).stem for file in pairs.im_files]
    sizes = {
        (0.0, 0.9, 0.9, 0.9): (0.3, 0.4),
        (1.0, 0.5, 0.0, 0.5): (0.4, 0.4),
        (0.0, 0.4, 0.4, 0.4): (0.2, 0.2),
        (0.0, 0.0, 0.0, 0.0): (0.3, 0.3),
        (0.0, 1.0, 1.0, 1.0): (0.2, 0.4),
    }
    largest = {row: np.zeros(2) for row in sizes}
    np.random.seed(0)
    for i in range(40):
        sample = pairs[i % 4]
        height, width = sample["img"].shape[1:]
        for row, box in zip(sample["cls"], sample["bboxes"], strict=True):
            of = tuple(round(float(value), 4) for value in row)
            largest[of] = np.maximum(largest[of], box[2:].numpy() * (width / 64, height / 48))
    for row, size in sizes.items():
        np.testing.assert_allclose(largest[row], size, atol=0.03)
    if "flipud" in hyp:
        sample = pairs[names.index("a")]
        hot = sample["bboxes"][(sample["cls"][:, 2] == 0) & (sample["cls"][:, 1] > 0)]
        # The picture lies in the middle of a square; x 0.7 becomes 0.3, and so does y.
        np.testing.assert_allclose(hot, [[0.3, (0.3 * 48 + 8) / 64, 0.4, 0.4 * 48 / 64]], atol=0.02)


def test_data_without_sidecars_are_as_they_were(tmp_path: Path) -> None:
    data = write_world(tmp_path, ("a", "b", "c", "d"))
    config = open_data(data)
    mapping = {"config": config, "names": config.names, "nc": 2, "channels": 4}
    pairs = PairedDataset(img_path="train", imgsz=64, augment=True, hyp=get_cfg(), data=mapping, batch_size=4)
    batch = pairs.collate_fn([pairs[i] for i in range(4)])
    assert "weights" not in batch
    assert batch["cls"].shape[1:] == (1,)


# What it teaches


def heads(model: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
    return {
        name: {
            key: value.detach().requires_grad_() if isinstance(value, Tensor) else value for key, value in raw.items()
        }
        for name, raw in model.answers(batch["img"]).items()
    }


def weighed(batch: dict[str, Tensor], rows: list[list[float]]) -> dict[str, Tensor]:
    return {**batch, "weights": torch.tensor(rows)}


def centres(model: Any, answer: dict[str, Any]) -> Tensor:
    """(N, 2): where each anchor's centre lies, as fractions of the square image."""
    found = []
    for feature in answer["feats"]:
        height, width = feature.shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        found.append(torch.stack(((x + 0.5) / width, (y + 0.5) / height), -1).reshape(-1, 2))
    return torch.cat(found)


def inside(points: Tensor, box: Tensor) -> Tensor:
    return ((points - box[:2]).abs() < box[2:] / 2).all(1)


def test_full_weights_are_the_plain_loss_bit_for_bit() -> None:
    model, batch = make_model(method_config("rscmd")), make_batch()
    answer, detection = heads(model, batch)["fused"], Detection(model)
    plain, full = detection(answer, batch), detection(answer, {**batch, "weights": torch.ones(3)})
    assert full.parts == plain.parts
    assert torch.equal(full.positives, plain.positives)
    for loss in plain.parts:
        wanted = [answer["boxes"], answer["scores"]]
        given = (
            torch.autograd.grad(of.parts[loss], wanted, retain_graph=True, allow_unused=True) for of in (plain, full)
        )
        assert all(one is other or torch.equal(one, other) for one, other in zip(*given))


def test_an_ignored_region_bears_no_class_loss() -> None:
    model, batch = make_model(method_config("rscmd")), make_batch()
    for key, row in (("batch_idx", [1.0]), ("cls", [[0.0]]), ("bboxes", [[0.35, 0.35, 0.6, 0.6]])):
        batch[key] = torch.cat((batch[key], torch.tensor(row)))
    batch = weighed(batch, [[1.0] * 3, [1.0] * 3, [1.0] * 3, [0.0] * 3])
    answers = heads(model, batch)
    detection = Detection(model)
    for name, answer in answers.items():
        scored = detection(answer, seen_by(name, batch))
        (gradient,) = torch.autograd.grad(torch.stack(list(scored.parts.values())).sum(), [answer["scores"]])
        region = inside(centres(model, answer), batch["bboxes"][3])
        silent = region & ~scored.positives[1].bool()
        assert silent.sum() >= 4
        assert (gradient[1][:, silent] == 0).all()
        assert (gradient[1][:, ~silent] != 0).all()
        assert (gradient[0] != 0).all(), "the region is one of the second pair alone"
        assert (region & scored.positives[1].bool()).any(), "an object within the region counts"


def test_half_a_weight_is_half_an_object() -> None:
    model, batch = make_model(method_config("sum")), make_batch()
    answer = heads(model, batch)["fused"]
    detection = Detection(model)
    full = detection(answer, batch)
    halved = detection(answer, seen_by("fused", weighed(batch, [[1.0] * 3, [1.0] * 3, [0.5] * 3])))
    assert torch.equal(full.positives, halved.positives)
    assert torch.equal(full.objects[full.positives.bool()], halved.objects[full.positives.bool()])
    for part in ("box", "cls", "dfl"):
        leaf = answer["scores"] if part == "cls" else answer["boxes"]
        (one,) = torch.autograd.grad(full.parts[part], [leaf], retain_graph=True)
        (half,) = torch.autograd.grad(halved.parts[part], [leaf], retain_graph=True)
        positive = full.positives[1].bool()
        assert one[1][:, positive].abs().sum() > 0
        torch.testing.assert_close(half[1][:, positive], one[1][:, positive] / 2)
        torch.testing.assert_close(half[1][:, ~positive], one[1][:, ~positive])
        torch.testing.assert_close(half[0], one[0])


def test_what_one_camera_saw_teaches_its_own_answer_and_the_fused_one() -> None:
    model, batch = make_model(method_config("rscmd")), make_batch()
    batch = weighed(batch, [[1.0] * 3, [1.0] * 3, [1.0, 0.0, 1.0]])  # the only object of the second pair
    answers, detection = heads(model, batch), Detection(model)
    scored = {name: detection(answer, seen_by(name, batch)) for name, answer in answers.items()}
    assert {name: bool(s.positives[1].any()) for name, s in scored.items()} == {
        "fused": True,
        "visible": False,
        "thermal": True,
    }
    (gradient,) = torch.autograd.grad(scored["visible"].parts["cls"], [answers["visible"]["scores"]])
    box = inside(centres(model, answers["visible"]), batch["bboxes"][2])
    assert (gradient[1][:, box] == 0).all()
    assert (gradient[1][:, ~box] != 0).all()
    assert detection.losses(answers, batch)["visible"]["cls"] == scored["visible"].parts["cls"]


def test_objects_are_counted_among_those_that_teach() -> None:
    model, batch = make_model(method_config("rscmd")), make_batch()
    batch = weighed(batch, [[1.0, 0.0, 1.0], [1.0] * 3, [1.0] * 3])
    answer = heads(model, batch)["visible"]
    scored = Detection(model)(answer, seen_by("visible", batch))
    assert set(scored.objects[0][scored.positives[0].bool()].tolist()) == {0}, "the second box of the pair is its first"


def test_mixed_precision_weighs_alike() -> None:
    model, batch = make_model(method_config("rscmd")), make_batch()
    batch = weighed(batch, [[0.5] * 3, [1.0, 0.0, 1.0], [0.0] * 3])
    full = model.loss(batch)[1]
    with torch.autocast("cpu", torch.bfloat16):
        total, half = model.loss(batch)
    total.sum().backward()
    for name, value in full.items():
        torch.testing.assert_close(half[name].float(), value, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("rows", [[], [[0.0] * 3] * 3], ids=["nothing", "regions alone"])
def test_batches_without_objects(rows: list[list[float]]) -> None:
    model, batch = make_model(method_config("rscmd")), make_batch()
    kept = len(rows)
    batch = {**batch, **{key: batch[key][:kept] for key in ("batch_idx", "cls", "bboxes")}}
    batch["weights"] = torch.tensor(rows).reshape(kept, 3)
    total, parts = model.loss(batch)
    total.sum().backward()
    assert parts["box_loss"] == parts["dfl_loss"] == 0
    assert torch.isfinite(total).all()
    assert parts["cls_loss"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_weights(method: str, tmp_path: Path) -> None:
    model, batch = make_model(method_config(method)), make_batch()
    if needs_teachers(model.config):
        model.teachers = Teachers(controls(tmp_path))

    def losses(labels: dict[str, Tensor]) -> dict[str, Tensor]:
        torch.manual_seed(0)  # some methods draw
        return {name: value.clone() for name, value in model.loss(labels)[1].items()}

    plain, full = losses(batch), losses(weighed(batch, [[1.0] * 3] * 3))
    own = losses(weighed(batch, [[1.0, 1.0, 0.0]] * 3))  # nothing for the thermal camera alone
    assert plain.keys() == full.keys() == own.keys()
    for name, value in plain.items():
        torch.testing.assert_close(full[name], value, rtol=1e-5, atol=1e-6)
    column = {name: bool(torch.isclose(own[name], full[name], rtol=1e-5)) for name in plain}
    if method == "thermal":
        assert not any(column.values())
    elif "thermal_loss" in column:
        assert not column["thermal_loss"]
    else:
        assert all(column.values())


# The command line


def command(*words: object) -> list[str]:
    return [str(word) for word in words]


OPTIONS = ("imgsz=64", "batch=4", "nbs=4", "device=cpu", "verbose=False", "workers=0", "patience=0")


@pytest.mark.parametrize("rect", [False, True])
def test_a_training_with_regions(rect: bool, tmp_path: Path) -> None:
    data = labelled_world(tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    words = command("--data", data, "--method", "rscmd", "--teach", "own", "--confidence", "on", *OPTIONS, "epochs=1")
    plots = not rect  # once is enough
    train_command.main(
        [*words, f"rect={rect}", f"plots={plots}", "mosaic=1.0", f"project={tmp_path}", "name=run", "val=False"]
    )
    assert (tmp_path / "run/model.safetensors").is_file()
    kept = yaml.safe_load((tmp_path / "run/data.yaml").read_text())
    assert (kept["teach"], kept["confidence"]) == ("own", "true")
    assert (tmp_path / "run/train_batch0.jpg").is_file() == plots
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}, "the data are read"


def test_an_interrupted_training_goes_on_as_it_was_told(tmp_path: Path) -> None:
    def interrupt(trainer: PairedTrainer) -> None:
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    spec = open_data(labelled_world(tmp_path / "data"), teach="own", confidence=True).spec
    options = {**QUICK, "imgsz": 32, "epochs": 2, "val": False, "project": str(tmp_path), "name": "run"}
    observers = [lambda trainer: trainer.add_callback("on_train_batch_end", interrupt)]
    with pytest.raises(KeyboardInterrupt):
        train(spec, method_config("sum"), options, observers=observers)
    last = tmp_path / "run/weights/last.pt"
    (tmp_path / "run/data.yaml").unlink()
    with pytest.raises(UserError, match="leave out --teach"):
        train_command.main([f"resume={last}", "--teach", "both"])
    train_command.main([f"resume={last}"])
    kept = yaml.safe_load((tmp_path / "run/data.yaml").read_text())
    assert (kept["teach"], kept["confidence"]) == ("own", "true")
    assert len((tmp_path / "run/results.csv").read_text().splitlines()) == 3


def test_the_command_says_that_there_are_no_sidecars(tmp_path: Path) -> None:
    data = write_world(tmp_path)
    with pytest.raises(UserError, match="have no 'sidecars'"):
        train_command.main(command("--data", data, "--teach", "own", "epochs=1"))
    assert len(read_labels(open_data(data), find_pairs(open_data(data), "train")[0])) == 1
