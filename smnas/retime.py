"""Latency again, here: of a plain sample, or of a run's detectors side by side (`smnas latency`).

Detectors take turns, one after the other and round after round in one process, so that a device
that warms up or slows down does so for all of them. Each is built anew for its turn with the
weights that its trial started from; memory holds one at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smnas import pareto
from smnas.detectors.components import parse_input_size
from smnas.detectors.nas import ModelSpace
from smnas.errors import ConfigError, RunError
from smnas.journal import History, Trial, read_run
from smnas.objectives.latency import Latency, device_name, measure_latency, pooled
from smnas.quiet import QuietDevice
from smnas.records import Measured, Sample
from smnas.report.devices import device_of, measured_devices, on_device
from smnas.report.tables import objectives_of
from smnas.spaces import make_importable, open_space, recorded_space
from smnas.timings import Timing, append_timings, device_key, read_timings
from smnas.trial import fresh_detector

CALLS, SECONDS, MOST_SECONDS = 20, 0.2, 1.0
"""Timed calls of one turn, at most; how long fast and slow detectors are timed in it."""


@dataclass(frozen=True)
class Conditions:
    """What a latency is measured under.

    Args:
        device: of this machine.
        precision: `fp32`, `amp` or `fp16`; None for that of the trials where they ran on the same
            kind of device, else `amp` on CUDA and `fp32` on a CPU.
        threads: CPU threads of one operator; None for the trials', else 1.
        batch: pictures in a call; trials time one.
        compiled: by `torch.compile`; trials are not.
    """

    device: torch.device
    precision: str | None = None
    threads: int | None = None
    batch: int = 1
    compiled: bool = False


@dataclass(frozen=True)
class Subject:
    """A detector to be timed.

    Args:
        open_space: builds its search space.
        sample: of that space.
        seed: of its trial.
        id: in its run; None outside of one.
        before: the latency that its run has, with the conditions (`Latency.to_json`), or None.
    """

    open_space: Callable[[], ModelSpace]
    sample: Sample
    seed: int = 0
    id: int | None = None
    before: Mapping[str, Any] | None = None


def sample_subject(space: str, sample: Sample, num_classes: int | None) -> Subject:
    """A sample of a space, named as on the command line (see `smnas.spaces.open_space`)."""
    classes = {} if num_classes is None else {"num_classes": num_classes}
    return Subject(lambda: open_space(space, None, **classes), sample)


def run_subjects(
    history: History, trials: Sequence[Trial], num_classes: int | None
) -> list[Subject]:
    """Measured candidates of a run, built as their stages' headers say.

    Args:
        history: the run.
        trials: some of its measured trials.
        num_classes: for runs whose trials did not record it.

    Raises:
        ConfigError: the number of classes is needed and was not given.
    """
    make_importable(Path.cwd())

    def subject(trial: Trial) -> Subject:
        assert isinstance(trial.outcome, Measured)
        experiment = history.experiment_of(trial.candidate)
        info = trial.outcome.info
        classes = info.get("num_classes", num_classes)
        if classes is None:
            raise ConfigError("latency: wanted --classes N, because this run did not record it")
        return Subject(
            lambda: recorded_space(experiment, num_classes=classes),
            trial.candidate.sample,
            experiment["seed"],
            trial.candidate.id,
            info.get("latency"),
        )

    return [subject(trial) for trial in trials]


def trials_to_time(history: History, front_only: bool = False) -> list[Trial]:
    """The measured trials that are worth timing again, by id.

    Args:
        history: the run.
        front_only: the Pareto set, that of each device where the trials ran on several; else all.
    """
    trials, objectives = history.trials(), objectives_of(history)
    kept, _ = pareto.measured(trials, objectives)
    if front_only:
        devices = {device_of(trial) for trial in kept}
        fronts = [
            pareto.front([t for t in kept if device_of(t) == device], objectives)
            for device in devices
        ]
        kept = [trial for front in fronts for trial in front]
    return sorted(kept, key=lambda trial: trial.candidate.id)


def find_trial(history: History, candidate_id: int) -> Trial:
    """A measured trial by its candidate's id.

    Raises:
        RunError: there is none, or it was not measured.
    """
    trials = {t.candidate.id: t for t in history.trials() if isinstance(t.outcome, Measured)}
    if candidate_id not in trials:
        raise RunError(f"latency: wanted a measured candidate of the run, got id {candidate_id}")
    return trials[candidate_id]


def retime(
    subjects: Sequence[Subject],
    conditions: Conditions,
    rounds: int = 5,
    observe: Callable[[], None] = lambda: None,
) -> list[Latency]:
    """Times detectors in turns; one latency each, in their order, over all rounds.

    Args:
        subjects: the detectors.
        conditions: the same for all but where they leave the choice to the trials.
        rounds: turns of each detector, at least 1.
        observe: called after each turn.

    Raises:
        SpaceError: a space cannot be built, or a sample does not belong to it.
        ConfigError: a condition is out of range.
    """
    quiet = QuietDevice(str(conditions.device))
    turns: list[list[Latency]] = [[] for _ in subjects]
    for _ in range(rounds):
        for subject, own in zip(subjects, turns, strict=True):
            own.append(_turn(subject, conditions, quiet))
            observe()
    return [pooled(own) for own in turns]


def remeasure_front(
    run: Path, rounds: int = 5, observe: Callable[[], None] = lambda: None
) -> str | None:
    """Times the front of a run in turns and keeps the timings, before a front is acted upon.

    A search measures each detector once, and of many the lucky ones get onto its front. Members
    are those beyond noise (`smnas.pareto`); when new latencies bring others onto the front these
    are timed, too, until all of it was timed here.

    Args:
        run: its folder.
        rounds: turns of each detector, at least 1.
        observe: called after each turn.

    Returns:
        The device, to open the run with (`smnas.report.devices`); None where the trials ran on
        several, or on another one than this machine's.

    Raises:
        UserError: as `retime` and `run_subjects`.
    """
    history = read_run(run)
    names = list(measured_devices(history))
    device = _local(names[0]) if len(names) == 1 else None
    if device is None:
        return None
    known = read_timings(run)
    timed = set(known.get(names[0], {}))
    while True:
        now = on_device(history, known, names[0])
        front = pareto.front_beyond_noise(now.trials(), objectives_of(history))
        left = [trial for trial in front if trial.candidate.id not in timed]
        if not left:
            return names[0]
        subjects = run_subjects(history, left, None)
        found = retime(subjects, Conditions(device), rounds, observe)
        append_timings(run, timings(subjects, found))
        known = read_timings(run)
        timed |= {trial.candidate.id for trial in left}


def _local(name: str) -> torch.device | None:
    """This machine's device of that name."""
    kinds = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
    devices = [torch.device(kind) for kind in kinds]
    return next((device for device in devices if device_name(device) == name), None)


def _turn(subject: Subject, conditions: Conditions, quiet: QuietDevice) -> Latency:
    device = conditions.device
    on_cuda = device.type == "cuda"
    precision, threads = _usual(subject, on_cuda)
    with quiet.working():
        detector = fresh_detector(subject.open_space, subject.sample, subject.seed).to(device)
    return measure_latency(
        detector,
        parse_input_size(str(detector.input_size)),
        device=device,
        quiet=quiet,
        precision=conditions.precision or precision,
        channels_last=on_cuda,
        threads=conditions.threads or threads,
        batch=conditions.batch,
        compiled=conditions.compiled,
        iterations=CALLS,
        min_seconds=SECONDS,
        max_seconds=MOST_SECONDS,
        seed=subject.seed,
    )


def _usual(subject: Subject, on_cuda: bool) -> tuple[str, int]:
    """Precision and CPU threads of the run, as far as they mean something on the device."""
    before = subject.before or {}
    precision = "amp" if on_cuda else "fp32"
    if before.get("channels_last") == on_cuda:
        precision = before["precision"]
    return precision, before.get("threads", 1)


def unusual(subject: Subject, latency: Latency) -> str:
    """In words, what a latency was measured under otherwise than the run's own; empty for nothing.

    Latencies compare where these words are equal.
    """
    precision, threads = _usual(subject, on_cuda=latency.channels_last)
    words = {
        f"batch {latency.batch}": latency.batch != 1,
        latency.precision: latency.precision != precision,
        "compiled": latency.compiled,
        f"{latency.threads} CPU threads": latency.threads != threads,
    }
    return ", ".join(word for word, differs in words.items() if differs)


def timings(subjects: Sequence[Subject], latencies: Sequence[Latency]) -> list[Timing]:
    """What `smnas.timings` keeps of a run's detectors, measured now."""
    now = time.time()
    return [
        Timing(
            subject.id,
            device_key(latency.device, unusual(subject, latency)),
            now,
            latency.to_metrics(),
            latency.to_json(),
        )
        for subject, latency in zip(subjects, latencies, strict=True)
        if subject.id is not None
    ]
