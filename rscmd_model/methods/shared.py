"""One neck and head for all answers: what `dgl` and `gmd` have in common with `rsc+rsc=shared`.

The fused branch h reads the fused features, f_v and f_t, and gives an answer to each. When a camera is lost, h answers
from the other one's features. Its BatchNorm normalises each of the three by the statistics of the batch in training,
and by one mixture of them afterwards.
"""

from __future__ import annotations

from typing import Any

from rscmd_model.methods.sum import Sum


class SharedHead(Sum):
    """Three answers of one branch."""

    @classmethod
    def shipped(cls, settings: Any) -> tuple[str, ...]:
        """The fused answer and one for each modality."""
        return ("fused", *cls.modalities)

    @property
    def branches(self) -> dict[str, str]:
        """The fused one alone."""
        return {"fused": "full"}
