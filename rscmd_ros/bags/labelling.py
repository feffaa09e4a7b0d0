"""From a recorded bag to a labelled set that training reads: the flow of `label_bag`.

A first pass (`collecting`) reads the bag, asks the model, and writes a journal with its answers and the pictures of the
pairs that go into the set. A second pass (`tracked_labels`), over the journal alone, follows the objects and makes the
labels. Both write into OUT.partial, which becomes OUT when it is whole; a run that was broken off goes on there.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rscmd_model.errors import UserError, quoted
from rscmd_model.files import lock_folder, sha256_of, whole_file, write_json
from rscmd_model.imaging.registration import Registration, load_registration
from rscmd_model.labelling.label_set import DESCRIPTION, KINDS, LabelledPair, LabelSet, link_or_copy, stem_of
from rscmd_model.labelling.pseudo_labels import Limits
from rscmd_model.text import read_json
from rscmd_ros.bags.collecting import collect, in_order
from rscmd_ros.bags.evaluation import read_model_header
from rscmd_ros.bags.job import BATCH
from rscmd_ros.bags.journal import JOURNAL, Journal
from rscmd_ros.bags.pairs import pair_up
from rscmd_ros.bags.reader import Bag, open_bag
from rscmd_ros.bags.sampling import Plan, Sampling, make_plan
from rscmd_ros.bags.topics import IMAGE, THERMAL_TOPIC, VISIBLE_TOPIC
from rscmd_ros.bags.tracked_labels import Counts, tracked_labels
from rscmd_ros.node.pairing_options import PairingOptions

if TYPE_CHECKING:
    from rscmd_model.network.model_file import ModelHeader

RECORD = "label_bag.json"
"""How a set was made: settings, limits and counts."""
_OURS = {RECORD, JOURNAL, DESCRIPTION, ".lock", *KINDS}
_MEANT = {"recording": "of another recording", "model": "with another model"}


@dataclass(frozen=True)
class LabelJob:
    """What to label and how.

    Attributes:
        bag: rosbag2 folder, or a .mcap or .db3 file.
        model: the model's file.
        out: folder of the set.
        registration: registration.yaml in place of the model's own.
        visible_topic: of the visible images.
        thermal_topic: of the thermal images.
        options: of pairing.
        sampling: which pairs.
        limits: of the scores.
        png: visible pictures are written as PNG, and not as JPEG.
        device: auto, cpu or cuda:N.
        batch: pairs that go through the network together.
    """

    bag: Path
    model: Path
    out: Path
    registration: Path | None = None
    visible_topic: str = VISIBLE_TOPIC
    thermal_topic: str = THERMAL_TOPIC
    options: PairingOptions = field(default_factory=PairingOptions)
    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)
    png: bool = False
    device: str = "auto"
    batch: int = BATCH

    @property
    def topics(self) -> dict[str, str]:
        """By stream."""
        return {"visible": self.visible_topic, "thermal": self.thermal_topic}

    @property
    def partial(self) -> Path:
        """Where the set grows."""
        return self.out.with_name(self.out.name + ".partial")


@dataclass(frozen=True)
class Labelled:
    """What a labelling gave.

    Attributes:
        out: folder of the set.
        counts: of pairs and labels.
        persons: pairs whose labels are a person's and were left as they are.
        limits: of the scores.
        notes: on the bag.
        weights: name of the checkpoint of the model's family and scale, for the next command.
    """

    out: Path
    counts: Counts
    persons: int
    limits: Limits
    notes: Sequence[str]
    weights: str

    def lines(self) -> list[str]:
        """As lines of text for a terminal."""
        counts, limits = self.counts, self.limits
        faults = f", {counts.faults} with a picture that cannot be decoded" if counts.faults else ""
        persons = f"; {self.persons} of a person, left as they are" if self.persons else ""
        kept = f"{counts.kept['train']} train, {counts.kept['val']} val"
        lines = [
            f"pairs answered {counts.pairs}{faults}; in the set {kept}{persons}; near-copies left out {counts.copies}",
            f"labels: {_listed(counts.labels)}; {counts.followed} of them by their track",
            f"unsure regions: {_listed(counts.unsure)}",
        ]
        if counts.seen:
            lines.append(
                f"labels seen by visible alone {counts.seen['visible']}, by thermal alone {counts.seen['thermal']}, by "
                f"both {counts.seen['both']}, by neither alone {counts.seen['neither']}"
            )
        of_class = "".join(f", {name} {value:g}" for name, value in limits.of_class.items())
        lines += [
            f"tracks {counts.tracks}; score limits: sure {limits.sure:g}{of_class}; followed {limits.followed:g}; "
            f"unsure {limits.unsure:g}",
            *(f"note: {note}" for note in self.notes),
            f"set: {self.out}",
            f"next: python -m rscmd_model.train --data {self.out / DESCRIPTION} --weights {self.weights}",
        ]
        return lines


def label_bag(job: LabelJob, *, force: bool, threads: int | None, progress: Callable[[str], None]) -> Labelled:
    """Make a labelled set of a bag.

    Args:
        job: what to label and how.
        force: replace the model's labels of a set that is there; a person's labels stay, with their pictures.
        threads: of torch; None leaves its setting.
        progress: called with lines that tell how far it is.

    Raises:
        UserError: the bag, the model or the registration cannot be used, something is there already, a run with other
            settings was broken off, or nothing was found. `out` is then as it was.
    """
    _mend(job.out)
    _refuse_existing(job.out, force)
    with open_bag(job.bag) as bag:
        bag.require(job.visible_topic, IMAGE, "--visible-topic")
        bag.require(job.thermal_topic, IMAGE, "--thermal-topic")
        header = read_model_header(job.model)
        registration = load_registration(job.registration) if job.registration else header.registration
        progress(f"pairing the frames of {job.bag}")
        pairing = pair_up(bag, job.topics, job.options, header.thermal)
        if not pairing.pairs:
            raise UserError(_never(job, pairing.places))
        plan = make_plan(pairing.pairs, job.sampling)
        _check_sizes(bag, job, plan, header, registration)
        settings = _settings(job, plan, registration)
        persons = _persons(job.out, settings, header.names)
        with lock_folder(job.partial, "labelling"):
            _begin(job, settings)
            to, journal = LabelSet(job.partial, job.png), Journal(job.partial)
            kept, done = journal.resume(job.batch, len(plan.pairs))
            to.tidy({stem_of(entry.stamp): str(entry.kept) for entry in kept})
            if done:
                progress(f"going on after {done} of {len(plan.pairs)} pairs")
            if done < len(plan.pairs):
                predictor = _predictor(job, registration, threads)
                collect(
                    bag,
                    job.topics,
                    plan,
                    predictor,
                    journal,
                    to,
                    kept,
                    done=done,
                    batch=job.batch,
                    progress=progress,
                )
            notes = bag.notes()
            progress("following the objects")
            counts = Counts()
            for entry, sidecar in tracked_labels(journal.entries(), header.names, job.limits, counts):
                to.write_labels(str(entry.kept), stem_of(entry.stamp), sidecar)
            if not counts.labels and not persons:
                raise UserError(_nothing(job, counts))
            to.write_description(header.names, header.thermal, registration)
            persons = _persons(job.out, settings, header.names)  # they may have worked in the meantime
            for pair in persons:
                to.take(pair)
            record = {"settings": settings, "limits": dataclasses.asdict(job.limits), "counts": counts.to_dict()}
            write_json(job.partial / RECORD, {**record, "bag": job.bag.name, "model": job.model.name})
            _put_in_place(job)
    weights = f"{header.config.family.split('_')[0]}{header.config.scale}.pt"
    return Labelled(job.out, counts, len(persons), job.limits, notes, weights)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _refuse_existing(out: Path, force: bool) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} exists and is not a folder; choose another --out")
    if not out.exists():
        return
    if not (out / RECORD).is_file():
        raise UserError(f"{out} exists and is no set of label_bag; choose another --out")
    if not force:
        raise UserError(
            f"{out} exists already: take in corrections with --corrected FILE, replace the model's labels with --force "
            "(a person's stay), or choose another --out"
        )


def _never(job: LabelJob, places: Mapping[str, Mapping[int, int]]) -> str:
    """Why no frame of a bag has a partner, with how far apart the nearest two stamps are."""
    ends = {stream: (min(stamps), max(stamps)) for stream, stamps in places.items() if stamps}
    apart = ""
    if len(ends) == 2:
        late = max(ends["thermal"][0] - ends["visible"][1], ends["visible"][0] - ends["thermal"][1])
        if late > 0:
            apart = f": the stamps of one camera begin {late / 1e9:.3g} s after the other's end"
    return (
        f"no visible and thermal frame of {job.bag} belong together, with stamps at most {job.options.slop_ms:g} ms "
        f"apart{apart}; give --thermal-offset-ms, a larger --slop-ms, or set the clocks of the cameras"
    )


def _check_sizes(bag: Bag, job: LabelJob, plan: Plan, header: ModelHeader, registration: Registration | None) -> None:
    """Raises `UserError` where no pair can be decoded, or the registration is not for the first that can."""
    fault = ""
    with closing(in_order(bag, job.topics, plan.pairs, header.thermal)) as pictures:
        for one in pictures:
            if one.visible is not None and one.thermal is not None:
                if registration is not None:
                    registration.matrix(one.thermal.shape[::-1], one.visible.shape[1::-1])
                return
            fault = fault or one.fault
    raise UserError(f"no pair of {job.bag} can be decoded: {fault}")


def _settings(job: LabelJob, plan: Plan, registration: Registration | None) -> dict[str, Any]:
    """All that the journal and the choice of pairs depend on, in plain JSON types."""
    try:
        model = sha256_of(job.model)
    except OSError as error:
        raise UserError(f"cannot read {job.model}: {error.strerror}") from None
    return {
        "recording": plan.digest,
        "model": model,
        "registration": registration.to_dict() if registration else None,
        "visible_topic": job.visible_topic,
        "thermal_topic": job.thermal_topic,
        **dataclasses.asdict(job.options),
        **dataclasses.asdict(job.sampling),
        "png": job.png,
        "device": job.device,
        "batch": job.batch,
    }


def _begin(job: LabelJob, settings: Mapping[str, Any]) -> None:
    """Make sure that what lies in the folder of the set in the making is of these settings, or begin there."""
    record = job.partial / RECORD
    if record.exists():
        begun = _recorded(record)
        for name, value in settings.items():
            if begun.get(name) != value:
                what = _MEANT.get(name) or f"with {name} {quoted(begun.get(name))}, and it is {quoted(value)} now"
                raise UserError(
                    f"{job.partial} was begun {what}: call again as before to go on there, or remove it to begin anew"
                )
        return
    if strange := sorted({path.name for path in job.partial.glob("[!.]*")} - _OURS):
        raise UserError(
            f"{job.partial} holds something that is no set of label_bag ({strange[0]}); choose another --out"
        )
    if job.out.exists() and _recorded(job.out / RECORD) == settings:
        _seed(job)
    write_json(record, {"settings": settings})


def _seed(job: LabelJob) -> None:
    """Begin with the journal and the pictures of the set that is there, which has the same settings."""
    for kind in ("visible", "thermal"):
        for file in sorted((job.out / kind).rglob("*.*")):
            if file.is_file() and not file.name.startswith("."):
                link_or_copy(file, job.partial / file.relative_to(job.out))
    if (job.out / JOURNAL).exists():
        with whole_file(job.partial / JOURNAL) as aside:  # no second name: it may be cut
            shutil.copyfile(job.out / JOURNAL, aside)


def _recorded(file: Path) -> dict[str, Any]:
    """The settings of a `RECORD`."""
    content = read_json(file)
    settings = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise UserError(f"{file} is no record of label_bag: choose another --out")
    return settings


def _persons(out: Path, settings: Mapping[str, Any], names: Mapping[int, str]) -> list[LabelledPair]:
    """The pairs of the set that is there whose labels are a person's.

    Raises:
        UserError: they do not go with the new set: it has other classes, or divides another recording or divides it
            elsewhere.
    """
    if not out.exists():
        return []
    found = [pair for pair in LabelSet(out).pairs() if pair.touched]
    if not found:
        return []
    begun = _recorded(out / RECORD)
    changed = [name for name in ("recording", "val_share", "gap") if begun.get(name) != settings[name]]
    if changed:
        what = "of another recording" if changed[0] == "recording" else f"with {changed[0]} {begun.get(changed[0])}"
        raise UserError(
            f"{out} has {len(found)} pairs with labels of a person and was made {what}: keep to that, or choose "
            "another --out"
        )
    return found


def _predictor(job: LabelJob, registration: Registration | None, threads: int | None) -> Any:
    # Not before the bag is known good: torch and a model take seconds to load.
    from rscmd_model.inference.predictor import Predictor

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    predictor = Predictor(job.model, device=job.device, registration=registration)
    predictor.warm_up()
    return predictor


def _nothing(job: LabelJob, counts: Counts) -> str:
    best = f"the best box of {counts.pairs} pairs is a {counts.best_class} of {counts.best:.2f}" if counts.best else ""
    found = best or f"not a single box in {counts.pairs} pairs"
    return (
        f"nothing to learn in {job.bag}: no track reaches the score {job.limits.sure:g} ({found}); look at the "
        f"pictures in {job.partial} and at the registration, give a lower --sure (the answers are kept, so it takes "
        "seconds), or a model that knows these cameras"
    )


def _put_in_place(job: LabelJob) -> None:
    """Give the set its name, in place of an earlier one; what else lies in that one is taken along."""
    try:
        (job.partial / ".lock").unlink(missing_ok=True)
        if job.out.exists():
            for path in sorted(job.out.iterdir()):
                if path.name not in _OURS:
                    path.rename(job.partial / path.name)
            job.out.rename(_old(job.out))
        job.partial.rename(job.out)
        if _old(job.out).exists():
            shutil.rmtree(_old(job.out))
    except OSError as error:
        raise UserError(f"cannot put {job.partial} in the place of {job.out}: {error.strerror or error}") from None


def _mend(out: Path) -> None:
    """Finish what `_put_in_place` began, if it was broken off."""
    old = _old(out)
    if not old.is_dir() or not (old / RECORD).is_file():
        return
    if out.exists():
        shutil.rmtree(old)
    else:
        old.rename(out)


def _old(out: Path) -> Path:
    return out.with_name(out.name + ".old")
