"""Epochs that early stopping saves, and the hypervolume that it costs: recorded curves, replayed.

    python benchmarks/early_stopping.py RUN [RUN ...] [--seeds 40] [--workers 2] [--resample 100]

Every RUN is a run folder, or the folder of a later stage in it, whose trials trained to their end,
all for the same number of epochs. Trials of the stage before are rivals from the start, as in the
search, and part of the front. Its trials are replayed in many random orders on simulated workers,
each epoch as long as it took; at every rung the judge of `smnas.stopping` decides by what has
finished by then. Reported for each setting: part of the epochs that was not trained and part of the
hypervolume that was lost, as means with bootstrapped 95 % intervals over the orders. The oracle
knows how every trial ends and stops, at the first rung, what something finished dominates: nobody
can save more without loss.

A search may be longer than what has been recorded. `--resample N` adds a table of as many trials,
drawn from the recorded ones with replacement, latency and curve of each scaled by chance: no
measurement, but it shows what a longer search would save. Prints tables, writes
results/early_stopping.json.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import write_results
from rich.console import Console
from rich.table import Table

from smnas import pareto
from smnas.journal import FILE_NAME, Trial, read
from smnas.objectives.vector import Objectives
from smnas.records import Candidate, Measured
from smnas.stopping import EarlyStopping, Judge, Line

Decide = Callable[[Candidate, Sequence[Line], Sequence[Trial]], Any]
"""A candidate, its lines so far and what has finished -> something true to stop it."""

CONFIDENCES = (0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Recorded:
    """Trials of one run that trained for the same number of epochs.

    Args:
        trials: measured, with their curves.
        objectives: of the run.
        epochs: of every curve.
        earlier: measured trials of the stage before.
    """

    trials: tuple[Trial, ...]
    objectives: Objectives
    epochs: int
    earlier: tuple[Trial, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--resample", type=int, help="trials of a longer search, made up")
    arguments = parser.parse_args()
    runs = {path.resolve().name: load(path) for path in arguments.runs}
    if arguments.resample:
        longer = {name: resampled(run, arguments.resample) for name, run in runs.items()}
        runs |= {f"{name}, resampled": run for name, run in longer.items()}
    tables = {}
    for name, run in runs.items():
        ways = [
            (rungs, confidence)
            for rungs in schedules(run.epochs)
            for confidence in (*CONFIDENCES, None)
        ]
        rows = [measure(run, *way, arguments.seeds, arguments.workers) for way in ways]
        show(name, run, rows)
        tables[name] = {"trials": len(run.trials), "epochs": run.epochs, "settings": rows}
    settings = {"seeds": arguments.seeds, "workers": arguments.workers}
    print(f"written to {write_results('early_stopping', {'replay': settings, 'runs': tables})}")


def load(path: Path) -> Recorded:
    """The trials of a run that have whole curves of the usual length."""
    history = read(path)
    settings = history.header["experiment"]
    curves = {t.candidate.id: curve_of(t) for t in history.trials()}
    epochs = max(len(curve) for curve in curves.values())
    trials = [t for t in history.trials() if len(curves[t.candidate.id]) == epochs]
    before = path.resolve().parent / FILE_NAME
    earlier = read(before).trials() if before.is_file() else []
    return Recorded(
        tuple(trials),
        Objectives(settings["objectives"], settings["reference_point"]),
        epochs,
        tuple(trial for trial in earlier if isinstance(trial.outcome, Measured)),
    )


def resampled(run: Recorded, number: int, spread: float = 0.2) -> Recorded:
    """Trials drawn with replacement, latency and curve of each scaled by log-normal factors.

    Args:
        run: what has been recorded.
        number: of trials.
        spread: standard deviation of the factors' logarithms.
    """
    rng = np.random.default_rng(0)
    trials = []
    for k in range(number):
        one = run.trials[rng.integers(len(run.trials))]
        slower, better = np.exp(spread * rng.standard_normal(2)).tolist()
        curve = [
            {"epoch": line["epoch"], "map": min(1.0, line["map"] * better)}
            for line in curve_of(one)
        ]
        metrics = {
            "latency_ms": first_line(one, run)["latency_ms"] * slower,
            "map": curve[-1]["map"],
            "train_seconds": seconds_of(one) * slower,
        }
        candidate = Candidate(k, one.candidate.stage, one.candidate.sample)
        trials.append(Trial(candidate, Measured(metrics, {"curve": curve}), 0.0, 1.0))
    return Recorded(tuple(trials), run.objectives, run.epochs, run.earlier)


def curve_of(trial: Trial) -> Sequence[Line]:
    """What a trial reported after each epoch; nothing of one that was not measured."""
    return trial.outcome.info.get("curve", []) if isinstance(trial.outcome, Measured) else []


def schedules(epochs: int) -> list[tuple[int, ...]]:
    """Rungs to try: every epoch but the last, and from the second one on."""
    every = tuple(range(1, epochs))
    return [every, every[1:]] if len(every) > 1 else [every]


def measure(
    run: Recorded, rungs: tuple[int, ...], confidence: float | None, seeds: int, workers: int
) -> dict[str, Any]:
    """Epochs saved and hypervolume lost over random orders; a confidence of None is the oracle."""
    if confidence is None:
        decide = oracle(run, rungs)
    else:
        decide = Judge(run.objectives, None, EarlyStopping(rungs, confidence)).verdict
    replays = [replay(run, decide, seed, workers) for seed in range(seeds)]
    names = ("epochs_saved", "seconds_saved", "hypervolume_lost")
    columns = {name: np.array([one[name] for one in replays]) for name in names}
    return {
        "rungs": list(rungs),
        "confidence": confidence,
        "stopped": float(np.mean([one["stopped"] for one in replays])),
        **{name: {"mean": float(v.mean()), "interval": interval(v)} for name, v in columns.items()},
    }


def oracle(run: Recorded, rungs: tuple[int, ...]) -> Decide:
    """Stops what is dominated by something that has finished."""
    ends = {key(t): row(t, run.objectives) for t in (*run.earlier, *run.trials)}

    def decide(candidate: Candidate, lines: Sequence[Line], finished: Sequence[Trial]) -> bool:
        own = ends[candidate.stage, candidate.id]
        others = (ends[key(trial)] for trial in finished)
        return lines[-1]["epoch"] == rungs[0] and any((other <= own).all() for other in others)

    return decide


def key(trial: Trial) -> tuple[str, int]:
    return trial.candidate.stage, trial.candidate.id


def replay(run: Recorded, decide: Decide, seed: int, workers: int) -> dict[str, float]:
    """One order of the trials, on workers that never wait."""
    order = np.random.default_rng(seed).permutation(len(run.trials))
    waiting = [run.trials[i] for i in order]
    running = [(0.0, number, 0, waiting.pop(0)) for number in range(min(workers, len(waiting)))]
    heapq.heapify(running)
    finished: list[Trial] = []
    number, trained, seconds = len(running), 0, 0.0
    while running:
        # of a trial `done` epochs are over at this time
        now, place, done, trial = heapq.heappop(running)
        lines = [first_line(trial, run), *curve_of(trial)[:done]]
        over = done == run.epochs
        if over:
            finished.append(trial)
        if over or decide(trial.candidate, lines, [*run.earlier, *finished]):
            if waiting:
                heapq.heappush(running, (now, number, 0, waiting.pop(0)))
                number += 1
            continue
        length = seconds_of(trial) / run.epochs
        trained, seconds = trained + 1, seconds + length
        heapq.heappush(running, (now + length, place, done + 1, trial))
    whole, kept = (
        volume([*run.earlier, *trials], run.objectives) for trials in (run.trials, finished)
    )
    return {
        "epochs_saved": 1 - trained / (run.epochs * len(run.trials)),
        "seconds_saved": 1 - seconds / sum(map(seconds_of, run.trials)),
        "hypervolume_lost": 1 - kept / whole,
        "stopped": 1 - len(finished) / len(run.trials),
    }


def first_line(trial: Trial, run: Recorded) -> dict[str, Any]:
    """What a trial reports before training: everything but what its epochs report."""
    assert trial.outcome is not None
    later = curve_of(trial)[0]
    metrics = {name: v for name, v in trial.outcome.metrics.items() if name not in later}
    return {"epoch": 0, "epochs": run.epochs, **metrics}


def seconds_of(trial: Trial) -> float:
    assert trial.outcome is not None
    return float(trial.outcome.metrics["train_seconds"])


def row(trial: Trial, objectives: Objectives) -> np.ndarray:
    assert trial.outcome is not None
    return objectives.minimised(trial.outcome.metrics)


def volume(trials: Sequence[Trial], objectives: Objectives) -> float:
    _, rows = pareto.measured(list(trials), objectives)
    return pareto.hypervolume(rows, objectives.reference_point)


def interval(values: np.ndarray) -> list[float]:
    """Bootstrapped 95 % interval of the mean."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    return [float(q) for q in np.quantile(draws, [0.025, 0.975])]


def show(name: str, run: Recorded, rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title=f"{name}: {len(run.trials)} curves of {run.epochs} epochs")
    for column in ("rungs", "confidence", "stopped", "epochs saved", "time saved", "lost", "cost"):
        table.add_column(column, justify="right")
    for one in rows:
        kept = 1 - one["epochs_saved"]["mean"]
        table.add_row(
            ", ".join(map(str, one["rungs"])),
            "oracle" if one["confidence"] is None else f"{one['confidence']:g}",
            f"{one['stopped']:.0%}",
            *(percent(one[n]) for n in ("epochs_saved", "seconds_saved", "hypervolume_lost")),
            f"x {kept:.2f}",
        )
    Console(width=120).print(table)


def percent(cell: Mapping[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{cell['mean']:.1%} [{low:.1%}, {high:.1%}]"


if __name__ == "__main__":
    main()
