"""model.safetensors: what is written is what is read, and a bad file is told for what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rscmd_model.config import METHODS, method_config
from rscmd_model.errors import UserError
from rscmd_model.header import FORMAT_VERSION
from rscmd_model.model import RscmdModel
from rscmd_model.model_file import ModelHeader, load_model, read_header, save_model
from rscmd_model.thermal import ThermalContract

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
    assert "not a model file" in message(b"\x80\x02not a safetensors file at all")
    with pytest.raises(UserError, match="no model file"):
        load_model(tmp_path / "absent.safetensors")


def rewrite(path: Path, **changes: object) -> None:
    """Write a model file of the same weights whose header differs."""
    model, header = load_model(path)
    plain = {**json.loads(header.to_json()), **changes}
    save_file(model.state_dict(), str(path), metadata={"rscmd": json.dumps(plain)})


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
    config = method_config("rscmd", branch="full")
    plain = json.loads(ModelHeader(config, NAMES, 64, ThermalContract()).to_json())
    assert "branch" not in plain["config"]
    assert ModelHeader.from_json(json.dumps(plain)).config == config


def test_a_model_file_may_be_read_by_others(tmp_path: Path) -> None:
    """As any new file may: the node often runs as another user than the training."""
    (tmp_path / "any").write_text("")
    saved(tmp_path / "m.safetensors", "visible")
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode
