"""A few pairs of an earlier site among those of a new one, so that a training sees what is not to be forgotten.

    replay: {data: ../first/data.yaml, pairs: 32}

in a data.yaml. The pairs come from the earlier set's split `train` and go into `train` alone. Which ones is decided by
a hash of their stems: the same on every machine, and those of a smaller number are among those of a larger one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rscmd_model.datasets.pairs import DataConfig, Labels, Listing, PairFiles, Place, Reader, pictures
from rscmd_model.errors import UserError, quoted
from rscmd_model.text import is_path, utf_8

PAIRS = 32
_SPLIT = "train"
_MARK = "replay:"  # before the stem of a pair that is replayed, whose name the new site may have, too


@dataclass(frozen=True)
class Replayed:
    """The pairs of a reader, and in `train` some of another one (`Reader`).

    Attributes:
        reader: of the new site.
        earlier: of the earlier one.
        count: how many of its pairs.
        name: of the earlier set, for messages.
        splits: of the new site, none of whose pictures may come from the earlier one.
    """

    reader: Reader
    earlier: Reader
    count: int
    name: str
    splits: tuple[str, ...] = (_SPLIT,)

    def places(self) -> tuple[Place, ...]:
        """The folders of the new site; of the other one most images are left aside on purpose."""
        return self.reader.places()

    def unlisted(self) -> tuple[str, bool]:
        """As the new site's layout has it."""
        return self.reader.unlisted()

    def pairs(self, split: str) -> Listing:
        """The pairs of the new site, and of `train` those that are replayed.

        Raises:
            UserError: as either layout; or the earlier set has fewer pairs, or its pairs are in a split already.
        """
        own = self.reader.pairs(split)
        if split != _SPLIT:
            return own
        there = self.earlier.pairs(_SPLIT)
        if len(there.pairs) < self.count:
            raise UserError(
                f"replay: {self.name} has {len(there.pairs)} whole pairs in {_SPLIT}, and {self.count} are wanted: "
                "give a smaller number"
            )
        chosen = sorted(there.pairs, key=lambda pair: hashlib.sha256(utf_8(pair.stem)).digest())[: self.count]
        for name in self.splits:
            try:
                known = pictures(self.reader.pairs(name).pairs)
            except UserError:  # told where the split is wanted
                continue
            if twice := next((pair for pair in chosen if pictures([pair]) & known), None):
                raise UserError(f"replay: {twice.visible} is in the data already ({name}): give those of another site")
        marked = [replace(pair, stem=f"{_MARK}{pair.stem}") for pair in chosen]
        together = sorted((*own.pairs, *marked), key=lambda pair: pair.stem)
        return Listing(tuple(together), (*own.problems, *there.problems))

    def labels(self, pair: PairFiles, names: Mapping[int, str]) -> Labels:
        """As the layout has them that the pair is of."""
        if not pair.stem.startswith(_MARK):
            return self.reader.labels(pair, names)
        return self.earlier.labels(replace(pair, stem=pair.stem.removeprefix(_MARK)), names)


def replay_of(config: DataConfig, given: Any, base: Path, where: str) -> tuple[DataConfig, dict[str, Any]]:
    """Mix pairs of an earlier site into a data set.

    Args:
        config: the new site.
        given: the value of the key `replay`.
        base: what a relative path in it starts from.
        where: for messages.

    Returns:
        the data set, and the key's value with an absolute path.

    Raises:
        UserError: the value has another form, the earlier data cannot be opened, or they differ from the new ones in
            what holds for a whole data set: classes, thermal contract, registration.
    """
    from rscmd_model.datasets.opening import open_data  # here, since that reads descriptions by the caller of this

    form = f"{where}: replay has the form {{data: ../first/data.yaml, pairs: {PAIRS}}}"
    if not isinstance(given, dict) or set(given) != {"data", "pairs"} or not isinstance(given["data"], str):
        raise UserError(form)
    if not str(given["pairs"]).isdecimal() or not int(given["pairs"]):
        raise UserError(f"{form}; pairs is a number from 1, got {quoted(given['pairs'])}")
    spec = given["data"]
    inline = spec.lstrip().startswith("{")
    if "\0" in spec or not (inline or is_path(spec)):
        raise UserError(form)
    try:
        earlier = open_data(spec if inline else str((base / spec).resolve()))
    except RecursionError:
        raise UserError(f"{where}: replay leads back to the same data") from None
    for what, ours, theirs in (
        ("names", list(config.names.values()), list(earlier.names.values())),
        ("thermal_contract", config.thermal_contract.to_dict(), earlier.thermal_contract.to_dict()),
        ("registration", config.registration, earlier.registration),
    ):
        if ours != theirs:
            raise UserError(
                f"replay: {earlier.name} and {config.name} have another {what} each, and their pairs are read by one: "
                "make them the same"
            )
    if _SPLIT not in earlier.splits:
        raise UserError(f"replay: {earlier.name} has no split {_SPLIT!r}; it has {', '.join(earlier.splits)}")
    reader = Replayed(config.reader, earlier.reader, int(given["pairs"]), earlier.name, config.splits)
    # What was published of the whole splits does not hold for these.
    mixed = replace(config, reader=reader, published=(), old_boxes=())
    return mixed, {"data": earlier.spec, "pairs": reader.count}
