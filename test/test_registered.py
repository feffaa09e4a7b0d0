"""Registration and palettes all the way: data, training, the model file, Predictor, the node's worker and the bag."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from test_inference import NAMES, assert_same, image, model_file
from ultralytics.cfg import get_cfg

from rscmd_model.datasets.inspection import check_pairs
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.errors import UserError
from rscmd_model.evaluation.sweep import evaluate
from rscmd_model.imaging.registration import Registration, save_registration, scaling
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import method_config
from rscmd_model.network.model_file import load_model, read_header, save_model
from rscmd_model.training.paired_dataset import PairedDataset
from rscmd_model.training.run import train

SIZE = (128, 96)
# The thermal camera sees more than the visible one: of 160x128 px, those from (20, 14) on.
WIDE = Registration(((1, 0, -20), (0, 1, -14), (0, 0, 1)), (160, 128), SIZE)


def wide(thermal: np.ndarray) -> np.ndarray:
    """What a wider thermal camera sees of the same scene."""
    around = np.random.default_rng(9).integers(0, 256, (128, 160)).astype(thermal.dtype)
    around[14 : 14 + 96, 20 : 20 + 128] = thermal
    return around


def write_data(root: Path, wider: bool, palette: bool = False, **keys: object) -> Path:
    """Two pairs of 128x96 px in each split, aligned or taken with the wider camera, and their data.yaml."""
    for split in ("train", "val"):
        for kind in ("visible", "thermal", "labels"):
            (root / kind / split).mkdir(parents=True)
        for n, stem in enumerate("ab"):
            visible, thermal = image(96, 128, n)
            thermal = wide(thermal) if wider else thermal
            cv2.imwrite(str(root / f"visible/{split}/{stem}.png"), visible)
            picture = cv2.applyColorMap(thermal, cv2.COLORMAP_INFERNO) if palette else thermal
            cv2.imwrite(str(root / f"thermal/{split}/{stem}.png"), picture)
            (root / f"labels/{split}/{stem}.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    data = {"train": "visible/train", "val": "visible/val", "names": NAMES}
    data["thermal"] = {"train": "thermal/train", "val": "thermal/val"}
    (root / "data.yaml").write_text(yaml.safe_dump({**data, **keys}))
    return root / "data.yaml"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def registered(plain: Path) -> Path:
    """The same weights in a file whose training data had a registration."""
    model, header = load_model(plain)
    path = plain.with_name("registered.safetensors")
    save_model(path, model, replace(header, registration=WIDE))
    return path


@pytest.mark.parametrize("scale", [1, 2])
def test_a_registered_pair_gives_the_answer_of_the_aligned_one(plain: Path, registered: Path, scale: int) -> None:
    aligned, predictor = (Predictor(path, device="cpu", conf=0.05) for path in (plain, registered))
    visible, thermal = image(96, 128)
    seen = wide(thermal)
    expected = aligned.predict(visible, thermal)
    assert_same(predictor.predict(visible, seen), expected, 1e-3)
    assert_same(Predictor(plain, device="cpu", conf=0.05, registration=WIDE).predict(visible, seen), expected, 1e-3)
    larger = (128 * scale, 96 * scale)
    assert_same(
        predictor.predict(visible, seen, size=larger), aligned.predict(visible, thermal, size=larger), 1e-3 * scale
    )
    assert (predictor.thermal_view(visible, seen) == thermal).all()


def test_another_registration_replaces_the_model_s(registered: Path) -> None:
    visible, thermal = image(96, 128)
    double = Registration(tuple(map(tuple, scaling((256, 192), SIZE))), (256, 192), SIZE)
    predictor = Predictor(registered, device="cpu", registration=double)
    seen = cv2.resize(thermal, (256, 192), interpolation=cv2.INTER_NEAREST)
    assert np.abs(predictor.thermal_view(visible, seen).astype(int) - thermal)[1:-1, 1:-1].max() <= 1
    with pytest.raises(UserError, match="no scaled copy"):
        predictor.predict(visible, np.zeros((96, 160), np.uint8))


def test_without_the_visible_camera_boxes_are_still_in_its_pixels(plain: Path, registered: Path) -> None:
    """The thermal branch learned on warped planes, and it is answered from one: as for an aligned thermal image."""
    aligned, predictor = (Predictor(path, device="cpu", conf=0.05) for path in (plain, registered))
    thermal = image(96, 128)[1]
    alone = aligned.predict(None, thermal)
    assert_same(predictor.predict(None, wide(thermal)), alone, 1e-3)
    double = predictor.predict(None, wide(thermal), size=(256, 192))
    np.testing.assert_allclose(double.boxes, 2 * alone.boxes, rtol=1e-4, atol=1e-3)
    predictor.warm_up()


def test_training_and_prediction_see_the_same_stack(tmp_path: Path, registered: Path) -> None:
    save_registration(tmp_path / "cameras.yaml", WIDE)
    file = write_data(tmp_path / "data", True, registration="../cameras.yaml")
    config = open_data(file)
    mapping = {"config": config, "names": config.names, "nc": 2, "channels": 4}
    pairs = PairedDataset(
        img_path="train", imgsz=128, augment=False, hyp=get_cfg(overrides={"imgsz": 128}), data=mapping, batch_size=2
    )
    predictor = Predictor(registered, device="cpu")
    for i in range(2):
        visible, thermal = image(96, 128, i)
        trained_on = pairs.load_image(i)[0]
        seen = np.dstack((visible[..., ::-1], predictor.thermal_view(visible, wide(thermal))))
        assert (trained_on == seen).all()
        assert (trained_on[..., 3] == thermal).all()


def test_the_data_say_how_they_are_registered(tmp_path: Path, plain: Path, registered: Path) -> None:
    save_registration(tmp_path / "data" / "r.yaml", WIDE)
    file = write_data(tmp_path / "data", True, registration="r.yaml")
    data = open_data(file)
    assert data.registration == WIDE
    assert open_data(data.spec).registration == WIDE
    inline = yaml.safe_load(file.read_text()) | {"registration": WIDE.to_dict()}
    file.write_text(yaml.safe_dump(inline))
    assert open_data(file).registration == WIDE
    # The command line's goes before, and travels on in the one-line description that a training hands on.
    other = Registration(((1, 0, -10), (0, 1, -10), (0, 0, 1)), (160, 128), SIZE)
    save_registration(tmp_path / "other.yaml", other)
    overridden = open_data(file, registration=tmp_path / "other.yaml")
    assert overridden.registration == open_data(overridden.spec).registration == other
    aligned = open_data(write_data(tmp_path / "aligned", False))
    scores = [
        evaluate(Predictor(model, device="cpu", conf=0.05, registration=d.registration), d, find_pairs(d, "val"))
        for model, d in ((plain, aligned), (plain, data), (registered, replace(data, registration=None)))
    ]
    assert scores[0] == scores[1] == scores[2]
    file.write_text(yaml.safe_dump(inline | {"registration": {**WIDE.to_dict(), "visible_sise": [1, 1]}}))
    with pytest.raises(
        UserError, match=r"data\.yaml: registration: unknown key 'visible_sise'; did you mean visible_size"
    ):
        open_data(file)


def test_pairs_of_another_shape_than_the_registration_are_named(tmp_path: Path) -> None:
    data = open_data(write_data(tmp_path / "data", True, registration=WIDE.to_dict()))
    check_pairs(data, find_pairs(data, "train"))
    visible = tmp_path / "data/visible/train/b.png"
    cv2.imwrite(str(visible), np.zeros((96, 96, 3), np.uint8))
    with pytest.raises(UserError, match=r"1 of 2 pairs.*b\.png: the registration is for visible images of 128x96"):
        check_pairs(data, find_pairs(data, "train"))


def test_model_file_carries_it_and_old_readers_refuse_it(plain: Path, registered: Path, tmp_path: Path) -> None:
    header = read_header(registered)
    assert header.registration == WIDE
    assert json.loads(header.to_json())["format_version"] == 4  # a reader of version 1 would stretch the thermal image
    # What every file had before is all that one without a registration has now.
    before = {"config", "names", "image_size", "thermal", "data", "metrics", "code_version", "format_version"}
    written = json.loads(read_header(plain).to_json())
    assert set(written) == before
    assert set(written["thermal"]) == {"source", "scale"}
    model, header = load_model(plain)
    palette = replace(header, thermal=ThermalContract(palette_ok=True))
    save_model(tmp_path / "p.safetensors", model, palette)
    assert read_header(tmp_path / "p.safetensors") == palette


def test_training_carries_both_into_the_model(tmp_path: Path) -> None:
    file = write_data(tmp_path / "data", True, palette=True)
    options = {"imgsz": 64, "epochs": 1, "batch": 2, "plots": False, "device": "cpu", "project": str(tmp_path)}
    with pytest.raises(UserError, match=r"2 of 2 pairs cannot be used: .*a\.png: thermal image is in a colour palette"):
        train(file, method_config("thermal"), {**options, "name": "refused"})
    save_registration(tmp_path / "r.yaml", WIDE)
    spec = open_data(file, registration=tmp_path / "r.yaml", palette_ok=True).spec
    model = train(spec, method_config("thermal"), {**options, "name": "run"})
    header = read_header(model)
    assert header.registration == WIDE
    assert header.thermal == ThermalContract(palette_ok=True)
    resolved = open_data(next((tmp_path / "run").glob("data*.yaml")))
    assert resolved.registration == WIDE
    assert resolved.thermal_contract == header.thermal


def test_counts_that_the_contract_does_not_show_stop_a_training(tmp_path: Path) -> None:
    contract = {"source": "mono16", "scale": [28000, 32500]}
    data = open_data(write_data(tmp_path / "data", False, thermal_contract=contract))
    pairs = find_pairs(data, "train")
    with pytest.raises(UserError, match=r"a\.png: thermal image has dtype uint8.*JPEG never has more"):
        check_pairs(data, pairs)
    for pair in pairs:  # 8 bit in a file of 16
        cv2.imwrite(str(pair.thermal), image(96, 128)[1].astype(np.uint16))
    with pytest.raises(
        UserError, match=r"no thermal image fits.*counts, 0 to 255, lie outside .* scale, 28000 to 32500"
    ):
        check_pairs(data, pairs)
    cv2.imwrite(str(pairs[0].thermal), image(96, 128)[1].astype(np.uint16) * 10 + 29000)
    _, notes = check_pairs(data, pairs)  # one of two may be a camera looking at the sky
    assert any("out_of_scale" in note for note in notes)


class Published:
    """What the node's worker hands its detections to."""

    def __init__(self) -> None:
        self.messages: list = []

    def publish(self, message: object) -> None:
        self.messages.append(message)


def test_the_node_registers(plain: Path, tmp_path: Path) -> None:
    """The node's own loading and worker, without the process around them."""
    pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")
    from std_msgs.msg import Header

    from rscmd_ros.cameras.conversions import msg_to_detections, thermal_to_image, visible_to_image
    from rscmd_ros.node.detection import PairDetector, load_predictor
    from rscmd_ros.node.parameters import Settings
    from rscmd_ros.pairing.frames import Arrival, Frame, Pair

    save_registration(tmp_path / "r.yaml", WIDE)
    settings = Settings(
        model=str(plain),
        registration=str(tmp_path / "r.yaml"),
        device="cpu",
        confidence_threshold=0.05,
        backend="torch",
    )
    predictor, published = load_predictor(settings), Published()
    detector = PairDetector(predictor, published, None, settings, threading.Event())
    visible, thermal = image(96, 128)
    frames = visible_to_image(visible, Header()), thermal_to_image(wide(thermal), Header())
    detector.detect(Pair(*(Frame(s, 1, Arrival(m, 0)) for s, m in zip(("visible", "thermal"), frames)), 0))
    expected = Predictor(plain, device="cpu", conf=0.05).predict(visible, thermal)
    assert_same(msg_to_detections(published.messages[0], NAMES), expected, 1e-2)
    with pytest.raises(UserError, match=r"cannot read registration .*nowhere\.yaml"):
        load_predictor(replace(settings, registration=str(tmp_path / "nowhere.yaml")))


def test_a_bag_is_registered_as_files_are(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")
    from rscmd_ros.bags.answers import answer_pairs
    from rscmd_ros.bags.reader import open_bag
    from rscmd_ros.bags.topics import THERMAL_TOPIC, VISIBLE_TOPIC
    from rscmd_ros.evaluate_bag import main as evaluate_bag
    from rscmd_ros.make_bag import main as make_bag
    from rscmd_ros.node.pairing_options import PairingOptions

    save_registration(tmp_path / "r.yaml", WIDE)
    answers = []
    topics = {"visible": VISIBLE_TOPIC, "thermal": THERMAL_TOPIC}
    for name, wider in (("aligned", False), ("wider", True)):
        file = write_data(tmp_path / name, wider)
        make_bag(["--data", str(file), "--split", "val", "--out", str(tmp_path / f"bag_{name}")])
        predictor = Predictor(plain, device="cpu", conf=0.05, registration=WIDE if wider else None)
        with open_bag(tmp_path / f"bag_{name}") as bag:
            answers.append(answer_pairs(bag, topics, PairingOptions(), predictor).by_stamp)
    assert answers[0].keys() == answers[1].keys()
    for stamp, answer in answers[0].items():
        assert_same(answers[1][stamp].detections, answer.detections, 1e-3)
    command = [
        str(tmp_path / "bag_wider"),
        "--model",
        str(plain),
        "--device",
        "cpu",
        "--json",
        str(tmp_path / "s.json"),
    ]
    evaluate_bag([*command, "--registration", str(tmp_path / "r.yaml"), "--report", str(tmp_path / "r.html")])
    assert json.loads((tmp_path / "s.json").read_text())["config"]["registration"] == str(tmp_path / "r.yaml")
    save_registration(tmp_path / "square.yaml", Registration(WIDE.homography, (128, 128), SIZE))
    with pytest.raises(UserError, match="thermal images of 128x128"):
        evaluate_bag([*command, "--registration", str(tmp_path / "square.yaml")])
    with pytest.raises(UserError, match="-p registration:="):
        evaluate_bag([*command, "--registration", str(tmp_path / "r.yaml"), "--live"])
