"""model.safetensors: what is written is what is read, and a bad file is told for what it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rscmd_model.config import LINEAR_SPPF, ModelConfig
from rscmd_model.errors import UserError
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.methods import METHODS, method_class, method_config
from rscmd_model.network.header import DIGEST, FORMAT_VERSION, HEADER, UNWRITTEN, parse_header, read_metadata
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import ModelHeader, load_model, read_header, save_model

NAMES = {0: "person", 1: "car"}


def saved(path: Path, method: str = "rscmd", **changes: object) -> RscmdModel:
    torch.manual_seed(0)
    model = RscmdModel(method_config(method, **changes), NAMES).eval()
    contract = ThermalContract("mono16", (1.0, 99.0), percentile=True)
    header = ModelHeader(model.config, NAMES, 96, contract, {"name": "toy", "split_hash": "abc"}, {"mAP50": 0.5})
    save_model(path, model, header)
    return model


@pytest.mark.parametrize(
    ("method", "changes"), [*((m, {}) for m in METHODS), ("rscmd", {"rsc": "shared", "md": "map"})]
)
def test_save_then_load_gives_the_same_answers(tmp_path: Path, method: str, changes: dict[str, str]) -> None:
    model = saved(tmp_path / "model.safetensors", method, **changes)
    again, header = load_model(tmp_path / "model.safetensors")
    assert header == read_header(tmp_path / "model.safetensors")
    assert header.config == model.config
    assert header.names == NAMES
    assert header.thermal == ThermalContract("mono16", (1.0, 99.0), percentile=True)
    x = torch.rand(1, 4, 64, 96)
    with torch.no_grad():
        for (name, a), (_, b) in zip(model.answers(x).items(), again.answers(x).items()):
            assert torch.equal(a[0], b[0]), name
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    saved(tmp_path / "m.safetensors")
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    load_model(tmp_path / "m.safetensors")
    assert torch.equal(torch.rand(1), expected)


def test_each_bad_file_is_told_for_what_it_is(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    saved(good)
    data = good.read_bytes()

    def message(content: bytes) -> str:
        bad = tmp_path / "bad.safetensors"
        bad.write_bytes(content)
        with pytest.raises(UserError) as error:
            load_model(bad)
        assert "bad.safetensors" in str(error.value)
        return str(error.value)

    assert "cut short" in message(data[: len(data) // 2])
    assert "cut short" in message(data[:100])
    assert "not a model file" in message(b"")
    assert "assemble" not in message(b"")
    with pytest.raises(UserError, match=r"of a YOLO checkpoint, .*rscmd_model.assemble --weights .*yolo\.pt --out"):
        read_metadata(Path("yolo.pt"), b"PK\x03\x04" + bytes(60))
    assert "not a model file" in message(b"\x80\x02not a safetensors file at all")
    with pytest.raises(UserError, match="no model file"):
        load_model(tmp_path / "absent.safetensors")


def rewrite(path: Path, **changes: object) -> None:
    """Write a model file of the same weights whose header differs."""
    model, header = load_model(path)
    plain = {**json.loads(header.to_json()), **changes}
    save_file(model.state_dict(), str(path), metadata={"rscmd": json.dumps(plain)})


def tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights and metadata of a file, not checked."""
    with safe_open(str(path), "pt") as file:
        return {key: file.get_tensor(key).clone() for key in file.keys()}, file.metadata()  # noqa: SIM118


def test_foreign_newer_and_damaged_headers(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    save_file({"x": torch.zeros(1)}, str(file))
    with pytest.raises(UserError, match="not a model of rscmd_model"):
        load_model(file)
    saved(file)
    rewrite(file, format_version=FORMAT_VERSION + 1)
    with pytest.raises(UserError, match="newer than"):
        load_model(file)
    saved(file)
    rewrite(file, names={"0": "a", "1": "b", "2": "c"})
    with pytest.raises(UserError, match="do not fit its own header"):
        load_model(file)
    saved(file)
    rewrite(file, image_size="large")
    with pytest.raises(UserError, match="damaged header"):
        load_model(file)


def test_a_file_that_cannot_be_written_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        saved(tmp_path / "plain" / "model.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        saved(tmp_path / "folder.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.safetensors", "plain"]


def test_a_file_from_before_lean_branches_has_full_ones() -> None:
    plain = {**json.loads(ModelHeader(method_config("rscmd"), NAMES, 64, ThermalContract()).to_json()), "config": {}}
    assert ModelHeader.from_json(json.dumps(plain)).config == method_config("rscmd", family=LINEAR_SPPF, branch="full")
    plain["config"] = {"branch": "lean", "md": "map", "scale": "s"}
    assert ModelHeader.from_json(json.dumps(plain)).config == method_config(
        "rscmd", family=LINEAR_SPPF, md="map", scale="s"
    )


def test_a_model_file_may_be_read_by_others(tmp_path: Path) -> None:
    """As any new file may: the node often runs as another user than the training."""
    (tmp_path / "any").write_text("")
    saved(tmp_path / "m.safetensors", "visible")
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_flipped_bit_is_told(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    saved(file, "visible")
    sound = file.read_bytes()
    start = 8 + int.from_bytes(sound[:8], "little")
    name = sound.index(b"person")
    for at in (start, start + 3, (start + len(sound)) // 2, len(sound) - 1, name):
        data = bytearray(sound)
        data[at] ^= 0x40 if at != name else 0x02
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"m\.safetensors is cut short or damaged"):
            load_model(file)


def test_the_digest_is_of_the_content_and_not_of_its_order(tmp_path: Path) -> None:
    """A file that another program wrote again is the same; one from before digests, or with none, is taken."""
    file = tmp_path / "m.safetensors"
    saved(file, "visible")
    weights, metadata = tensors(file)
    assert set(metadata) == {HEADER, DIGEST}
    save_file(dict(reversed(weights.items())), str(file), metadata={k: metadata[k] for k in sorted(metadata)})
    load_model(file)
    save_file(weights, str(file), metadata={HEADER: metadata[HEADER]})
    load_model(file)


def test_weights_that_cannot_answer_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    saved(file, "visible")
    weights, metadata = tensors(file)
    key = next(k for k in weights if k.endswith("conv.weight"))

    def refusal(**changed: torch.Tensor) -> str:
        save_file({**weights, **changed}, str(file), metadata={HEADER: metadata[HEADER]})
        with pytest.raises(UserError, match=r"m\.safetensors") as error:
            load_model(file)
        return str(error.value)

    for value in (float("nan"), float("inf"), -float("inf")):
        spoilt = weights[key].clone()
        spoilt.view(-1)[0] = value
        assert f"{key!r} is not finite" in refusal(**{key: spoilt})
    for other in (weights[key].double(), weights[key].round().to(torch.int8), weights[key].flatten(), torch.zeros(0)):
        assert "do not fit" in refusal(**{key: other})
    assert "do not fit" in refusal(further=torch.zeros(1))


@pytest.mark.parametrize(
    "changes",
    [
        *({"image_size": size} for size in (0, -640, 33, 9_600_000, 640.0, True, "640", float("inf"), None)),
        *({"names": names} for names in ({}, None, ["a", "b"], {"0": "a", "2": "b"}, {"-1": "a", "0": "b"})),
        *({"names": names} for names in ({"0": "a", "00": "b"}, {"0": "a", "1": "a"}, {"0": "a", "1": None})),
        {"names": {"0": "a", "1": "\x1b[2Jb"}},
        {"names": {str(i): f"c{i}" for i in range(10_001)}},
        {"config": {"md_until": 10**400}},
        {"config": {"scale": []}},
        {"config": {"modalities": 1}},
        {"config": None},
        *({"thermal": {"source": "mono8", "scale": s}} for s in ([1e308, 1.1e308], [-1e308, 1e308], [0, 5e-324], "12")),
        {"thermal": {"source": "mono8", "scale": {"percentile": [float("nan"), 99]}}},
        {"metrics": {"a": "b"}},
        {"metrics": 7},
        {"data": {"name": 1}},
        {"code_version": None},
        {"format_version": None},
        {"format_version": True},
        {"format_version": 10**400},
        {"registration": []},
        *(
            {"registration": {"homography": h, "thermal_size": [160, 128], "visible_size": s}}
            for h, s in (
                ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [1_000_000, 800_000]),
                ([[1, 0, 0], [0, 1, 0], [0, 0, 10**400]], [160, 128]),
                ([[1e300, 0, 0], [0, 1e300, 0], [0, 0, 1e-10]], [160, 128]),
                ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [True, 128]),
            )
        ),
    ],
    ids=lambda changes: json.dumps(changes)[:60],
)
def test_every_field_of_a_header_is_checked(changes: dict[str, Any]) -> None:
    plain = {**json.loads(ModelHeader(method_config("rscmd"), NAMES, 64, ThermalContract()).to_json()), **changes}
    with pytest.raises(UserError) as error:
        parse_header(Path("some/m.safetensors"), json.dumps(plain))
    message = str(error.value)
    assert message.startswith("some/m.safetensors has ")
    assert len(message) < 500
    assert message.isprintable()


def test_a_header_that_is_no_header_is_one_line() -> None:
    for text in ("", "[" * 100_000, "[]", "7", "null", "{", '{"format_version": 1}', "9" * 10_000):
        with pytest.raises(UserError, match=r"^m has a damaged header") as error:
            parse_header(Path("m"), text)
        assert len(str(error.value)) < 500


def test_a_header_of_tomorrow_is_read_or_named_with_its_remedy() -> None:
    header = ModelHeader(method_config("rscmd"), NAMES, 64, ThermalContract())
    plain = {**json.loads(header.to_json()), "code_version": "9.1"}
    assert parse_header(Path("m"), json.dumps({**plain, "licence": "MIT"})).config == header.config
    for key, value in (("config", {"distilled": 0.5}), ("config", {"scale": "xx"}), ("thermal", {"source": "mono12"})):
        with pytest.raises(UserError, match=r"^m was written by rscmd_model 9\.1, .*: update rscmd_model") as error:
            parse_header(Path("m"), json.dumps({**plain, key: {**plain[key], **value}}))
        assert str(next(iter(value))) in str(error.value)


MISSING = {
    "fusion": "sum",
    "branch": "lean",
    "lambda_visible": 1.0,
    "lambda_thermal": 1.0,
    "rsc": "own",
    "teach": "backbone",
    "md": "project",
    "md_from": 0.0,
    "md_until": 1.0,
    "schedule": "all",
    "reduce": "mean",
    "gamma": 1.5,
    "kd": 5.0,
    "kd_from": 0.05,
    "div": 1.0,
    "visible_lost": 0.5,
    "stop_gradient": "on",
    "dropout": 0.3,
    "separator": 0.1,
    "lambda_m2d": 0.1,
    "inner": "cwd",
    "net": "scaled",
    "lambda_lif": 1.3,
    "smp_until": 0.5,
    "stronger": "measured",
    "lambda_feature": 1.0,
    "lambda_logit": 1.0,
    "temperature": 1.0,
    "score_every": 8.0,
}
MISSING_OF: dict[str, dict[str, str | float]] = {
    "dgl": {"lambda_visible": 4.0, "lambda_thermal": 4.0},
    "lif": {"alpha": 0.31, "beta": 0.4},
    "m2dlif": {"alpha": 0.31, "beta": 0.4},
    "ogm": {"alpha": 0.8, "form": "text", "ge": "off", "ogm_from": 0.06, "ogm_until": 0.6},
    "mwam": {"alpha": 1.5, "beta": 1.0, "lam": 6.0, "gamma": 0.7, "frm": "mended", "normalise": "off"},
}
"""Of methods whose settings are called as another's."""
MISSING_OF["opm"] = {
    **MISSING_OF["ogm"],
    "ogm": "off",
    "q_base": 0.5,
    "lam": 0.5,
    "p_exe": 0.7,
    "opm_from": 0.06,
    "opm_until": 1.0,
}


def test_a_header_has_only_what_differs_and_every_setting_has_a_meaning_when_it_is_missing() -> None:
    """A meaning that changes would have every file misread that relies on it: a new default leaves it alone."""
    assert set(UNWRITTEN) == set(ModelConfig.__dataclass_fields__) - {"method"}
    for method in METHODS:
        config = method_config(method)
        header = ModelHeader(config, NAMES, 64, ThermalContract())
        assert ModelHeader.from_json(header.to_json()).config == config, method
        fields = method_class(method).Settings.__dataclass_fields__
        meant = {**MISSING, **MISSING_OF.get(method, {})}
        assert {name: f.metadata["missing"] for name, f in fields.items()} == {n: meant[n] for n in fields}, method
    plain = ModelHeader(method_config("rscmd", md="map"), NAMES, 64, ThermalContract()).to_json()
    assert json.loads(plain)["config"] == {"family": "yolov8", "method": "rscmd", "settings": {"md": "map"}}


def test_a_method_of_tomorrow_is_named(tmp_path: Path) -> None:
    """Its header is read, as an exported model needs no more; its weights are not."""
    for changes, says in (({"method": "rsc2"}, "method 'rsc2'"), ({"settings": {"ge": 1.0}}, "unknown setting 'ge'")):
        file = tmp_path / "m.safetensors"
        saved(file)
        rewrite(file, config={"method": "rscmd", **changes}, code_version="9.1")
        assert read_header(file).config.answers == ("fused", "visible", "thermal")
        with pytest.raises(UserError, match=rf"m.safetensors .* 9\.1, .*{says}.*: update rscmd_model"):
            load_model(file)


_LOADING = """
import sys, time
from rscmd_model.errors import UserError
from rscmd_model.network.model_file import load_model
print("ready", flush=True)
end = time.monotonic() + 4
while time.monotonic() < end:
    try: load_model(sys.argv[1])
    except UserError: pass
print("alive")
"""


def test_a_file_that_is_overwritten_while_it_is_loaded_ends_no_process(tmp_path: Path) -> None:
    """As `cp` does it: cut to nothing, then filled. Mapped, it would be a SIGBUS."""
    sound, file = tmp_path / "sound.safetensors", tmp_path / "m.safetensors"
    saved(sound, "visible")
    shutil.copyfile(sound, file)
    child = subprocess.Popen([sys.executable, "-c", _LOADING, str(file)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    while child.poll() is None:
        shutil.copyfile(sound, file)
        time.sleep(0.01)
    assert child.stdout.read() == "alive\n"
    assert child.returncode == 0
