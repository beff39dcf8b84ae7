"""What a report says of whole runs: growth, budget, failures, comparison. Reads journals only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smnas import pareto
from smnas.errors import MixedDevicesError, RunError
from smnas.journal import History, Trial
from smnas.records import FAILURE_REASONS, STOP_REASONS, Candidate, Failed, Measured, Stopped
from smnas.report.devices import TIMES, UNKNOWN, measured_devices
from smnas.report.tables import objectives_of

_HOUR = 3600


@dataclass(frozen=True)
class Growth:
    """Hypervolume after each finished trial, in the order of finishing.

    Args:
        hours: since the first trial was asked for; pauses of the search count.
        hypervolume: against the study's fixed reference point.
    """

    hours: list[float]
    hypervolume: list[float]


def growth(history: History) -> Growth:
    """How a run's front grew."""
    trials = history.trials()
    start = min((trial.asked for trial in trials), default=0.0)
    ends = sorted(trial.told for trial in trials if trial.told is not None)
    curve = pareto.hypervolume_curve(trials, objectives_of(history))
    return Growth([(end - start) / _HOUR for end in ends], curve)


@dataclass(frozen=True)
class Spent:
    """What a stage has cost.

    Args:
        stage: its name.
        asked: trials that were started.
        measured: of these, with an outcome to rank.
        failed: of these, without.
        stopped: of these, ended on purpose because another one is better.
        hours: from the first start to the last outcome; pauses of the search count.
        training_hours: of all measured trials together.
    """

    stage: str
    asked: int
    measured: int
    failed: int
    stopped: int
    hours: float
    training_hours: float


def budget(history: History) -> list[Spent]:
    """What each stage has cost, in the order of the stages."""
    trials = history.trials()
    stages = dict.fromkeys(trial.candidate.stage for trial in trials)
    return [_spent(stage, [t for t in trials if t.candidate.stage == stage]) for stage in stages]


def _spent(stage: str, trials: Sequence[Trial]) -> Spent:
    measured = [t.outcome for t in trials if isinstance(t.outcome, Measured)]
    start = min(trial.asked for trial in trials)
    end = max((trial.told for trial in trials if trial.told is not None), default=start)
    return Spent(
        stage,
        asked=len(trials),
        measured=len(measured),
        failed=sum(isinstance(trial.outcome, Failed) for trial in trials),
        stopped=sum(isinstance(trial.outcome, Stopped) for trial in trials),
        hours=(end - start) / _HOUR,
        training_hours=sum(o.metrics.get("train_seconds", 0.0) for o in measured) / _HOUR,
    )


@dataclass(frozen=True)
class Failures:
    """Trials that failed, or were stopped, for one reason.

    Args:
        reason: a key of `FAILURE_REASONS` or `STOP_REASONS`.
        meaning: the reason in words.
        ids: of the candidates, ascending.
        detail: first line of what the first of them left.
    """

    reason: str
    meaning: str
    ids: list[int]
    detail: str


def failures(history: History) -> list[Failures]:
    """Failed and stopped trials by reason, the most frequent first."""
    found: dict[str, list[tuple[int, str]]] = {}
    for trial in history.trials():
        if isinstance(trial.outcome, Failed | Stopped):
            line = (trial.outcome.detail.splitlines() or [""])[0]
            found.setdefault(trial.outcome.reason, []).append((trial.candidate.id, line))
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    meanings = {**FAILURE_REASONS, **STOP_REASONS}
    return [
        Failures(reason, meanings[reason], [key for key, _ in cases], cases[0][1])
        for reason, cases in ordered
    ]


@dataclass(frozen=True)
class Knowledge:
    """What the models of algorithm `surrogate` knew in one round, and who proposed in it.

    Args:
        stage: its name.
        group: the structural candidate whose children were searched; None outside groups.
        ids: of the candidates that were proposed in this round, ascending.
        by_models: how many of them the models proposed; the others were mated.
        tau: `{objective: Kendall's rank correlation in cross-validation}`, -1 to 1.
    """

    stage: str
    group: int | None
    ids: list[int]
    by_models: int
    tau: dict[str, float]


def knowledge(history: History) -> list[Knowledge]:
    """Rounds in order of their first candidate; none if no model was asked."""
    rounds: dict[tuple[object, ...], list[Candidate]] = {}
    for candidate in (trial.candidate for trial in history.trials()):
        if candidate.knowledge:
            key = (candidate.stage, candidate.group, *candidate.knowledge.items())
            rounds.setdefault(key, []).append(candidate)
    return [
        Knowledge(
            members[0].stage,
            members[0].group,
            [member.id for member in members],
            sum(member.origin == "model" for member in members),
            dict(members[0].knowledge),
        )
        for members in rounds.values()
    ]


@dataclass(frozen=True)
class Comparison:
    """Several runs of the same objectives, in their order.

    Args:
        reference: the common reference point, `{objective: value}`: the worst of the runs' own.
        hypervolume: of each run's front against it.
        coverage: `[a][b]`: share of b's front that a's front is at least as good as.
        joint: how many members of the front of all runs together are each run's.
    """

    reference: dict[str, float]
    hypervolume: list[float]
    coverage: list[list[float]]
    joint: list[int]


def compare(histories: Sequence[History]) -> Comparison:
    """Compares the fronts of runs.

    Raises:
        RunError: they have other objectives than the first.
    """
    every = [objectives_of(history) for history in histories]
    first = every[0]
    for objectives, history in zip(every, histories, strict=True):
        if dict(objectives.directions) != dict(first.directions):
            raise RunError(
                f"report: wanted runs with the objectives {dict(first.directions)}, got"
                f" {dict(objectives.directions)} in {history.header['name']}"
            )
    reference = np.max([objectives.reference_point for objectives in every], axis=0)
    fronts = [pareto.measured(pareto.front(h.trials(), first), first)[1] for h in histories]
    owner = np.repeat(np.arange(len(fronts)), [len(front) for front in fronts])
    best = owner[pareto.non_dominated(np.concatenate(fronts))]
    return Comparison(
        first.named(reference),
        [pareto.hypervolume(front, reference) for front in fronts],
        [[pareto.coverage(a, b) for b in fronts] for a in fronts],
        [int((best == number).sum()) for number in range(len(fronts))],
    )


def check_comparable(histories: Sequence[History]) -> None:
    """Refuses to lay runs over each other whose times are of different devices.

    Raises:
        MixedDevicesError: names the devices and the remedies.
    """
    timed = [name for name in TIMES if name in objectives_of(histories[0]).names]
    devices = {name for history in histories for name in measured_devices(history)}
    if timed and len(devices - {UNKNOWN}) > 1:
        raise MixedDevicesError(
            f"report: wanted {timed[0]} of one device, got runs on {', '.join(sorted(devices))};"
            " measure again on one with: smnas latency RUN --all, and take it with --device; or"
            " compare all the same with --mixed-devices"
        )
