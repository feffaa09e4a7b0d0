"""What the fused loss still teaches a backbone of what it could learn from its own camera, measured at the features.

The paper (arXiv 2511.15433) makes two claims about plain fusion: the gradients that reach a backbone are suppressed,
and the weaker modality's the more. Both are ratios: with L_f the fused loss and L_m a unimodal loss on the same
features f_m, the norm of dL_f/df_m over that of dL_m/df_m, per modality and stride, and over the backbone's parameters.

What is held fixed, so that figures can be compared:

- No decoupling. The fused gradient is what the fused loss *would* send through the fusion, also where the model's
  training stops or maps it.
- The gradient at a stride is what crosses there from neck to backbone, without what the backbone's own deeper layers
  send back to it: with a sum, the same fused gradient reaches both modalities.
- Losses are YOLOv8's as trained, unweighted, each with its own assignment of targets to anchors; "all" is box + cls +
  dfl, "cls" the classification part, which the paper's argument is about.
- BatchNorm normalises as in the training: by the batch, or where its statistics are held still, by these. A model file
  does not say which, and is measured by the batch. Nothing of the measured model changes: the work is done on a copy.
- L_m needs a head. Three stand in for it, see `REFERENCES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rscmd_model.config import MODALITIES
from rscmd_model.errors import UserError
from rscmd_model.methods.base import Features
from rscmd_model.network.model import STRIDES, RscmdModel
from rscmd_model.network.objective import Detection

REFERENCES = {
    "probe": "a branch trained beside on the detached features, by the same recipe; the backbone never feels it",
    "own": "the model's own unimodal branch (models with rsc)",
    "alone": "the fused branch reading f_m with the other modality's features zero: the claim's own form, no training",
}
BACKBONE = "backbone"  # in the place of a stride: the gradient over all parameters of the modality's backbone
PARTS = ("all", "cls")

Batch = Mapping[str, Any]
Losses = Callable[[dict[str, Any], dict[str, Any]], dict[str, dict[str, Tensor]]]


@dataclass(frozen=True)
class GradientRow:
    """One measured place; its fields are the columns of gradients.csv.

    Attributes:
        epoch: counted from 1 as in results.csv; 0 for a finished model.
        modality: whose features.
        stride: "8", "16", "32", or "backbone" (over its parameters).
        reference: which head gives the unimodal loss, a key of `REFERENCES`.
        part: "all" or "cls".
        norm_fused, norm_unimodal: gradient norms, mean over batches.
        ratio, cosine: fused against unimodal, mean over batches, with the standard deviation between batches beside
            them (0 for a single batch).
        loss_fused, loss_unimodal: the losses themselves, mean over batches.
        batches: how many.
    """

    epoch: int
    modality: str
    stride: str
    reference: str
    part: str
    norm_fused: float
    norm_unimodal: float
    ratio: float
    ratio_sd: float
    cosine: float
    cosine_sd: float
    loss_fused: float
    loss_unimodal: float
    batches: int


class OpenModel(RscmdModel):
    """A copy of a two-camera model whose answers are not decoupled and read features that are handed to it.

    Args:
        model: what to copy; must fuse.

    Attributes:
        given: features by modality, per stride (B, C, H, W), that `features` returns instead of computing them.

    Raises:
        UserError: the model has no fused answer.
    """

    def __init__(self, model: RscmdModel) -> None:
        if "fused" not in model.config.answers:
            raise UserError(f"a model of method {model.config.method} has no fused loss whose gradients to measure")
        with torch.random.fork_rng(devices=[]):  # building draws initial weights
            super().__init__(model.config, model.names)
        if hasattr(model, "args"):
            self.args = model.args
        self.class_weights = getattr(model, "class_weights", None)
        self.frozen_statistics, self.new_norms = model.frozen_statistics, model.new_norms
        self.given: dict[str, Features] = {}
        self.to(next(model.parameters()).device)
        self.follow(model)

    def follow(self, model: RscmdModel) -> OpenModel:
        """Take over the weights that `model` has now, and normalise as its training does."""
        self.load_state_dict(model.state_dict())
        self.train()
        for part in self.method.frozen:  # whose statistics the trainer holds still, too
            self.get_submodule(part).eval()
        return self

    def features(self, x: Tensor, modality: str) -> Features:
        """As in the parent, unless they are given.

        Args:
            x: as in the parent.
            modality: whose.
        """
        return self.given[modality] if modality in self.given else super().features(x, modality)

    def split(self, features: dict[str, Features], x: Tensor) -> tuple[dict[str, Features], dict[str, Features]]:
        """No decoupling, whatever the method does."""
        return features, features


def measure(
    model: OpenModel,
    batches: Iterable[Batch],
    *,
    epoch: int = 0,
    references: Mapping[str, nn.Module] | None = None,
    losses: Losses | None = None,
) -> list[GradientRow]:
    """Measure every place on some batches.

    Args:
        model: in training mode; its running statistics move, nothing else.
        batches: as the trainer's, images (B, 4, H, W) in [0, 1], on the model's device.
        epoch: for the rows.
        references: a branch trained beside each modality, see "probe" in `REFERENCES`.
        losses: box, cls and dfl of each named answer; default the detection losses of the model.

    Returns:
        a row for each modality, stride, reference and part.

    Raises:
        UserError: there is no batch.
    """
    losses = losses or Detection(model).losses
    found: dict[tuple[str, str, str, str], list[tuple[float, ...]]] = {}
    for batch in batches:
        for key, values in _measure_batch(model, batch, references or {}, losses).items():
            found.setdefault(key, []).append(values)
    if not found:
        raise UserError("no pairs to measure on")
    rows = []
    for (modality, stride, reference, part), batches_here in found.items():
        fused, unimodal, cosine, loss_fused, loss_unimodal = zip(*batches_here)
        ratio = [f / u if u else math.nan for f, u in zip(fused, unimodal)]
        means = _mean(fused), _mean(unimodal), _mean(ratio), _spread(ratio), _mean(cosine), _spread(cosine)
        losses_here = _mean(loss_fused), _mean(loss_unimodal)
        rows.append(GradientRow(epoch, modality, stride, reference, part, *means, *losses_here, len(batches_here)))
    return rows


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))  # nan in, nan out, unlike the standard library's


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _measure_batch(
    model: OpenModel, batch: Batch, references: Mapping[str, nn.Module], losses: Losses
) -> dict[tuple[str, str, str, str], tuple[float, ...]]:
    """(modality, stride, reference, part) -> fused norm, unimodal norm, cosine, fused loss, unimodal loss."""
    x = batch["img"]
    model.given = {}
    computed = {m: model.features(x, m) for m in MODALITIES}
    features = {m: [f.detach().requires_grad_() for f in computed[m]] for m in MODALITIES}
    model.given = features
    own = model.answers(x, model.config.answers)
    answers = {("fused", ""): own["fused"]}
    for m in MODALITIES:
        if m in references:
            answers["probe", m] = references[m](features[m])
        if m in model.config.answers and m in own:  # some methods ship answers that bear no loss of their own
            answers["own", m] = own[m]
        model.given = {o: f if o == m else [torch.zeros_like(level) for level in f] for o, f in features.items()}
        answers["alone", m] = model.answers(x, ["fused"])["fused"]
    model.given = {}
    names = {f"{kind} {m}": (kind, m) for kind, m in answers}
    parts = losses({name: answers[key] for name, key in names.items()}, dict(batch))
    values = {names[name]: _parts(part) for name, part in parts.items()}

    found: dict[tuple[str, str, str, str], tuple[float, ...]] = {}
    for part in PARTS:
        fused_loss = values["fused", ""][part]
        both = _gradients(fused_loss, [f for m in MODALITIES for f in features[m]])
        fused = {m: both[i * len(STRIDES) : (i + 1) * len(STRIDES)] for i, m in enumerate(MODALITIES)}
        at_fused = {m: _places(model, computed[m], fused[m], m, part) for m in MODALITIES}
        for reference, m in answers:
            if reference == "fused":
                continue
            loss = values[reference, m][part]
            at_unimodal = _places(model, computed[m], _gradients(loss, features[m]), m, part)
            for place, g in at_unimodal.items():
                found[m, place, reference, part] = (
                    *_compare(at_fused[m][place], g),
                    float(fused_loss.detach()),
                    float(loss.detach()),
                )
    return found


def _parts(loss: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"all": torch.stack(list(loss.values())).sum(), "cls": loss["cls"]}


def _gradients(loss: Tensor, at: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True, materialize_grads=True))


def _places(
    model: OpenModel, features: list[Tensor], gradients: list[Tensor], modality: str, part: str
) -> dict[str, Tensor]:
    """Gradient by place: at each stride, and (for the whole loss) carried on to the backbone's parameters."""
    places = {str(stride): g for stride, g in zip(STRIDES, gradients)}
    parameters = [p for p in model.backbones[modality].parameters() if p.requires_grad]
    if part == "all" and parameters:
        carried = torch.autograd.grad(
            features, parameters, gradients, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        places[BACKBONE] = torch.cat([g.flatten() for g in carried])
    return places


def _compare(fused: Tensor, unimodal: Tensor) -> tuple[float, float, float]:
    """Both norms and the cosine (nan where a gradient is zero)."""
    f, u = fused.detach().flatten().double(), unimodal.detach().flatten().double()
    norm_f, norm_u = float(f.norm()), float(u.norm())
    return norm_f, norm_u, float(f @ u) / (norm_f * norm_u) if norm_f and norm_u else math.nan
