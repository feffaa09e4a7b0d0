"""The evaluation of a bag without DDS: figures, ledger, truth, report, and what it says to bags it cannot use."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import small_bags
from rosbags.rosbag2 import StoragePlugin, Writer

from rscmd_model.config import ModelConfig
from rscmd_model.detections import Detections
from rscmd_model.errors import UserError
from rscmd_model.evaluation.scoring import Truth
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.synthetic.writing import write_world
from rscmd_ros.bags.reader import open_bag, typestore
from rscmd_ros.bags.report import ReportData, Sample, write_report
from rscmd_ros.bags.timing import START
from rscmd_ros.bags.topics import DETECTIONS, IMAGE, THERMAL_TOPIC, TRUTH_TOPIC, VISIBLE_TOPIC
from rscmd_ros.bags.truth import truth_from_topic
from rscmd_ros.cameras.conversions import image_to_visible, stamp_ns
from rscmd_ros.evaluate_bag import main as evaluate
from rscmd_ros.make_bag import main as make
from rscmd_ros.pairing.frames import COUNTERS

MS = 1_000_000
HOSTILE = """</table><script>alert(1)</script><img src=x onerror=alert(1)>"'&amp;{{ 7 * 7 }}"""
TOPICS = (VISIBLE_TOPIC, THERMAL_TOPIC, TRUTH_TOPIC)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("w") / "world", train=1, val=24, size=(96, 64), seed=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real model file with the weights it was born with: it finds little, but all the machinery runs."""
    import torch

    from rscmd_model.network.model import RscmdModel
    from rscmd_model.network.model_file import ModelHeader, save_model

    torch.manual_seed(0)
    names = {0: "person", 1: "car", 2: "bicycle"}
    path = tmp_path_factory.mktemp("m") / "model.safetensors"
    save_model(path, RscmdModel(ModelConfig(), names), ModelHeader(ModelConfig(), names, 96, ThermalContract()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small pictures; more threads only wait for each other on a busy machine
    yield path
    torch.set_num_threads(threads)


def test_thermal_images_that_the_contract_does_not_show_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rscmd_ros.bags import run as running
    from rscmd_ros.bags.job import Job

    small_bags.write(tmp_path / "bag", small_bags.messages(3))
    for scale, notes in (((254.5, 300.0), 1), ((0.0, 255.0), 0)):
        predictor = SimpleNamespace(
            names={0: "person"},
            thermal=ThermalContract("mono8", scale),
            registration=None,
            predict_batch=lambda visible, thermal: [Detections.empty()] * len(visible),
        )
        monkeypatch.setattr(running, "_predictor", lambda *_, one=predictor: one)
        found = running.run(Job(tmp_path / "bag", tmp_path / "m.safetensors")).notes
        said = "thermal images of 3 of 3 pairs lie wholly outside the scale .*, 254.5 to 300: the model saw nothing"
        assert len([note for note in found if re.search(said, note)]) == notes


def write(world: Path, out: Path, *more: str) -> Path:
    make(["--data", str(world), "--split", "val", "--out", str(out), *more])
    return out


def read(bag: Path) -> dict[str, list[tuple[int, Any]]]:
    found: dict[str, list[tuple[int, Any]]] = {topic: [] for topic in TOPICS}
    with open_bag(bag) as opened:
        for topic, recorded, message in opened.messages(TOPICS):
            found[topic].append((recorded, message))
    return found


def run(bag: Path, model: Path, out: Path, *more: str) -> dict[str, Any]:
    evaluate([str(bag), "--model", str(model), "--json", str(out), "--device", "cpu", *more])
    return dict(json.loads(out.read_text()))


def test_a_bag_is_answered_by_the_answer_asked_for(world: Path, model: Path, tmp_path: Path) -> None:
    import torch

    from rscmd_model.network.model_file import load_model, save_model
    from rscmd_ros.bags.job import Job
    from rscmd_ros.bags.run import run as run_job

    bag, eager = write(world, tmp_path / "bag"), tmp_path / "eager.safetensors"
    network, header = load_model(model)
    for head in network.heads():
        for classifier in head.cv3:  # so that it finds something
            torch.nn.init.normal_(classifier[-1].weight, std=0.3)
    save_model(eager, network, header)
    own, joint = (run_job(Job(bag, eager, answer=answer, device="cpu")).outcome for answer in (None, "ensemble"))
    assert own.scored is not None
    assert joint.scored is not None
    pairs = list(zip(own.scored, joint.scored, strict=True))
    assert sum(len(a.found) for a, _ in pairs) > 0
    assert all(b.found.scores.sum() > a.found.scores.sum() for a, b in pairs if len(a.found))
    for words, answer in (([], "fused"), (["--answer", "ensemble"], "ensemble")):
        assert run(bag, model, tmp_path / "a.json", *words)["config"]["answer"] == answer
    with pytest.raises(UserError, match="start it with -p answer:=ensemble"):
        run(bag, model, tmp_path / "c.json", "--answer", "ensemble", "--live")


def test_evaluation_is_deterministic_and_its_ledger_adds_up(world: Path, model: Path, tmp_path: Path) -> None:
    rough = [
        "--rate-visible",
        "20",
        "--rate-thermal",
        "9",
        "--jitter-ms",
        "4",
        "--drop",
        "0.1",
        "--thermal-offset-ms",
        "15",
    ]
    bag = write(world, tmp_path / "bag", *rough)
    report = tmp_path / "report.html"
    first = run(bag, model, tmp_path / "a.json", "--report", str(report), "--thermal-offset-ms", "15")
    again = run(bag, model, tmp_path / "b.json", "--thermal-offset-ms", "15")
    assert first == again
    recorded = read(bag)
    assert first["frames"] == {"visible": len(recorded[VISIBLE_TOPIC]), "thermal": len(recorded[THERMAL_TOPIC])}
    for stream in ("visible", "thermal"):
        assert sum(first["ledger"][stream].values()) == first["frames"][stream]
        assert first["ledger"][stream]["paired"] == first["pairs"] > 0
    assert set(first["dt_ms"]) == {"mean", "p50", "p95", "max"}
    assert set(first["latency_ms"]) == {"p50", "p95", "p99"}
    assert 0 <= first["dt_ms"]["p50"] <= first["dt_ms"]["p95"] <= first["dt_ms"]["max"] <= 50
    assert 0 <= first["mAP50_95"] <= first["mAP50"] <= 1
    assert first["frames_scored"] == first["pairs"] < first["all_frames"]["frames"] == first["frames"]["visible"]
    assert first["frames_without_detections"] == first["frames"]["visible"] - first["pairs"]
    page = report.read_text()
    assert page.count("data:image/png;base64,") == 2 * 8
    assert "<script" not in page
    assert "http" not in page
    for text in ("superseded", "precision", "20.0"):
        assert text in page


def hostile_report() -> ReportData:
    """Every part of a report, with names that are HTML; the boxes of its sample touch all edges of the picture."""
    boxes, scores, classes = np.array([[0.0, 0, 60, 40], [30, 20, 96, 64]]), np.array([0.9, 0.1]), np.array([0, 1])
    counts = {**dict.fromkeys(COUNTERS, 0), "paired": 3, "late": 1}
    figures = {"frames": {"visible": 4, "thermal": 3}, "pairs": 3, "mAP50": 0.5, "mAP50_95": None}
    summary = {
        **figures,
        "latency_ms": {"p50": 1.0, "p95": 2.0, "p99": None},
        "dt_ms": {"p50": 1.0, "p95": 2.0, "max": 3.0},
        "ledger": {"visible": counts, "thermal": {**counts, "pending": 1}},
        "lost": {"visible": 2, "thermal": 0},
        "per_class": {HOSTILE: {"truths": 7, "mAP50": 0.25, "mAP50_95": None}},
        "bags": [{"bag": HOSTILE, **figures}, {"bag": HOSTILE, "failed": HOSTILE}],
        "config": {"mode": "live", HOSTILE: HOSTILE},
    }
    return ReportData(
        title=HOSTILE,
        summary=summary,
        names={0: HOSTILE, 1: "car"},
        dt_ms=[1.0, 2.0],
        latency_ms=[3.0],
        latency_title=HOSTILE,
        latency_meaning=HOSTILE,
        model={HOSTILE: HOSTILE, "training data": {HOSTILE: [HOSTILE]}},
        curve=([0.0, 0.5, 1.0], [1.0, 0.5, 0.0]),
        samples=[
            Sample(
                np.zeros((64, 96, 3), np.uint8),
                np.zeros((32, 48), np.uint8),
                Detections(boxes, scores, classes),
                Truth(boxes, classes),
                HOSTILE,
            )
        ],
        notes=[HOSTILE],
    )


def test_a_report_shows_hostile_names_as_text(tmp_path: Path) -> None:
    class Page(HTMLParser):
        tags: ClassVar[set[str]] = set()
        attributes: ClassVar[set[str]] = set()
        texts: ClassVar[list[str]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.add(tag)
            self.attributes.update(name for name, _ in attrs)

        def handle_data(self, data: str) -> None:
            self.texts.append(data)

    write_report(tmp_path / "report.html", hostile_report(), drawn_from=0.25)
    page = Page()
    page.feed((tmp_path / "report.html").read_text())
    assert "svg" in page.tags
    assert not page.tags & {"script", "img"}
    assert not any(name.startswith("on") for name in page.attributes)
    # The title twice; in the key, in both pictures and below them; two of a chart; a note; a class; three of the bags;
    # a name and a value of the model and of the configuration.
    assert sum(HOSTILE in text for text in page.texts) == 2 + 1 + 2 + 1 + 2 + 1 + 1 + 3 + 2 + 2
    assert "–" in page.texts
    assert not any(text.startswith("car 0.1") for text in page.texts)  # below what is drawn


def test_a_detector_that_knows_the_truth_scores_one(
    world: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truth, stamps and pixels line up all the way: answers made from the labels themselves give mAP 1."""
    from rscmd_model.inference.predictor import Predictor

    bag = write(world, tmp_path / "bag", "--rate-visible", "20", "--rate-thermal", "10")
    answers = {}
    numbers = {"person": 0, "car": 1, "bicycle": 2}
    found = read(bag)
    for (_, picture), (_, truth) in zip(found[VISIBLE_TOPIC], found[TRUTH_TOPIC]):
        boxes = [
            (p.x - d.bbox.size_x / 2, p.y - d.bbox.size_y / 2, p.x + d.bbox.size_x / 2, p.y + d.bbox.size_y / 2)
            for d in truth.detections
            for p in [d.bbox.center.position]
        ]
        classes = [numbers[d.results[0].hypothesis.class_id] for d in truth.detections]
        answers[image_to_visible(picture).tobytes()] = Detections(
            np.array(boxes, np.float32).reshape(-1, 4), np.ones(len(boxes), np.float32), np.array(classes, np.int64)
        )
    monkeypatch.setattr(Predictor, "predict_batch", lambda self, visible, _: [answers[v.tobytes()] for v in visible])
    monkeypatch.setattr(Predictor, "warm_up", lambda self: None)
    summary = run(bag, model, tmp_path / "a.json")
    assert summary["pairs"] == 12
    assert summary["mAP50"] == pytest.approx(1.0)
    assert summary["mAP50_95"] == pytest.approx(1.0)
    assert summary["all_frames"]["mAP50"] < 0.7  # half of the visible frames have no thermal partner
    assert summary["dt_ms"]["max"] == 0.0


def test_truth_from_a_file_gives_the_same_score(world: Path, model: Path, tmp_path: Path) -> None:
    bag = write(world, tmp_path / "bag")
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": 5 + n, "name": name} for n, name in enumerate(("person", "car", "bicycle"))]
    ids = {entry["name"]: entry["id"] for entry in coco["categories"]}
    for _, truth in read(bag)[TRUTH_TOPIC]:
        stamp = stamp_ns(truth.header)
        number = len(coco["images"])
        name = {"stamp": stamp} if number % 2 else {"file_name": f"{stamp // 10**9}.{stamp % 10**9:09d}.png"}
        coco["images"].append({"id": number, "width": 96, "height": 64, **name})
        for d in truth.detections:
            p = d.bbox.center.position
            box = [p.x - d.bbox.size_x / 2, p.y - d.bbox.size_y / 2, d.bbox.size_x, d.bbox.size_y]
            category = ids[d.results[0].hypothesis.class_id]
            coco["annotations"].append(
                {"id": len(coco["annotations"]), "image_id": number, "category_id": category, "bbox": box}
            )
    (tmp_path / "truth.json").write_text(json.dumps(coco))
    from_file = run(bag, model, tmp_path / "a.json", "--truth", str(tmp_path / "truth.json"))
    from_topic = run(bag, model, tmp_path / "b.json", "--truth-topic", TRUTH_TOPIC)
    assert from_file["per_class"] == from_topic["per_class"]
    assert from_file["per_class"]["person"]["truths"] > 0

    (tmp_path / "bad.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="not a COCO"):
        run(bag, model, tmp_path / "c.json", "--truth", str(tmp_path / "bad.json"))
    images = coco["images"]
    coco["images"] = [{**entry, "stamp": 7 + entry["id"]} for entry in coco["images"]]
    (tmp_path / "far.json").write_text(json.dumps(coco))
    with pytest.raises(UserError, match="does not fit the bag"):
        run(bag, model, tmp_path / "c.json", "--truth", str(tmp_path / "far.json"))

    stamps = sorted(stamp_ns(message.header) for _, message in read(bag)[VISIBLE_TOPIC])
    off = [{**entry, "stamp": stamps[1] + 1 + k} for k, entry in enumerate(images[-3:])]
    coco["images"] = [*images[:-3], *off, {"id": 99, "stamp": stamps[-1] + 1}]  # the last is of another recording
    (tmp_path / "some.json").write_text(json.dumps(coco))
    some = run(bag, model, tmp_path / "c.json", "--truth", str(tmp_path / "some.json"))
    assert f"3 of the truth's {len(images)} stamps within the recording are those of no visible frame" in "\n".join(
        some["notes"]
    )
    coco["images"] = [*images, {**images[0], "id": len(images)}]
    (tmp_path / "twice.json").write_text(json.dumps(coco))
    with pytest.raises(UserError, match=r"two images of .*twice\.json have the stamp 17\d{17}: what is in a frame"):
        run(bag, model, tmp_path / "c.json", "--truth", str(tmp_path / "twice.json"))
    coco["images"], coco["categories"] = images, [{**entry, "name": "nobody"} for entry in coco["categories"]]
    (tmp_path / "foreign.json").write_text(json.dumps(coco))
    foreign = run(bag, model, tmp_path / "c.json", "--truth", str(tmp_path / "foreign.json"))
    assert "mAP50" not in foreign
    assert foreign["classes_not_scored"] == ["nobody"]
    assert "The truth has no box of the model's classes" in "\n".join(foreign["notes"])


def hand_made(folder: Path, topics: dict[str, tuple[str, list[Any]]]) -> Path:
    """A bag of given messages, 100 ms apart."""
    store = typestore()
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, (kind, messages) in topics.items():
            connection = writer.add_connection(topic, kind, typestore=store)
            for k, message in enumerate(messages):
                writer.write(connection, START + k * 100 * MS, store.serialize_cdr(message, kind))
    return folder


def picture(k: int, encoding: str, width: int = 96, height: int = 64, short: int = 0) -> Any:
    types = typestore().types
    stamp = types["builtin_interfaces/msg/Time"](sec=1_700_000_000, nanosec=k * 100 * MS)
    channels = {"mono8": 1, "bgr8": 3, "nv21": 1}[encoding]
    return types[IMAGE](
        header=types["std_msgs/msg/Header"](stamp=stamp, frame_id="c"),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=width * channels,
        data=np.full(width * height * channels - short, 90, np.uint8),
    )


def truth_at(k: int, *boxes: tuple[float, float, str]) -> Any:
    """The truth of `picture(k)`: boxes of 20x10 px at the middle of the picture, turned by theta, and their classes."""
    types = typestore().types
    vision, geometry = "vision_msgs/msg/", "geometry_msgs/msg/"
    header, nowhere = picture(k, "mono8").header, types[geometry + "Point"](0.0, 0.0, 0.0)
    pose = types[geometry + "Pose"](nowhere, types[geometry + "Quaternion"](0.0, 0.0, 0.0, 1.0))
    found = []
    for theta, width, name in boxes:
        results = [
            types[vision + "ObjectHypothesisWithPose"](
                types[vision + "ObjectHypothesis"](of, score),
                types[geometry + "PoseWithCovariance"](pose, np.zeros(36)),
            )
            for of, score in (("car", 0.1), (name, 0.9))
        ]
        centre = types[vision + "Pose2D"](types[vision + "Point2D"](48.0, 32.0), theta)
        box = types[vision + "BoundingBox2D"](centre, width, 10.0)
        found.append(types[vision + "Detection2D"](header, results, box, ""))
    return types[DETECTIONS](header, found)


def test_truth_of_a_topic_is_read_as_detections_are(tmp_path: Path) -> None:
    """The likeliest class, the upright box around a turned one, once for each frame, and no box that is none."""
    turned = truth_at(0, (np.pi / 2, 20.0, "person"))
    for name, messages, says in (
        ("twice", [turned, turned], "two messages of .* have the stamp"),
        ("none", [truth_at(0, (0.0, float("nan"), "person"))], "has a box that is none: nan"),
    ):
        made = hand_made(tmp_path / name, {"/truth": (DETECTIONS, messages)})
        with open_bag(made) as bag, pytest.raises(UserError, match=says):
            truth_from_topic(bag, "/truth")
    with open_bag(hand_made(tmp_path / "one", {"/truth": (DETECTIONS, [turned])})) as bag:
        ((name, box),) = truth_from_topic(bag, "/truth").by_stamp[stamp_ns(turned.header)]
    assert name == "person"
    np.testing.assert_allclose(box, (43, 22, 53, 42))


def test_what_lies_on_the_usual_topic_and_is_no_truth_is_left_aside_and_named(model: Path, tmp_path: Path) -> None:
    images = {
        VISIBLE_TOPIC: (IMAGE, [picture(k, "bgr8") for k in range(4)]),
        THERMAL_TOPIC: (IMAGE, [picture(k, "mono8") for k in range(4)]),
    }
    bag = hand_made(tmp_path / "bag", {**images, TRUTH_TOPIC: (IMAGE, [picture(0, "mono8")])})
    summary = run(bag, model, tmp_path / "a.json")
    assert summary["pairs"] == 4
    assert f"{TRUTH_TOPIC} is sensor_msgs/msg/Image, not {DETECTIONS}: it is left aside." in summary["notes"]
    with pytest.raises(UserError, match=f"{TRUTH_TOPIC} in .* is sensor_msgs"):
        run(bag, model, tmp_path / "a.json", "--truth-topic", TRUTH_TOPIC)


def test_frames_of_one_stamp_are_told(model: Path, tmp_path: Path) -> None:
    """As where a recording's stamps begin anew."""
    images = {
        VISIBLE_TOPIC: (IMAGE, [picture(k % 4, "bgr8") for k in range(8)]),
        THERMAL_TOPIC: (IMAGE, [picture(k % 4, "mono8") for k in range(8)]),
    }
    summary = run(hand_made(tmp_path / "bag", images), model, tmp_path / "a.json")
    assert any(note.startswith("4 visible frames have the stamp of another one") for note in summary["notes"])


def test_figures_are_told_and_written_though_the_report_cannot_be(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {
        VISIBLE_TOPIC: (IMAGE, [picture(k, "bgr8") for k in range(4)]),
        THERMAL_TOPIC: (IMAGE, [picture(k, "mono8") for k in range(4)]),
    }
    bag = hand_made(tmp_path / "caf\udce9", images)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/r\.html"):
        run(bag, model, tmp_path / "a.json", "--report", str(tmp_path / "file/r.html"))
    assert "4 pairs" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["pairs"] == 4
    run(bag, model, tmp_path / "a.json", "--report", str(tmp_path / "r.html"))
    assert "caf\\udce9" in (tmp_path / "r.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"'\.' is a folder: give the name of a file"):
        evaluate([str(bag), "--model", str(model), "--device", "cpu", "--json", ""])


def test_without_truth(model: Path, tmp_path: Path) -> None:
    bag = hand_made(
        tmp_path / "bag",
        {
            "/cam/rgb": (IMAGE, [picture(k, "bgr8") for k in range(4)]),
            "/cam/ir": (IMAGE, [picture(k, "mono8") for k in range(4)]),
        },
    )
    names = ["--visible-topic", "/cam/rgb", "--thermal-topic", "/cam/ir"]
    summary = run(bag, model, tmp_path / "a.json", "--report", str(tmp_path / "r.html"), *names)
    assert summary["pairs"] == 4
    assert "mAP50" not in summary
    assert "mAP50_95" not in summary
    assert "no truth" in (tmp_path / "r.html").read_text()
    with pytest.raises(UserError, match="--truth-topic"):
        run(bag, model, tmp_path / "a.json", *names, "--truth-topic", "/truth")


def test_unusable_frames_are_counted_and_a_stream_of_them_is_an_error(model: Path, tmp_path: Path) -> None:
    thermal = [picture(k, "mono8", short=1 if k == 2 else 0) for k in range(5)]
    good = {VISIBLE_TOPIC: (IMAGE, [picture(k, "bgr8") for k in range(5)]), THERMAL_TOPIC: (IMAGE, thermal)}
    summary = run(hand_made(tmp_path / "bag", good), model, tmp_path / "a.json")
    assert summary["ledger"]["thermal"]["invalid"] == 1
    assert summary["ledger"]["visible"]["too_far"] == 1
    assert summary["pairs"] == 4
    bad = {**good, VISIBLE_TOPIC: (IMAGE, [picture(k, "nv21") for k in range(5)])}
    with pytest.raises(UserError, match="nv21"):
        run(hand_made(tmp_path / "bad", bad), model, tmp_path / "a.json")


def test_topics_that_are_missing_or_of_another_type(world: Path, model: Path, tmp_path: Path) -> None:
    bag = write(world, tmp_path / "bag")
    with pytest.raises(UserError, match=r"no topic /rgb .*/thermal/image, /visible/image.*--visible-topic"):
        run(bag, model, tmp_path / "a.json", "--visible-topic", "/rgb")
    with pytest.raises(UserError, match=r"is vision_msgs/msg/Detection2DArray, not sensor_msgs/msg/Image"):
        run(bag, model, tmp_path / "a.json", "--thermal-topic", TRUTH_TOPIC)
    with pytest.raises(UserError, match=r"not vision_msgs/msg/Detection2DArray"):
        run(bag, model, tmp_path / "a.json", "--truth-topic", THERMAL_TOPIC)


def test_bags_that_are_none(world: Path, model: Path, tmp_path: Path) -> None:
    def fails(path: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            run(path, model, tmp_path / "a.json")

    fails(tmp_path / "nothing", "does not exist")
    fails(world.parent, "no metadata.yaml")
    fails(world, "not a rosbag2 bag")
    for storage, name in (("mcap", "cut.mcap"), ("sqlite3", "cut.db3")):
        bag = write(world, tmp_path / storage / "cut", "--storage", storage)
        (bag / name).write_bytes(b"no bag")
        fails(bag, "damaged, cut short")
        fails(bag / name, "damaged, cut short")


def test_a_mistake_is_one_line(
    command: Callable[..., subprocess.CompletedProcess[str]], world: Path, tmp_path: Path
) -> None:
    """As a user sees it: exit code 2 and a single line, without a traceback."""
    done = command("rscmd_ros.evaluate_bag", tmp_path / "no_bag", "--model", "m")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
