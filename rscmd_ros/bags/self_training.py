"""Self-training on a recorded bag: label, train, label again with the new model, as long as that helps."""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rscmd_model.datasets.opening import open_data
from rscmd_model.datasets.pairs import DataConfig, PairFiles, find_pairs
from rscmd_model.datasets.sidecars import read_sidecar
from rscmd_model.errors import UserError, quoted
from rscmd_model.files import lock_folder, sha256_of, whole_file, write_json
from rscmd_model.imaging.images import read_thermal, read_visible
from rscmd_model.labelling.drift import share_found, surest
from rscmd_model.labelling.label_set import DESCRIPTION, LabelSet
from rscmd_model.text import read_json
from rscmd_ros.bags.evaluation import read_model_header
from rscmd_ros.bags.labelling import RECORD, LabelJob, NothingSureError, label_bag
from rscmd_ros.bags.placing import recover

if TYPE_CHECKING:
    from rscmd_model.inference.predictor import Predictor

STATE = "self_train.json"
MODEL = "model.safetensors"
KEEP = 0.9
"""A model that finds a smaller share of the held boxes has drifted."""
_SLACK = 0.01  # by which a person's pairs may be answered worse
_CONFIDENCE = 0.25


@dataclass(frozen=True)
class SelfTraining:
    """What to do.

    Attributes:
        job: how the bag is labelled; its model is the first teacher, and its `out` lies in `out`.
        weights: plain detector's checkpoint that every round starts from; None for random weights.
        out: folder of everything.
        rounds: of labelling and training, at most.
        method: as `rscmd_model.train` takes it.
        options: ultralytics' options as key=value words.
    """

    job: LabelJob
    weights: Path | None
    out: Path
    rounds: int = 2
    method: str = "rscmd"
    options: Sequence[str] = ()

    def settings(self) -> dict[str, Any]:
        """All that a round depends on, in plain JSON types."""
        job, digests = self.job, {}
        for name, file in (("model", job.model), ("weights", self.weights), ("registration", job.registration)):
            try:
                digests[name] = sha256_of(file) if file else None
            except OSError as error:
                raise UserError(f"cannot read {file}: {error.strerror}") from None
        labelling = (job.options, job.sampling, job.choice)
        return {
            "bag": str(job.bag.resolve()),
            **digests,
            "method": self.method,
            "options": list(self.options),
            **{name: value for part in labelling for name, value in dataclasses.asdict(part).items()},
            **{f"{name}_topic": topic for name, topic in job.topics.items()},
        }


@dataclass(frozen=True)
class Round:
    """What a round gave.

    Attributes:
        number: 1 for the first.
        labels: it was trained on.
        agreement: mAP50 of its model against the labels of the val split, 0 to 1.
        held: share of the first round's surest boxes that it finds; NaN where there are none.
        person: mAP50 on the pairs of the val split that a person labelled; NaN where there are none.
        verdict: why it is the last one; empty where another may follow.
        kept: whether its model is better than the one before.
    """

    number: int
    labels: int
    agreement: float
    held: float
    person: float
    verdict: str = ""
    kept: bool = True

    @staticmethod
    def read(written: Mapping[str, Any]) -> Round:
        """What `written` gave.

        Raises:
            TypeError: it is no such thing.
        """
        values: dict[str, Any] = {name: math.nan if value is None else value for name, value in written.items()}
        return Round(**values)

    def written(self) -> dict[str, Any]:
        """As plain JSON types, which have no NaN."""
        return {name: None if value != value else value for name, value in vars(self).items()}

    def line(self) -> str:
        """For a terminal."""
        held = "" if math.isnan(self.held) else f", finds {self.held:.0%} of the boxes that were surest at first"
        person = "" if math.isnan(self.person) else f", mAP50 {100 * self.person:.1f} on a person's pairs"
        verdict = f": {self.verdict}" if self.verdict else ""
        return f"round {self.number}: {self.labels} labels, agreement {100 * self.agreement:.1f}{held}{person}{verdict}"


@dataclass
class _State:
    """What is done so far, as it stands in `STATE`."""

    file: Path
    settings: Mapping[str, Any]
    rounds: list[Round] = field(default_factory=list)

    def write(self) -> None:
        """Keep it, whole."""
        write_json(self.file, {"settings": self.settings, "rounds": [done.written() for done in self.rounds]})

    def read(self) -> None:
        """Take up what an earlier call has done.

        Raises:
            UserError: it was of other settings, or cannot be read.
        """
        if not self.file.exists():
            return
        content: Any = read_json(self.file)
        try:
            begun: dict[str, Any] = dict(content["settings"])
            rounds: list[dict[str, Any]] = content["rounds"]
            self.rounds = [Round.read(done) for done in rounds]
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{self.file} is no record of self_train: choose another --out") from None
        for name, value in self.settings.items():
            if begun.get(name) != value:
                raise UserError(
                    f"{self.file.parent} was begun with {name} {quoted(begun.get(name))}, and it is {quoted(value)} "
                    "now: call as before to go on there, or choose another --out"
                )


def self_train(given: SelfTraining, *, threads: int | None, progress: Callable[[str], None]) -> Path:
    """Label, train and judge, round after round; what an earlier call has finished is not done again.

    A round is the last one when its model drifts, answers a person's pairs worse, or agrees no better with its labels
    than the round before, or when there is nothing that the model of the round before is sure of; then the model of the
    round before is the result.

    Args:
        given: what to do.
        threads: of torch while labelling; None leaves its setting.
        progress: called with lines that tell how far it is.

    Returns:
        the best model, OUT/model.safetensors.

    Raises:
        UserError: as `label_bag`; a training failed; or nothing is sure in the first round, or its model drifted, so
            that there is none.
    """
    with lock_folder(given.out, "self-training"):
        state = _State(given.out / STATE, given.settings())
        state.read()
        state.write()
        while len(state.rounds) < given.rounds and not (state.rounds and state.rounds[-1].verdict):
            number = len(state.rounds) + 1
            done = _round(given, number, state, threads, progress)
            state.rounds.append(done)
            state.write()
            progress(done.line())
        kept = [done for done in state.rounds if done.kept]
        if not kept:
            raise UserError(f"no round gave a model that is better than {given.job.model}: {state.rounds[0].verdict}")
        result = given.out / MODEL
        with whole_file(result) as aside:
            shutil.copyfile(given.out / _name(kept[-1].number) / MODEL, aside)
        return result


def _round(
    given: SelfTraining, number: int, state: _State, threads: int | None, progress: Callable[[str], None]
) -> Round:
    """Label, train and judge once."""
    progress(f"== round {number}: labelling")
    try:
        data = _label(given, number, threads, progress)
    except NothingSureError:
        if number == 1:
            state.file.unlink()  # nothing is made yet, so other limits may be given
            raise
        shutil.rmtree(given.job.partial, ignore_errors=True)
        verdict = f"the model of round {number - 1} is sure of nothing, so there is nothing to train on"
        return Round(number, 0, 0.0, math.nan, math.nan, verdict, kept=False)
    progress(f"== round {number}: training")
    return _judge(given, number, _train(given, number, data), state)


def _name(number: int) -> str:
    return f"round{number}"


def _teacher(given: SelfTraining, number: int) -> Path:
    """The model that labels for a round."""
    return given.job.model if number == 1 else given.out / _name(number - 1) / MODEL


def _label(given: SelfTraining, number: int, threads: int | None, progress: Callable[[str], None]) -> Path:
    """The set of a round: labelled by the model of the round before, with a person's labels where there are some."""
    job = replace(given.job, model=_teacher(given, number))
    recover(job.out)
    record = job.out / RECORD
    if record.exists() and read_json(record).get("settings", {}).get("model") == sha256_of(job.model):
        progress(f"{job.out} is labelled already")
    else:
        labelled = label_bag(job, force=record.exists(), threads=threads, progress=progress)
        for line in labelled.lines():
            progress(line)
    return job.out / DESCRIPTION


def _train(given: SelfTraining, number: int, data: Path) -> Path:
    """Train the model of a round by the command line that anybody can repeat; an interrupted training is resumed."""
    run = given.out / _name(number)
    command = [sys.executable, "-m", "rscmd_model.train", *_training_words(given, run, data)]
    done = subprocess.run(command)
    if done.returncode:
        raise UserError(f"the training of round {number} failed; the reason stands above. Call again to go on")
    return run / MODEL


def _training_words(given: SelfTraining, run: Path, data: Path) -> list[str]:
    """For `rscmd_model.train`. It computes where the labelling does, unless the options name another device."""
    if (run / "weights/last.pt").is_file():
        return [f"resume={run / 'weights/last.pt'}"]
    words = ["--data", str(data), "--method", given.method, *given.options]
    words += ["--weights", str(given.weights)] if given.weights else []
    if given.job.device != "auto" and not any(option.startswith("device=") for option in given.options):
        words.append(f"device={given.job.device}")
    return [*words, f"project={given.out}", f"name={run.name}", "exist_ok=True"]


def _judge(given: SelfTraining, number: int, model: Path, state: _State) -> Round:
    """Compare a round's model with its labels, with what was surest at first, and with a person's labels."""
    # Not before there is something to judge: torch takes seconds to load.
    from rscmd_model.evaluation.sweep import evaluate

    data = open_data(given.job.out / DESCRIPTION)
    pairs = find_pairs(data, "val")
    labels = LabelSet(given.job.out)
    persons = {pair.stem for pair in labels.pairs() if pair.split == "val" and pair.touched}
    predictor = _predictor(model, given.job.device)
    agreement = float(evaluate(predictor, data, pairs)["mAP50"])
    person = before = math.nan
    if of_person := [pair for pair in pairs if pair.stem in persons]:
        teacher = _predictor(_teacher(given, number), given.job.device)
        person, before = (float(evaluate(one, data, of_person)["mAP50"]) for one in (predictor, teacher))
    held = _held(given, number, predictor, data, pairs)
    verdict, kept = _verdict(state.rounds, agreement, held, person, before)
    count = sum(len(pair.text.splitlines()) for pair in labels.pairs() if pair.split == "train")
    return Round(number, count, agreement, held, person, verdict, kept)


def _predictor(model: Path, device: str) -> Predictor:
    """With all answers joined, where the model has several: that is what labelled."""
    from rscmd_model.evaluation.sweep import LOWEST_SCORE
    from rscmd_model.inference.predictor import Predictor

    joined = "ensemble" in read_model_header(model).config.pair_answers
    return Predictor(model, device=device, conf=LOWEST_SCORE, answer="ensemble" if joined else None)


def _held(
    given: SelfTraining, number: int, predictor: Predictor, data: DataConfig, pairs: Sequence[PairFiles]
) -> float:
    """The share of the first round's surest boxes in the val split that a model finds."""
    folder = given.out / "held"
    if number == 1 and not folder.exists():
        sidecars = given.job.out / "sidecars/val"
        aside = given.out / "held.partial"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(sidecars, aside)
        aside.rename(folder)
    kept = surest({file.stem: read_sidecar(file) for file in sorted(folder.glob("*.json"))})
    known = [pair for pair in pairs if pair.stem in kept]
    answers, sizes = [], []
    for pair in known:
        visible, thermal = read_visible(pair.visible), read_thermal(pair.thermal, data.thermal_contract)
        answers.append(predictor.predict(visible, thermal, conf=_CONFIDENCE))
        sizes.append((visible.shape[1], visible.shape[0]))
    return share_found([kept[pair.stem] for pair in known], answers, sizes)


def _verdict(earlier: Sequence[Round], agreement: float, held: float, person: float, before: float) -> tuple[str, bool]:
    """Why a round is the last one, or an empty text, and whether its model is kept."""
    if not agreement > 0:
        return "its model finds none of its own labels, and is left out: train longer", False
    if held < KEEP:
        return f"it has drifted (less than {KEEP:.0%}), and is left out", False
    if person < before - _SLACK:
        return f"a person's pairs were answered better before ({100 * before:.1f}), and it is left out", False
    if earlier and agreement <= earlier[-1].agreement:
        return "the agreement no longer rises, and it is left out", False
    return "", True
