"""The data check: every file of a data set once, and all that is wrong with it. Writes nothing into its folder."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rscmd_model.datasets.inspection import Inspection, inspect_all, summary
from rscmd_model.datasets.near_copies import NEAR, near_copies, perceptual_hash
from rscmd_model.datasets.pairs import DataConfig, Listing, PairFiles, Problem, count_problem, list_pairs, split_hash
from rscmd_model.datasets.unused import Unused, find_unused, problems_of
from rscmd_model.errors import UserError

_SHOWN = 20  # unused files on the screen


@dataclass
class Report:
    """What the check found.

    Attributes:
        data: the data set.
        pairs: per split the complete pairs.
        boxes: per split and class name the boxes that a training would use.
        sizes: per split how often each "VISIBLE and THERMAL" size in px occurs.
        without_boxes: per split the pairs without any object.
        problems: everything that is wrong, in the order of splits and stems.
        unused: every file below the data's folders that is in no pair and not named by the listing's problems; those
            that somebody may have meant to be used are among `problems`, too.
        seconds: how long it took.
    """

    data: DataConfig
    pairs: dict[str, list[PairFiles]] = field(default_factory=dict)
    boxes: dict[str, Counter[str]] = field(default_factory=dict)
    sizes: dict[str, Counter[str]] = field(default_factory=dict)
    without_boxes: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unused: list[Unused] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: `pairs` per split, `boxes` per class name, `problems` as a list of {kind, file, text}."""
        classes = self.data.names.values()
        return {
            "data": self.data.name,
            "root": str(self.data.root),
            "description": self.data.resolved,
            "pairs": {split: len(found) for split, found in self.pairs.items()},
            "boxes": {name: sum(counts[name] for counts in self.boxes.values()) for name in classes},
            "boxes_per_split": {split: {name: c[name] for name in classes} for split, c in self.boxes.items()},
            "pairs_without_boxes": self.without_boxes,
            "sizes": {split: dict(sizes.most_common()) for split, sizes in self.sizes.items()},
            "split_hash": {split: split_hash(found) for split, found in self.pairs.items()},
            "problem_counts": dict(Counter(problem.kind for problem in self.problems).most_common()),
            "problems": [{"kind": p.kind, "file": str(p.file), "text": p.text} for p in self.problems],
            "unused": [{"file": str(u.file), "reason": u.reason} for u in self.unused],
            "seconds": round(self.seconds, 1),
        }

    def lines(self) -> list[str]:
        """The same for people."""
        lines = [f"{self.data.name} in {self.data.root}"]
        for split, found in self.pairs.items():
            published = dict(self.data.published).get(split)
            said = f" (published: {' or '.join(map(str, published))})" if published else ""
            counts = ", ".join(f"{name} {self.boxes[split][name]}" for name in self.data.names.values())
            sizes = self.sizes[split].most_common()
            more = f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""
            lines += [
                f"{split}: {len(found)} pairs{said}, {self.without_boxes[split]} of them without a box",
                f"  boxes: {counts}",
                f"  sizes, visible and thermal: {', '.join(f'{s} px ({n})' for s, n in sizes[:3]) or 'none'}{more}",
            ]
        lines += [f"unused: {u.file}: {u.reason}" for u in self.unused[:_SHOWN]]
        if len(self.unused) > _SHOWN:
            reasons = Counter("hidden" if u.reason == "hidden" else u.kind or "others" for u in self.unused)
            said = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
            lines.append(f"unused: {len(self.unused)} files in all ({said}); --json FILE lists them")
        lines += [f"problem: {line}" for line in summary(self.problems)] or ["no problems"]
        return lines


def check(data: DataConfig, *, near: int | None = NEAR, progress: Callable[[str], None] = lambda line: None) -> Report:
    """Look at every pair of every split; never stops at a fault.

    Args:
        data: the data set.
        near: bits of 64 in which a near copy's images may differ, or None not to look for near copies.
        progress: called now and then with a line to show.

    Raises:
        UserError: no split of the data set can be listed at all.
    """
    started = time.monotonic()
    report = Report(data)
    hashes: dict[str, np.ndarray] = {}
    unlisted: list[str] = []
    listings: dict[str, Listing] = {}
    for split in data.splits:
        try:
            listing = listings[split] = list_pairs(data, split)
        except UserError as error:  # the other splits are looked at all the same
            unlisted.append(str(error))
            listing = None
        found = list(listing.pairs) if listing else []
        report.pairs[split] = found
        report.boxes[split], report.sizes[split], report.without_boxes[split] = Counter(), Counter(), 0
        if listing is None:
            report.problems.append(Problem("no_split", data.root, f"{split}: {unlisted[-1]}"))
        else:
            report.problems += listing.problems
            if problem := count_problem(data, split, len(found)):
                report.problems.append(problem)
        hashes[split] = _look(report, split, found, near is not None, progress)
        old = dict(data.old_boxes).get(split)
        if old is not None and old == sum(report.boxes[split].values()):
            text = f"{split} has {old} boxes, as many as before the labels were corrected: download them anew"
            report.problems.append(Problem("old_labels", data.root, text))
    if len(unlisted) == len(data.splits):
        raise UserError(f"{data.name}: nothing to check: {'; '.join(unlisted)}")
    report.unused = find_unused(data, listings)
    report.problems += problems_of(report.unused)
    if near is not None and "train" in hashes:
        for split in data.splits:
            if split != "train":
                report.problems += _leaks(report, split, hashes, near)
    report.seconds = time.monotonic() - started
    return report


def _look(
    report: Report, split: str, pairs: Sequence[PairFiles], hashing: bool, progress: Callable[[str], None]
) -> np.ndarray:
    """Inspect the pairs of a split into the report; returns (N, 2) uint64 hashes, 0 for what cannot be read."""
    hashes = np.zeros((len(pairs), 2), np.uint64)
    told = time.monotonic()
    for number, seen in enumerate(inspect_all(report.data, pairs)):
        _add(report, split, seen)
        if hashing and seen.visible is not None and seen.thermal is not None:
            hashes[number] = perceptual_hash(seen.visible), perceptual_hash(seen.thermal)
        if time.monotonic() - told > 10:
            told = time.monotonic()
            progress(f"{split}: {number + 1} of {len(pairs)} pairs")
    return hashes


def _add(report: Report, split: str, seen: Inspection) -> None:
    report.problems += seen.problems
    report.boxes[split].update(report.data.names[int(label)] for label in seen.labels[:, 0])
    report.without_boxes[split] += not len(seen.labels)
    if (0, 0) not in (seen.visible_size, seen.thermal_size):
        (w, h), (tw, th) = seen.visible_size, seen.thermal_size
        report.sizes[split][f"{w}x{h}" if (w, h) == (tw, th) else f"{w}x{h} and {tw}x{th}"] += 1


def _leaks(report: Report, split: str, hashes: dict[str, np.ndarray], near: int) -> list[Problem]:
    """A problem for each pair of `split` whose near copy is in train; unreadable pairs (hash 0) are left out."""
    train, other = (np.flatnonzero(hashes[s].any(axis=1)) for s in ("train", split))
    problems = []
    for mine, theirs, bits in near_copies(hashes["train"][train], hashes[split][other], near):
        pair, copy = report.pairs[split][other[mine]], report.pairs["train"][train[theirs]]
        text = f"{split} {pair.visible} is nearly train {copy.visible} ({bits} of 64 bits differ)"
        problems.append(Problem("near_copy", pair.visible, text))
    return problems


def show(line: str) -> None:
    """Progress goes to stderr, so that stdout holds the result alone."""
    print(line, file=sys.stderr, flush=True)
