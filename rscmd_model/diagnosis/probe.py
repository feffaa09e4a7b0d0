"""Linear probing: what a backbone knows, measured by a fresh neck and head trained on it while it is frozen.

The idea is M2D-LIF's (Zhao et al., ICCV 2025, arXiv 2503.11780): the backbone of a joint training is tested alone, and
compared with the backbone of a detector of that one modality. Here the backbone is frozen together with its BatchNorm
statistics. Neck and head are as in every model of this package; they start from the same random weights for every
probe of a modality and are trained by the same recipe. The name says one linear layer. A neck and a head are more than
that, but no linear layer could read boxes from the features of a detector.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rscmd_model.config import NO_AUGMENTATION, Augmentation, ModelConfig
from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.devices import check_device, scoring_device
from rscmd_model.errors import UserError
from rscmd_model.evaluation.sweep import LOWEST_SCORE, evaluate
from rscmd_model.files import whole_file
from rscmd_model.inference.predictor import Predictor
from rscmd_model.methods import method_config
from rscmd_model.network.checkpoint import Detector
from rscmd_model.network.model import RscmdModel
from rscmd_model.network.model_file import load_model, read_header
from rscmd_model.training.continuing import Finished
from rscmd_model.training.run import train
from rscmd_model.training.trainer import PairedTrainer


@dataclass(frozen=True)
class ProbeScore:
    """What the probe of one backbone scored.

    Attributes:
        model: name of the model the backbone is of.
        kind: "solo" for a detector of that modality alone, else its method, as in "rscmd+md=stop".
        modality: of the backbone.
        mAP50, mAP50_95: by COCO's rules, 0 to 1.
        file: the probe, a single-camera model like any other.
    """

    model: str
    kind: str
    modality: str
    mAP50: float
    mAP50_95: float
    file: str


class FrozenBackboneTrainer(PairedTrainer):
    """Trains neck and head of a single-camera model; its backbone does not move, running statistics included."""

    def start_from(
        self,
        config: ModelConfig,
        weights: str | Path | Detector | Finished | None = None,
        augmentation: Augmentation = NO_AUGMENTATION,
        teachers: Mapping[str, Path] | None = None,
    ) -> None:
        """Begin with a fresh neck and head on the backbone of a model file.

        Args:
            config: of the probe: one camera.
            weights: the model file; must be given.
            augmentation, teachers: as in the parent.
        """
        assert isinstance(weights, str | Path)
        super().start_from(config, augmentation=augmentation, teachers=teachers)
        (modality,) = config.modalities
        self.model.backbones[modality].load_state_dict(load_model(weights)[0].backbones[modality].state_dict())

    def parts_to_freeze(self, model: RscmdModel) -> list[str]:
        """The backbone, and what the option freeze names."""
        return ["backbones", *super().parts_to_freeze(model)]


def train_probe(model: Path, modality: str, data: str, options: dict[str, Any]) -> Path:
    """Train a fresh neck and head on the frozen backbone of one modality.

    Args:
        model: a model file that has the modality.
        modality: whose backbone.
        data: as `open_data` takes it; its train split is trained on.
        options: ultralytics' options.

    Returns:
        path of the probe's `model.safetensors`.

    Raises:
        UserError: bad model, data, options or device.
    """
    if options.get("resume"):
        raise UserError("resume=: a probe begins with a fresh neck and head, leave it out")
    header = read_header(model)
    if list(header.names.values()) != list(open_data(data).names.values()):
        raise UserError(f"{model} finds {', '.join(header.names.values())}, which is not what {data} has")
    config = method_config(modality, scale=header.config.scale, family=header.config.family)
    options = {"imgsz": header.image_size, **options}
    return train(data, config, options, weights=model, trainer_class=FrozenBackboneTrainer)


def probe(
    name: str, model: Path, data: str, split: str, modalities: Sequence[str], options: dict[str, Any]
) -> list[ProbeScore]:
    """Probe every backbone of a model and score the probes.

    The probe of the last epoch is scored, so that the scored split chooses nothing. Runs are kept in
    runs/probe/NAME-MODALITY, or where the options project and name say.

    Args:
        name: of the model, for the results.
        model: its file.
        data: as `open_data` takes it; its train split is trained on.
        split: what is scored.
        modalities: whose backbones to probe; those that the model lacks are passed over.
        options: ultralytics' options.

    Returns:
        a score for each backbone.

    Raises:
        UserError: as `train_probe`, or bad data.
    """
    config = open_data(data)
    pairs = find_pairs(config, split)
    header = read_header(model).config
    if options.get("single_cls"):
        raise UserError("single_cls=True: a probe is scored on the data's own classes, leave it out")
    check_device(options.get("device"))
    scores = []
    for modality in (m for m in header.modalities if m in modalities):
        own_folder = {
            "project": str(Path(options.get("project") or "runs/probe").resolve()),
            "name": f"{options.get('name', name)}-{modality}",
        }
        file = train_probe(model, modality, data, {"val": False, **options, **own_folder})
        predictor = Predictor(file, device=scoring_device(options.get("device")), conf=LOWEST_SCORE, max_det=100)
        result = evaluate(predictor, config, pairs)
        scores.append(ProbeScore(name, kind(header), modality, result["mAP50"], result["mAP50_95"], str(file)))
    return scores


def kind(config: ModelConfig) -> str:
    """What a model is in a table of probes: "solo" for one camera, else its method, as in "rscmd+md=stop"."""
    return "solo" if len(config.modalities) == 1 else config.title


def format_table(scores: Sequence[ProbeScore]) -> str:
    """A line for each probe; where solo detectors of the modality were probed, the difference to the mean of them."""
    solos: dict[str, list[float]] = {}
    for s in scores:
        if s.kind == "solo":
            solos.setdefault(s.modality, []).append(s.mAP50_95)
    solo = {modality: fmean(figures) for modality, figures in solos.items()}
    width = max(len(s.model) for s in scores)
    wide = max(len("backbone of"), *(len(s.kind) for s in scores))
    lines = [f"{'model':{width}}  {'modality':8}  {'backbone of':{wide}}  mAP50  mAP50:95  against solo"]
    for s in sorted(scores, key=lambda s: s.modality != "visible"):
        against = "" if s.kind == "solo" or s.modality not in solo else f"{100 * (s.mAP50_95 - solo[s.modality]):+.1f}"
        scores_here = f"{100 * s.mAP50:5.1f}  {100 * s.mAP50_95:8.1f}"
        lines.append(f"{s.model:{width}}  {s.modality:8}  {s.kind:{wide}}  {scores_here}  {against:>12}")
    several = [f"{len(figures)} {modality} ones" for modality, figures in solos.items() if len(figures) > 1]
    lines += [f"against solo: the mean of {' and of '.join(several)}"] if several else []
    return "\n".join(lines)


def write_table(path: Path, scores: Sequence[ProbeScore]) -> None:
    """Write scores as CSV.

    Args:
        path: the file.
        scores: one or more.

    Raises:
        UserError: the file cannot be written.
    """
    with whole_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(scores[0])))
        writer.writeheader()
        writer.writerows(asdict(s) for s in scores)
