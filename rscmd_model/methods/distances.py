"""How far a student's feature maps are from a teacher's: the distances of feature distillation.

Both are of channels' patterns over the positions and not of their size. A map is (B, C, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def channel_wise(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Channel-wise distillation (CWD, Shu et al., ICCV 2021, arXiv 2011.13256).

    Each channel becomes a distribution over the positions (softmax). The distance is the Kullback-Leibler divergence of
    the student's from the teacher's, mean over images and channels, times the squared temperature.
    """
    log_student = (student.flatten(2).float() / temperature).log_softmax(2)
    log_teacher = (teacher.flatten(2).float() / temperature).log_softmax(2)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(2)
    return divergence.mean() * temperature**2


def correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Pearson knowledge distillation (PKD, Cao et al., NeurIPS 2022, arXiv 2207.02039).

    One less Pearson's correlation of each channel over the positions, mean over images and channels: 0 for equal maps,
    2 for opposite ones. A channel that is constant in one of them is uncorrelated.
    """
    student, teacher = (
        functional.normalize(x - x.mean(2, keepdim=True), dim=2) for x in (_flat(student), _flat(teacher))
    )
    return 1 - (student * teacher).sum(2).mean()


def standardised(features: Tensor) -> Tensor:
    """BatchNorm without parameters: each channel with mean 0 and variance 1 over the batch and its positions."""
    return functional.batch_norm(features.float(), None, None, training=True)


def _flat(features: Tensor) -> Tensor:
    return torch.flatten(features, 2).float()
