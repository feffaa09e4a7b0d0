"""A labelled set before a person: the files for labelling tools, the contact sheet, and what comes back corrected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import find_pairs
from rscmd_model.datasets.sheet import contact_sheet
from rscmd_model.errors import UserError
from rscmd_model.files import lock_folder, whole_file
from rscmd_model.labelling.corrections import correct
from rscmd_model.labelling.label_set import DESCRIPTION, SPLITS
from rscmd_model.labelling.label_tools import VIEW, write_exports
from rscmd_model.labelling.standing import standing

SHEET = "sheet.jpg"
SHOWN = (SHEET, VIEW, "for_cvat", "for_label_studio")
"""What `show` writes into the folder of a set."""
_PAIRS = 12


def show(folder: Path, model: str = "", called: str | None = None) -> None:
    """Write the files for CVAT and Label Studio and the contact sheet, as the set stands now.

    Args:
        folder: of the set.
        model: what the boxes are from, for people to read.
        called: name that the folder will have, if it is another one.

    Raises:
        UserError: the set cannot be read, or a file not written.
    """
    data = open_data(folder / DESCRIPTION)
    write_exports(folder, data.names, data.thermal_contract, data.registration, model, called)
    pairs = {split: find_pairs(data, split) for split in data.splits}
    with whole_file(folder / SHEET) as aside:
        aside.write_bytes(cv2.imencode(".jpg", contact_sheet(data, pairs, _PAIRS, seed=0))[1].tobytes())


def take_corrections(folder: Path, files: Sequence[Path]) -> list[str]:
    """Take over what a person corrected in labelling tools, and show the set anew.

    Args:
        folder: of the set.
        files: from CVAT, Label Studio or COCO; a later one goes before an earlier one.

    Returns:
        a line of text for each file.

    Raises:
        UserError: the set is not there, or a file cannot be used; those before it are taken over then.
    """
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} is no labelled set, so there is nothing to correct: make one with label_bag first")
    with lock_folder(folder, "labelling"):
        data = open_data(folder / DESCRIPTION)
        for split in SPLITS:  # what could not be shown afterwards is told before anything is written
            for _ in standing(folder, split, data.names):
                pass
        lines = [f"{file}: {correct(folder, file, data.names).line()}" for file in files]
        show(folder)
    return lines
