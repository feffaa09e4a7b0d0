"""Files that put a labelled set before a person in CVAT or Label Studio, with the boxes that stand; see docs/datasets.

CVAT gets the XML of "CVAT for images 1.1" with the score of each box, and the labels of its task as JSON. Label Studio
gets tasks whose boxes are predictions, and its labelling configuration. In both, doubtful regions are boxes of the
label `unsure`, to be relabelled, deleted or left. `datasets/cvat.py` and `label_studio.py` read the same boxes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

import cv2

from rscmd_model.datasets.sidecars import Found
from rscmd_model.errors import UserError
from rscmd_model.files import whole_file, write_json
from rscmd_model.imaging.draw import colour
from rscmd_model.imaging.images import lay_over, read_thermal
from rscmd_model.imaging.registration import Registration
from rscmd_model.imaging.thermal import ThermalContract
from rscmd_model.labelling.label_set import SPLITS
from rscmd_model.labelling.standing import Standing, pixel_box, standing

UNSURE = "unsure"
"""The label of doubtful regions."""
VIEW = "thermal_view"
"""Folder of the set with thermal pictures to look at: 8 bit, in the pixels of the visible ones."""
MADE_WITH = "made_with.json"
"""File in `VIEW` that says by which thermal contract and registration its pictures were made."""
_GREY = "#808080"
_SCORE = "score"
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Picture:
    """A pair as a tool shows it.

    Attributes:
        visible: path of the picture that the boxes belong to, from the folder of the set, with "/" between folders.
        thermal: the same of the one to look at beside it.
        size: (width, height) of the visible picture, px.
        labels: the objects.
        unsure: doubtful regions.
    """

    visible: str
    thermal: str
    size: tuple[int, int]
    labels: tuple[Found, ...] = ()
    unsure: tuple[Found, ...] = ()


def write_exports(
    folder: Path,
    names: Mapping[int, str],
    contract: ThermalContract,
    registration: Registration | None,
    model: str = "",
    called: str | None = None,
) -> list[Path]:
    """Write the files for both tools, of all splits, as the set stands in its folder.

    A picture in `VIEW` is made anew where the thermal picture is newer, and all are where they were made with another
    contract or registration.

    Args:
        folder: of the set: visible/, thermal/, labels/ and sidecars/ with the splits below each.
        names: class names by number.
        contract: of the thermal pictures.
        registration: where thermal pixels lie in the visible pictures; None: both show the same view.
        model: what the boxes are from, for people to read.
        called: name that the folder will have, if it is another one.

    Returns:
        the files, without the pictures in `VIEW`.

    Raises:
        UserError: the set cannot be read, a file not written, or a class is called `UNSURE`.
    """
    refuse_unsure(names)
    cvat, studio = folder / "for_cvat", folder / "for_label_studio"
    written = [cvat / "labels.json", studio / "config.xml"]
    write_cvat_labels(written[0], names)
    write_label_studio_config(written[1], names)
    made_with = {
        "thermal_contract": contract.to_dict(),
        "registration": None if registration is None else registration.to_dict(),
    }
    known = folder / VIEW / MADE_WITH
    anew = _said(known) != made_with
    if anew:
        _forget(known)  # until all are made: one that was broken off would leave views of both kinds
    for split in SPLITS:
        if not (folder / "visible" / split).is_dir():
            continue
        files = cvat / f"{split}.xml", studio / f"{split}.json"
        pictures = []
        for pair in standing(folder, split, names):
            view = _write_view(folder, pair, contract, registration, anew)
            visible = pair.visible.relative_to(folder).as_posix()
            pictures.append(Picture(visible, view, pair.size, pair.labels, pair.unsure))
        write_cvat(files[0], pictures, names)
        where = folder.resolve().name if called is None else called
        write_label_studio(files[1], pictures, names, where, model)
        written += files
    write_json(known, made_with)
    return written


def write_cvat(file: Path, pictures: Iterable[Picture], names: Mapping[int, str]) -> None:
    """Write annotations that CVAT takes for a task with these pictures: it goes by their names without suffix.

    Args:
        file: the XML to write.
        pictures: in order of their names.
        names: class names by number.

    Raises:
        UserError: it cannot be written, or a class is called `UNSURE`.
    """
    labels = []
    for label in _labels(names):
        fields = "".join(f"<{key}>{escape(str(label[key]))}</{key}>" for key in ("name", "color", "type"))
        (score,) = label["attributes"]
        text = f"<name>{score['name']}</name><mutable>{score['mutable']}</mutable><input_type>text</input_type>"
        text += "<default_value></default_value><values></values>"
        labels.append(f"<label>{fields}<attributes><attribute>{text}</attribute></attributes></label>\n")
    with whole_file(file) as aside, aside.open("w", encoding="utf-8") as out:
        out.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        out.write(f"<meta><task><labels>\n{''.join(labels)}</labels></task></meta>\n")
        for number, picture in enumerate(pictures):
            name, (width, height) = PurePosixPath(picture.visible).name, picture.size
            out.write(f'<image id="{number}" name={quoteattr(name)} width="{width}" height="{height}">\n')
            for shown, box, found in _boxes(picture, names):
                edges = " ".join(f'{key}="{value:.2f}"' for key, value in zip(("xtl", "ytl", "xbr", "ybr"), box))
                out.write(f'<box label={quoteattr(shown)} source="file" occluded="0" {edges} z_order="0">')
                out.write(f'<attribute name="{_SCORE}">{found.score:.2f}</attribute></box>\n')
            out.write("</image>\n")
        out.write("</annotations>\n")


def write_cvat_labels(file: Path, names: Mapping[int, str]) -> None:
    """Write the labels of a CVAT task, for the tab "Raw" of its label constructor.

    Args:
        file: the JSON to write.
        names: class names by number.

    Raises:
        UserError: as `write_cvat`.
    """
    with whole_file(file) as aside:
        aside.write_text(json.dumps(_labels(names), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_label_studio(
    file: Path, pictures: Iterable[Picture], names: Mapping[int, str], folder: str, model: str = ""
) -> None:
    """Write a task for each pair, whose boxes are predictions.

    Args:
        file: the JSON to write.
        pictures: of the tasks.
        names: class names by number.
        folder: path of the set below Label Studio's document root, whose files it serves.
        model: what the boxes are from.

    Raises:
        UserError: as `write_cvat`.
    """
    refuse_unsure(names)
    before = "[\n"
    with whole_file(file) as aside, aside.open("w", encoding="utf-8") as out:
        for picture in pictures:
            out.write(before + json.dumps(_task(picture, names, folder, model), ensure_ascii=False))
            before = ",\n"
        out.write("\n]\n" if before == ",\n" else "[]\n")


def write_label_studio_config(file: Path, names: Mapping[int, str]) -> None:
    """Write the configuration of a Label Studio project: boxes on the visible picture, and the thermal one beside it.

    Args:
        file: the XML to write.
        names: class names by number.

    Raises:
        UserError: as `write_cvat`.
    """
    lines = ['<View style="display: flex; flex-wrap: wrap">']
    for camera in ("visible", "thermal"):
        image = f'<Image name="{camera}" value="${camera}" zoom="true" zoomControl="true"/>'
        lines.append(f'  <View style="width: 50%"><Header value="{camera}"/>{image}</View>')
    lines.append('  <RectangleLabels name="label" toName="visible" canRotate="false">')
    for label in _labels(names):
        lines.append(f'    <Label value={quoteattr(label["name"])} background="{label["color"]}"/>')
    lines += ["  </RectangleLabels>", "</View>"]
    with whole_file(file) as aside:
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8")


def refuse_unsure(names: Mapping[int, str]) -> None:
    """Raises `UserError` where a class has the name that doubtful regions have."""
    if UNSURE in names.values():
        raise UserError(f"a class is called '{UNSURE}', which is the label of doubtful regions: give it another name")


def _labels(names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The labels as CVAT describes them, doubtful regions last."""
    refuse_unsure(names)
    score = {"name": _SCORE, "mutable": False, "input_type": "text", "default_value": "", "values": [""]}
    hues = [(name, "#{2:02x}{1:02x}{0:02x}".format(*colour(number))) for number, name in names.items()]
    return [
        {"name": name, "color": hue, "type": "rectangle", "attributes": [score]}
        for name, hue in [*hues, (UNSURE, _GREY)]
    ]


def _boxes(
    picture: Picture, names: Mapping[int, str]
) -> Iterator[tuple[str, tuple[float, float, float, float], Found]]:
    """Label, box in px and what is known, of the objects and then the doubtful regions."""
    for found in picture.labels:
        label, box = pixel_box(found, picture.size)
        yield names[label], box, found
    for found in picture.unsure:
        yield UNSURE, pixel_box(found, picture.size)[1], found


def _task(picture: Picture, names: Mapping[int, str], folder: str, model: str) -> dict[str, Any]:
    """A pair as Label Studio reads it; its numbers are percent of the picture."""
    width, height = picture.size
    result: list[dict[str, Any]] = []
    for label, (left, top, right, bottom), found in _boxes(picture, names):
        value = {
            "x": left / width * 100,
            "y": top / height * 100,
            "width": (right - left) / width * 100,
            "height": (bottom - top) / height * 100,
        }
        result.append(
            {
                "id": f"{PurePosixPath(picture.visible).stem}-{len(result)}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "visible",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": round(found.score, 4),
                "value": {**{k: round(v, 6) for k, v in value.items()}, "rotation": 0, "rectanglelabels": [label]},
            }
        )
    scores = [found.score for found in (*picture.labels, *picture.unsure)]
    prediction = {"model_version": model or "rscmd", "score": round(sum(scores) / max(len(scores), 1), 4)}
    data = {
        camera: f"/data/local-files/?d={quote(f'{folder}/{path}')}"
        for camera, path in (("visible", picture.visible), ("thermal", picture.thermal))
    }
    return {"data": data, "predictions": [{**prediction, "result": result}]}


def _said(file: Path) -> Any:
    """What stands in a file of `MADE_WITH`; None where it is not there or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _forget(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {file}: {error.strerror}") from None


def _write_view(
    folder: Path, pair: Standing, contract: ThermalContract, registration: Registration | None, anew: bool
) -> str:
    """Write the thermal picture as a person looks at it, unless it is there: browsers show 16 bits as black.

    Args:
        folder: of the set.
        pair: whose picture.
        contract, registration: as for `write_exports`.
        anew: write it even if it is there.

    Returns:
        its path from the folder.
    """
    name = f"{VIEW}/{pair.split}/{pair.stem}.jpg"
    file = folder / name
    if anew or not file.exists() or file.stat().st_mtime < pair.thermal.stat().st_mtime:
        plane = lay_over(contract.apply(read_thermal(pair.thermal, contract)), pair.size, registration)
        _, data = cv2.imencode(".jpg", plane, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        with whole_file(file) as aside:
            aside.write_bytes(data.tobytes())
    return name
