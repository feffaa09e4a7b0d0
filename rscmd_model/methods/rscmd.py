"""`rscmd`: RSC with modality decoupling, the method of the package (arXiv 2511.15433, as far as it is known).

    L = L_det(h(D(f_v) + D(f_t))) + lambda_v L_det(h_v(f_v)) + lambda_t L_det(h_t(f_t))

D decides what the fused loss may send back into a backbone, see `decoupling`. Which D the authors use is not known to
us; `RscMd.presets` has the likeliest one as "paper".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from rscmd_model.errors import UserError
from rscmd_model.methods.base import Features, check_share, choice, number
from rscmd_model.methods.decoupling import decouple
from rscmd_model.methods.rsc import Rsc, RscSettings

if TYPE_CHECKING:
    from rscmd_model.network.model import RscmdModel


@dataclass(frozen=True)
class RscMdSettings(RscSettings):
    """Settings of `RscMd` besides those of `Rsc`.

    Attributes:
        md: what of the fused loss reaches a backbone: "project", "map", "stop" or "off", see `decoupling`.
        md_from, md_until: the share of the training, 0 to 1, between which md holds; outside it md is off.
    """

    md: str = choice("project", "map", "stop", "off")
    md_from: float = number(0.0)
    md_until: float = number(1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teach == "head":
            raise UserError("teach=head keeps each modality's own gradient from its backbone: use rsc+teach=head")
        if self.schedule == "one" and self.md in ("project", "map"):
            raise UserError(
                f"md={self.md} compares the fused loss's gradient with the camera's own, which schedule=one leaves out "
                "of half of the batches: give md=stop or md=off, or schedule=all"
            )
        check_share("md", self.md_from, self.md_until)


class RscMd(Rsc):
    """RSC, and the fused loss's gradient decoupled at the features.

    Attributes:
        presets: "paper" is the likeliest reading of the paper, whose text and code were not at hand. Digests of it say
            that MD shall "fully eliminate inter-modality gradient coupling": of our ways "stop" alone does. They speak
            of auxiliary detection heads: a branch of its own for each modality, and nothing says that its head is
            lighter than the fused one's. All three are named, so that no change of our defaults changes the reading.
    """

    Settings = RscMdSettings
    takes_incomplete = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"md": "stop", "branch": "full", "rsc": "own"}}

    @property
    def decoupling(self) -> str:
        """The modality decoupling in force: md in its share of the training, "off" otherwise."""
        s = self.settings
        return s.md if self.training and s.md_from <= self.progress < s.md_until else "off"

    def split(
        self, model: RscmdModel, x: Tensor, features: dict[str, Features]
    ) -> tuple[dict[str, Features], dict[str, Features]]:
        """D on the way into the fusion, none on the way to a modality's own branch."""
        both = {m: decouple(f, self.decoupling) for m, f in features.items()}
        return {m: to_fuse for m, (to_fuse, _) in both.items()}, {m: alone for m, (_, alone) in both.items()}
