"""Exported models: each format answers as the model does, and faults are one line."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_inference import image, model_file
from ultralytics.utils.nms import non_max_suppression

from rscmd_model.errors import UserError
from rscmd_model.imaging.images import stack_pair
from rscmd_model.imaging.preprocess import fill, place
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.inference import backends, export_file
from rscmd_model.inference.backends import OpenVinoBackend, needed, read_archive, write_archive
from rscmd_model.inference.export_file import EXACT, Bound, export
from rscmd_model.inference.late_fusion import suppress_and_join
from rscmd_model.inference.onnx_backend import cuda_failure
from rscmd_model.inference.opening import SUFFIXES
from rscmd_model.inference.predictor import Predictor
from rscmd_model.inference.suppression import suppress
from rscmd_model.methods import method_config
from rscmd_model.network.header import DIGEST, ModelHeader

NEEDS = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}


def require(form: str) -> None:
    for package in NEEDS[form]:
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("export") / "model.safetensors")


Exported = Callable[..., Path]


@pytest.fixture(scope="module")
def exported(model: Path) -> Exported:
    """The model in a format, by the options of `export`; each file is made once and must be left as it is."""
    made: dict[str, Path] = {}

    def file(form: str, **options: Any) -> Path:
        require(form)
        name = "-".join([form, *options])
        if name not in made:
            out = model.parent / f"{name}{SUFFIXES[form]}"
            export(model, form, out, **{"half": False, **options})
            made[name] = out
        return made[name]

    return file


@pytest.mark.parametrize("form", NEEDS)
def test_an_exported_model_gives_the_model_s_answers(form: str, model: Path, exported: Exported) -> None:
    out = exported(form, dynamic=True)
    eager, made = (Predictor(file, device="cpu", conf=0.05) for file in (model, out))
    assert made.header == eager.header
    assert made.backend.name in ("onnxruntime", "openvino")
    for height, width in ((96, 128), (128, 96), (60, 200)):
        visible, thermal = image(height, width)
        placement = place((height, width), 128)
        stack = np.empty((1, *placement.network, 4), np.uint8)
        fill(stack[0], placement, visible, thermal)
        for branch in ("fused", "visible", "thermal"):  # before suppression, which a last bit may tip
            answers = (predictor.backend.forward(stack, [branch])[0] for predictor in (made, eager))
            np.testing.assert_allclose(*answers, atol=1e-2)
        assert len(made.predict(visible, thermal)) > 0


@pytest.mark.parametrize("form", NEEDS)
def test_a_fixed_batch_takes_any_number_of_pairs_of_any_shape(form: str, model: Path, exported: Exported) -> None:
    out = exported(form, batch=2, size=(128, 96))
    eager, made = (Predictor(file, device="cpu", conf=0.05) for file in (model, out))
    assert made.backend.fixed == (2, 96, 128)
    pairs = [image(96, 128, seed) for seed in range(3)]
    visibles, thermals = [p[0] for p in pairs], [p[1] for p in pairs]
    assert [len(found) > 0 for found in made.predict_batch(visibles, thermals)] == [True] * 3
    stacks = np.stack([stack_pair(*pair) for pair in pairs[:2]])
    for branch in ("fused", "visible", "thermal"):  # before suppression, which a last bit may tip
        answers = (predictor.backend.forward(stacks, [branch])[0] for predictor in (made, eager))
        np.testing.assert_allclose(*answers, atol=1e-2)
    tall = made.predict(*image(200, 60))
    assert len(tall) > 0
    assert (tall.boxes <= [60, 200, 60, 200]).all()


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_an_exported_model_starts_without_torch(form: str, exported: Exported) -> None:
    out = exported(form, batch=2, size=(128, 96))
    code = (
        "import sys; from rscmd_model.inference.predictor import Predictor; p = Predictor(sys.argv[1], device='cpu'); "
        "p.warm_up(); print([m for m in ('torch', 'ultralytics') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_signal_is_handled_when_openvino_models_came_and_went(exported: Exported) -> None:
    """In the order that they came in: with a core each, the last one left the first one's stack for signals behind."""
    pytest.importorskip("openvino")
    code = (
        "import os, signal, sys; from rscmd_model.inference.predictor import Predictor\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "models = [Predictor(sys.argv[1], device='cpu') for _ in range(2)]\n"
        "_ = [model.warm_up() for model in models]\ndel models[0]\ndel models[0]\n"
        "os.kill(os.getpid(), signal.SIGUSR1)"
    )
    command = [sys.executable, "-c", code, str(exported("openvino", dynamic=True))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_an_openvino_file_says_itself_whether_it_runs_in_16_bits(exported: Exported) -> None:
    pytest.importorskip("openvino")
    able = backends.has_bfloat16(backends.openvino_core("a test"))
    for half in (False, True):
        out = exported("openvino", half=True, size=(128, 96)) if half else exported("openvino", dynamic=True)
        backend = Predictor(out, device="cpu").backend
        backend.forward(stack_pair(*image(96, 128))[None], ["fused"])
        (request,) = backend._requests.values()
        precision = request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
        assert precision.get_type_name() == ("bf16" if half and able else "f32")
        assert backend.precision == ("bfloat16" if half and able else "float32")
        with pytest.raises(UserError, match="--half; leave half"):
            Predictor(out, device="cpu", half=True)


def test_an_answer_that_differs_is_not_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_file, "HALF", Bound(1e-9, 1e-9))
    require("onnx")
    out = tmp_path / "m.onnx"
    with pytest.raises(UserError, match="is not written"):
        export(model, "onnx", out, half=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", NEEDS)
def test_an_exported_ensemble_is_the_model_s(form: str, model: Path, exported: Exported) -> None:
    file = exported(form, dynamic=True, answer="ensemble")
    made, eager = Predictor(file, device="cpu", conf=0.05), Predictor(model, device="cpu", answer="ensemble")
    assert made.answer == "ensemble"
    assert Predictor(file, device="cpu", answer="fused").answer == "fused"
    stacks = np.stack([stack_pair(*image(96, 128, seed)) for seed in range(2)])
    names = ("fused", "visible", "thermal")
    together = made.backend.forward(stacks, names)
    for name, answer, expected in zip(names, together, eager.backend.forward(stacks, names), strict=True):
        centres = np.abs(answer[:, :4] - expected[:, :4]).max() / 128
        assert centres < EXACT.box, "before suppression, which a last bit may tip"
        assert np.abs(answer[:, 4:] - expected[:, 4:]).max() < EXACT.score
        np.testing.assert_allclose(answer, made.backend.forward(stacks, [name])[0], atol=1e-2)
    joint = suppress_and_join([answer[:1] for answer in together], 0.05, made.iou, made.max_det)[0]
    np.testing.assert_allclose(made.predict(*image(96, 128, 0)).scores, joint[:, 4], atol=1e-3)


def test_an_export_for_an_answer_that_there_is_not(tmp_path: Path) -> None:
    plain = model_file(tmp_path / "sum.safetensors", "sum")
    with pytest.raises(UserError, match="answer ensemble joins several answers"):
        export(plain, "onnx", tmp_path / "m.onnx", answer="ensemble")
    assert [f.name for f in tmp_path.iterdir()] == ["sum.safetensors"]


@pytest.mark.parametrize("form", NEEDS)
def test_a_full_disk_is_one_line_and_leaves_nothing(form: str, model: Path, tmp_path: Path) -> None:
    require(form)
    (tmp_path / "out").mkdir()
    words = ["--model", model, "--format", form, "--out", tmp_path / f"out/m{SUFFIXES[form]}"]
    command = ["bash", "-c", 'ulimit -f 1024; exec "$@"', "-", sys.executable, "-m", "rscmd_model.export", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch("error: (OpenVINO )?cannot write .*", done.stderr.strip().splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("form", [f for f in SUFFIXES if f not in ("safetensors", "engine")])
def test_damaged_and_foreign_files_are_one_line(form: str, tmp_path: Path) -> None:
    require(form)
    file = tmp_path / f"m{SUFFIXES[form]}"
    for content in (b"", b"garbage" * 50, b"PK\x03\x04" + bytes(100)):
        file.write_bytes(content)
        with pytest.raises(UserError, match=str(file)):
            Predictor(file, device="cpu")
    with pytest.raises(UserError, match="no model file"):
        Predictor(tmp_path / f"absent{SUFFIXES[form]}")


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    file = tmp_path / "m.openvino"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.bin", bytes(10**6))
    with pytest.raises(UserError, match="compressed"):
        Predictor(file)


def test_archives_that_zip_allows_and_export_does_not_write_are_one_line(tmp_path: Path) -> None:
    """Of a file of 4 MB that names one member 2000 times, 2000 times 4 MB would be read."""
    file = tmp_path / "m.openvino"
    header = ModelHeader(method_config("visible"), {0: "person"}, 64, ThermalContract())
    write_archive(file, {"header.json": header.to_json().encode(), "model.xml": b"<net/>", "model.bin": b"1" * 4000})
    sound = file.read_bytes()
    assert read_archive(file)[0] == header
    entry, end = sound.index(b"PK\x01\x02"), sound.index(b"PK\x05\x06")

    def refusal(content: bytes) -> str:
        file.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_archive(file)
        assert str(error.value).startswith(str(file))
        return str(error.value)

    def changed(at: int, value: bytes) -> bytes:
        return sound[:at] + value + sound[at + len(value) :]

    assert "encrypted" in refusal(changed(entry + 8, b"\x01"))
    refusal(changed(entry + 6, b"\xff"))  # a version of zip to come
    refusal(changed(end + 16, b"\xff\xff\xff\x7f"))  # where the directory begins
    refusal(changed(entry + 42, b"\xff\xff\xff\x7f"))  # where a member begins
    assert "CRC" in refusal(changed(sound.index(b"1111"), b"2"))
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2000):
            archive.writestr("model.bin", b"")
        archive.writestr("model.bin", bytes(4 << 20))
    started = time.monotonic()
    assert "'model.bin' is in it more than once" in refusal(file.read_bytes())
    assert time.monotonic() - started < 2
    write_archive(file, {"header.json": header.to_json().encode(), "model.xml": b"<net/>"})
    with pytest.raises(UserError, match=r"m\.openvino has no model\.bin"):
        Predictor(file, device="cpu")


def test_an_onnx_file_that_is_not_what_was_written_is_one_line(exported: Exported, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    sound = exported("onnx", dynamic=True).read_bytes()
    file = tmp_path / "m.onnx"
    file.write_bytes(bytes([*sound[:9999], sound[9999] ^ 1, *sound[10000:]]))
    with pytest.raises(UserError, match=r"m\.onnx is not what rscmd_model\.export wrote"):
        Predictor(file, device="cpu")
    onnx.save(onnx.load_model_from_string(sound), file)  # written again, the same
    Predictor(file, device="cpu")

    def refusal(change: Callable[[Any], None]) -> str:
        edited = onnx.load_model_from_string(sound)
        del edited.metadata_props[-1]  # the digest, as who edits it on purpose does
        change(edited)
        onnx.save(edited, file)
        with pytest.raises(UserError) as error:
            Predictor(file, device="cpu").warm_up()
        assert str(file) in str(error.value)
        assert len(str(error.value)) < 700
        return str(error.value)

    def kind(edited: Any) -> None:
        node = next(n for n in edited.graph.node if n.op_type == "Conv")
        node.op_type = "Sigmoid"
        node.ClearField("attribute")

    def weights(edited: Any) -> Any:
        return next(t for t in edited.graph.initializer if t.name.endswith("conv.weight"))

    def elsewhere(edited: Any) -> None:
        onnx.external_data_helper.set_external_data(weights(edited), "../../etc/passwd")
        weights(edited).ClearField("raw_data")

    assert "cannot run it" in refusal(kind)
    assert "cannot run it" in refusal(lambda edited: weights(edited).dims.__setitem__(0, 7))
    assert "cannot run it" in refusal(lambda edited: edited.graph.output.pop(1))
    assert "has no input" in refusal(lambda edited: edited.graph.input.pop())
    assert "in other files" in refusal(elsewhere)
    nan = np.full(2, np.nan, np.float32).tobytes()
    assert "not finite" in refusal(lambda e: setattr(weights(e), "raw_data", nan + weights(e).raw_data[len(nan) :]))


def test_requests_that_make_no_sense_are_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.onnx"):
        export(model, "onnx", tmp_path / "m.pt")
    with pytest.raises(UserError, match="needs --data"):
        export(model, "onnx", tmp_path / "m.onnx", int8=True)
    with pytest.raises(UserError, match="50000 pairs of 128x128 px"):
        export(model, "onnx", tmp_path / "m.onnx", batch=50_000)
    with pytest.raises(UserError, match="backend 'tvm'"):
        Predictor(model, backend="tvm")
    (tmp_path / "m.openvino").touch()
    with pytest.raises(UserError, match=r"m\.openvino runs on the CPU, and device 'cuda:0' was asked for"):
        Predictor(tmp_path / "m.openvino", device="cuda:0")
    with pytest.raises(UserError, match=r"backend onnxruntime converts .* on the CPU, and device 'cuda:0'"):
        Predictor(model, backend="onnxruntime", device="cuda:0")
    with pytest.raises(UserError, match=r"backend tensorrt runs a model\.engine"):
        Predictor(model, backend="tensorrt")


def test_an_exported_file_has_its_own_backend(exported: Exported) -> None:
    file = exported("onnx", dynamic=True)
    for backend in (None, "auto", "onnxruntime"):
        assert Predictor(file, backend=backend).backend.name == "onnxruntime"
    for backend in ("torch", "openvino", "tensorrt"):
        with pytest.raises(UserError, match=f"is run by onnxruntime, and backend {backend} was asked for"):
            Predictor(file, backend=backend)


def test_an_onnx_file_on_a_gpu_that_the_package_knows_nothing_of(exported: Exported) -> None:
    """In one line, on stderr alone, without torch."""
    file = exported("onnx", dynamic=True)
    if "CUDAExecutionProvider" in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    assert Predictor(file, device="auto").device == "cpu"
    code = (
        "import sys\nfrom rscmd_model.errors import UserError\nfrom rscmd_model.inference.predictor import Predictor\n"
        "try:\n    Predictor(sys.argv[1], device=sys.argv[2])\nexcept UserError as error:\n    print(error)\n"
        "assert not {'torch', 'ultralytics'} & set(sys.modules)"
    )
    for device, says in (
        ("cuda:1", "device cuda:1 needs the package onnxruntime-gpu"),
        ("mps", "device 'mps' is not one of auto, cpu, cuda:0"),
        ("0,1", "device '0,1' is not one of auto, cpu, cuda:0"),
    ):
        done = subprocess.run([sys.executable, "-c", code, str(file), device], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        (line,) = done.stdout.splitlines()
        assert line.startswith(f"{file}: {says}")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_falls_back_to_the_cpu_is_refused(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime-gpu does without a word where there is no driver. The package here is made to say it knew CUDA."""
    file = exported("onnx", dynamic=True)
    onnxruntime = pytest.importorskip("onnxruntime")
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    if there[0] in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    with pytest.raises(UserError, match=r"ONNX Runtime cannot use cuda:0 \(.*NVIDIA's driver, .*give device cpu$"):
        Predictor(file, device="cuda:0")


def test_eight_bits_of_onnx_are_refused_on_a_gpu(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime would compute them in 32 bits there, more slowly, and say that it was CUDA."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    edited = onnx.load(exported("onnx", dynamic=True))
    del edited.metadata_props[[entry.key for entry in edited.metadata_props].index(DIGEST)]
    edited.graph.node.append(onnx.helper.make_node("QuantizeLinear", ["a", "b"], ["c"]))
    onnx.save(edited, tmp_path / "m.onnx")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(UserError, match=r"m\.onnx is in 8 bits, .*: give device cpu, or export the model"):
        Predictor(tmp_path / "m.onnx", device="cuda:0")


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_after_a_pair_a_lone_camera_s_answer_is_ready(
    backend: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever takes its time for images of a new size has taken it before a camera is lost."""
    pytest.importorskip(backend)
    predictor = Predictor(model, device="cpu", backend=backend)
    made, compiled = [], OpenVinoBackend._compiled
    monkeypatch.setattr(OpenVinoBackend, "_compiled", lambda self, *key: made.append(key) or compiled(self, *key))
    predictor.warm_up()  # of other sizes than the camera's
    before = len(made)
    visible, thermal = image(64, 128)
    predictor.predict(visible, thermal)
    predictor.get_ready(visible, thermal)
    ready = len(made)
    assert ready - before == (3 if backend == "openvino" else 0)
    for given in ((visible, None), (None, thermal), (visible, thermal)):
        predictor.predict(*given)
    assert len(made) == ready


def test_a_missing_package_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match="pip install tensorrt"):
        export(model, "engine", tmp_path / "m.engine")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pip install onnxruntime$"):
        Predictor(tmp_path / "m.onnx")


def test_a_package_that_is_there_and_cannot_be_imported_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As JetPack's TensorRT, where a library that it is linked to is not in the container."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, content in (
        ("half_a_runtime", "from .half_a_runtime import *"),
        ("without_its_own", "import something_that_nobody_has"),
        ("without_a_library", "import ctypes; ctypes.CDLL('libnobody.so')"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(content)
        (folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"no library")
        with pytest.raises(
            UserError, match=rf"^m\.onnx needs {name}, which is installed and cannot be imported \(.+\)"
        ):
            needed(name, "m.onnx")


def test_no_engine_is_begun_without_a_gpu(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    library = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1))
    monkeypatch.setitem(sys.modules, "tensorrt", library)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="builds on the CUDA GPU that is to run it, and torch finds none"):
        export(model, "engine", tmp_path / "m.engine")


def test_a_batch_is_cut_to_what_the_backend_takes(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an engine of open sizes has it, whose batches have a largest one."""
    predictor = Predictor(exported("onnx", dynamic=True), conf=0.05)
    visibles, thermals = zip(*(image(96, 128, seed) for seed in range(7)))
    wanted = [len(found) for found in predictor.predict_batch(visibles, thermals)]
    sizes = []
    forward = predictor.backend.forward

    def watched(batch: Any, answers: Any) -> list[np.ndarray]:
        sizes.append(len(batch))
        return forward(batch, answers)

    monkeypatch.setattr(predictor.backend, "forward", watched)
    monkeypatch.setattr(type(predictor.backend), "largest_batch", 3)
    assert [len(found) for found in predictor.predict_batch(visibles, thermals)] == wanted
    assert sizes == [3, 3, 1]


def test_what_cuda_says_is_found_in_what_onnx_runtime_says() -> None:
    said = (
        "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:114 std::conditional_t<THRW, void, Status> "
        "onnxruntime::CudaCall(ERRTYPE, const char*, int) [with ERRTYPE = cudaError; bool THRW = true] CUDA failure "
        "35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=robot ; line=336"
    )
    assert cuda_failure(said) == "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"
    assert cuda_failure("[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model.") is None


def test_the_trial_says_what_it_measured(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a runtime is missing: torch always remains."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    tried = Predictor(model, device="cpu", backend="auto", conf=0.05)
    assert "torch" in tried.trial
    assert "openvino left out" in tried.trial
    assert tried.trial.endswith(f"taken: {tried.backend.name}")
    assert len(tried.predict(*image(96, 128))) > 0


@pytest.mark.parametrize("conf", [0.001, 0.25])
def test_suppression_keeps_what_ultralytics_keeps(conf: float) -> None:
    rng = np.random.default_rng(0)
    for classes in (1, 3):
        parts = (
            rng.uniform(-40, 300, (2, 2, 300)),  # some reach out of the picture
            rng.uniform(5, 100, (2, 2, 300)),
            rng.uniform(0, 1, (2, classes, 300)),
        )
        answer = np.concatenate(parts, 1).astype(np.float32)
        expected = non_max_suppression(torch.from_numpy(answer.copy()), conf, 0.7, max_det=50, max_time_img=10.0)
        for a, b in zip(suppress(answer, conf, 0.7, 50), expected):
            np.testing.assert_array_equal(a, b.numpy())


def test_its_help_names_the_formats_without_torch() -> None:
    code = (
        "import sys; from rscmd_model import export; sys.argv = ['export', '--help']\n"
        "try: export.main()\nexcept SystemExit: print([m for m in ('torch', 'ultralytics') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "{onnx,openvino,engine}" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
