"""From a recorded bag to a labelled set that training reads: the flow of `label_bag`.

A first pass (`collecting`) reads the bag, asks the model, and writes a journal with its answers and the pictures of the
pairs that go into the set. A second pass (`tracked_labels`), over the journal alone, follows the objects and makes the
labels. Both write into OUT.partial, which becomes OUT when it is whole; a run that was broken off goes on there.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rscmd_model.datasets.sidecars import Sidecar, read_sidecar
from rscmd_model.errors import UserError
from rscmd_model.files import lock_folder, sha256_of, write_json
from rscmd_model.imaging.registration import Registration, load_registration
from rscmd_model.labelling.label_set import DESCRIPTION, LabelledPair, LabelSet, stem_of
from rscmd_model.labelling.showing import SHEET, show
from rscmd_model.options import FEW_PAIRS
from rscmd_ros.bags.collecting import collect, in_order
from rscmd_ros.bags.evaluation import read_model_header
from rscmd_ros.bags.files import stamp_of
from rscmd_ros.bags.job import BATCH
from rscmd_ros.bags.journal import Journal
from rscmd_ros.bags.pairs import pair_up
from rscmd_ros.bags.placing import RECORD, begin, named, partial_of, persons_pairs, put_in_place, refuse_existing
from rscmd_ros.bags.reader import Bag, open_bag
from rscmd_ros.bags.sampling import Plan, Sampling, make_plan
from rscmd_ros.bags.topics import IMAGE, THERMAL_TOPIC, VISIBLE_TOPIC
from rscmd_ros.bags.tracked_labels import Choice, Counts, tracked_labels
from rscmd_ros.node.pairing_options import PairingOptions

if TYPE_CHECKING:
    from rscmd_model.network.model_file import ModelHeader

_LOOKED_AT = 8  # a camera that warms up, or closes its shutter, may have some images without its usual counts


class NothingSureError(UserError):
    """A model finds no object that is sure enough to be a label."""


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
        choice: of the limits of the scores.
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
    choice: Choice = field(default_factory=Choice)
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
        return partial_of(self.out)


@dataclass(frozen=True)
class Labelled:
    """What a labelling gave.

    Attributes:
        out: folder of the set.
        counts: of pairs and labels.
        persons: pairs whose labels are a person's and were left as they are.
        notes: on the bag.
        weights: name of the checkpoint of the model's family and scale, for the next command.
    """

    out: Path
    counts: Counts
    persons: int
    notes: Sequence[str]
    weights: str

    def lines(self) -> list[str]:
        """As lines of text for a terminal."""
        counts, limits = self.counts, self.counts.limits
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
        sure = ", ".join(f"{name} {value:.2f}" for name, value in limits.sure.items())
        train = ["python", "-m", "rscmd_model.train", "--data", f"{self.out / DESCRIPTION}", "--weights"]
        lines += [
            f"tracks {counts.tracks}; score limits: sure {sure}; followed {limits.followed:g}; "
            f"unsure {limits.unsure:g}",
            *(f"note: {note}" for note in self.notes),
            f"set: {self.out}, a contact sheet of it: {self.out / SHEET}",
            f"next: {shlex.join([*train, str(self.weights)])} {FEW_PAIRS}",
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
            settings was broken off, or nothing was found (`NothingSureError`). `out` is then as it was.
    """
    job = dataclasses.replace(job, out=named(job.out))
    refuse_existing(job.out, force)
    with open_bag(job.bag) as bag:
        bag.require(job.visible_topic, IMAGE, "--visible-topic")
        bag.require(job.thermal_topic, IMAGE, "--thermal-topic")
        header = read_model_header(job.model)
        registration = load_registration(job.registration) if job.registration else header.registration
        progress(f"pairing the frames of {job.bag}")
        pairing = pair_up(bag, job.topics, job.options, header.thermal, progress)
        if not pairing.pairs:
            raise UserError(_never(job, pairing.places))
        plan = make_plan(pairing.pairs, job.sampling)
        _check_first(bag, job, plan, header, registration)
        settings = _settings(job, plan, header, registration)
        persons = persons_pairs(job.out, settings)
        with lock_folder(job.partial, "labelling"):
            begin(job.out, settings)
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
            progress(f"following the objects through {len(plan.pairs)} pairs")
            counts = Counts()
            for entry, sidecar in tracked_labels(journal.entries(), header.names, job.choice, counts):
                split, stem = str(entry.kept), stem_of(entry.stamp)
                to.write_labels(split, stem, _after(sidecar, LabelSet(job.out).pair(split, stem)))
            if not counts.labels and not persons:
                raise NothingSureError(_nothing(job, counts))
            to.write_description(header.names, header.thermal, registration)
            record = {"settings": settings, "choice": dataclasses.asdict(job.choice), "counts": counts.to_dict()}
            write_json(job.partial / RECORD, {**record, "bag": job.bag.name, "model": job.model.name})
            with lock_folder(job.out, "labelling") if job.out.exists() else nullcontext():  # from corrections
                persons = _show_with_persons(job, to, settings, progress)
                put_in_place(job.out)
    weights = f"{header.config.family.split('_')[0]}{header.config.scale}.pt"
    return Labelled(job.out, counts, len(persons), notes, weights)


def _show_with_persons(
    job: LabelJob, to: LabelSet, settings: Mapping[str, Any], progress: Callable[[str], None]
) -> list[LabelledPair]:
    """Take a person's pairs over from the earlier set, and show the new one as it then is.

    A person may have worked in the earlier set since the call, and may while this one is shown: then it is done again.
    """
    persons, taken = persons_pairs(job.out, settings), None
    while (found := [(pair, pair.text) for pair in persons]) != taken:
        for pair in persons:
            to.take(pair)
        progress("writing the contact sheet and the files for labelling tools")
        show(job.partial, job.model.name, job.out.name)
        persons, taken = persons_pairs(job.out, settings), found
    return persons


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


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


def _check_first(bag: Bag, job: LabelJob, plan: Plan, header: ModelHeader, registration: Registration | None) -> None:
    """Look at the first pairs, before all are answered.

    Raises:
        UserError: no pair can be decoded; the registration is not for the first that can; or the thermal contract shows
            nothing of any of the first `_LOOKED_AT`, which no training would take.
    """
    fault, seen = "", 0
    with closing(in_order(bag, job.topics, plan.pairs, header.thermal)) as pictures:
        for one in pictures:
            if one.visible is None or one.thermal is None:
                fault = fault or one.fault
                continue
            if registration is not None and not seen:
                registration.matrix(one.thermal.shape[::-1], one.visible.shape[1::-1])
            if not header.thermal.misses(one.thermal):
                return
            low, high = header.thermal.scale
            counts = f"{one.thermal.min()} to {one.thermal.max()}"
            seen += 1
            if seen == _LOOKED_AT:
                break
    if not seen:
        raise UserError(f"no pair of {job.bag} can be decoded: {fault}")
    raise UserError(
        f"{job.model} sees nothing on {job.thermal_topic}: the counts of its first images, {counts}, lie outside the "
        f"scale of the model's thermal contract, {low:g} to {high:g}; take a model of this camera's counts"
    )


def _settings(job: LabelJob, plan: Plan, header: ModelHeader, registration: Registration | None) -> dict[str, Any]:
    """All that the journal and the choice of pairs depend on, in plain JSON types."""
    try:
        model = sha256_of(job.model)
    except OSError as error:
        raise UserError(f"cannot read {job.model}: {error.strerror}") from None
    return {
        "recording": plan.digest,
        "files": [list(file) for file in stamp_of(job.bag.resolve())],
        "model": model,
        "names": list(header.names.values()),
        "registration": registration.to_dict() if registration else None,
        "visible_topic": job.visible_topic,
        "thermal_topic": job.thermal_topic,
        **dataclasses.asdict(job.options),
        **dataclasses.asdict(job.sampling),
        "png": job.png,
        "device": job.device,
        "batch": job.batch,
    }


def _after(sidecar: Sidecar, before: LabelledPair) -> Sidecar:
    """A sidecar that knows all that earlier models have said of its pair: a labelling tool may still have that."""
    if not before.sidecar.exists():
        return sidecar
    old = read_sidecar(before.sidecar)
    if old.person:
        return sidecar
    same = (old.labels, old.ignore) == (sidecar.labels, sidecar.ignore)
    return dataclasses.replace(sidecar, before=old.before if same else old)


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
    found = best or f"there is not a single box in {counts.pairs} pairs"
    return (
        f"nothing to learn in {job.bag}: no object is sure in a pair of the set; {found}. Look at the "
        f"pictures in {job.partial} and at the registration, give a lower --sure or --precision (the answers are "
        "kept, so it takes seconds), or a model that knows these cameras"
    )
