"""What is told of pairs before they are trained on or scored: lines for people, in logs and on terminals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from rscmd_model.datasets.pairs import DataConfig, Listing, PairFiles, pictures
from rscmd_model.imaging.registration import Registration
from rscmd_model.imaging.thermal import ThermalContract


def reading_lines(data: DataConfig, thermal: ThermalContract, registration: Registration | None) -> list[str]:
    """Lines for people that say by what a finished model reads these pairs, where that is to be told.

    Args:
        data: the data set.
        thermal: the contract that is used, the model's.
        registration: that is used, the data's or else the model's.
    """
    lines = []
    given, used = (replace(contract, palette_ok=False) for contract in (data.thermal_contract, thermal))
    if given != used:
        lines.append(
            f"thermal contract: of the model, {used.to_dict()}; that of the data, {given.to_dict()}, is not used"
        )
    if registration is not None:
        lines.append(
            f"registration: {'of the data' if data.registration else 'of the model, since the data have none'}"
        )
    return lines


def left_out_line(split: str, listing: Listing) -> str:
    """How many pairs of a split are listed and not used, since nobody has labelled them, on one line; "" for none."""
    problems = [problem for problem in listing.problems if problem.kind == "unlabelled"]
    if not problems:
        return ""
    return f"{split}: {len(problems)} pairs are left out, since nobody has labelled them, first: {problems[0].text}"


def trained_on_line(split: str, scored: Sequence[PairFiles], trained: Iterable[PairFiles]) -> str:
    """How many pairs of a split that is scored are trained on as well, on one line; "" for none."""
    known = pictures(trained)
    count = sum(bool(pictures([pair]) & known) for pair in scored)
    if not count:
        return ""
    return f"{split}: {count} of the {len(scored)} scored pairs are in train: their score says nothing of new pictures"
