"""What waiting costs: a search on a simulated clock, steady state against generations.

    python benchmarks/simulated_clock.py

1 to 1,000 workers, trials of 10 minutes in the median whose lengths have a heavy tail (log-normal,
sigma 1: one in a hundred takes 100 minutes), the analytic detector problem. A generation is as
large as the workers, at least 20, which is the kindest size for it. What the optimiser itself
takes is measured and makes workers wait. Utilisation: busy time of all workers by their time until
nothing is left to hand out. Writes simulated_clock.json and .png to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import heapq
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import RESULTS, write_results
from matplotlib.figure import Figure
from problems import Problem, detector, volume
from rich.console import Console
from rich.table import Table

from smnas import pareto
from smnas.optimizer import Optimizer

WORKERS = (1, 4, 16, 64, 256, 1000)
MEDIAN_SECONDS, SIGMA = 600.0, 1.0
MODES = ("steady", "generational")


@dataclass(frozen=True)
class Simulation:
    """What came of one search.

    Args:
        utilisation: 0 to 1, until nothing is left to hand out.
        thinking: part of the workers' time that passed while the optimiser thought.
        curve: `(hours, part of the true hypervolume)` at each result that added some.
    """

    utilisation: float
    thinking: float
    curve: list[tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Utilisation and hypervolume over wall time.")
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    problem, rows, curves = detector(), [], {}
    for workers in WORKERS:
        for mode in MODES:
            runs = [simulate(problem, workers, mode, seed) for seed in range(seeds)]
            rows.append(_row(workers, mode, runs))
            curves[workers, mode] = runs[0].curve
    _print(rows)
    _plot(curves)
    settings = {"median_seconds": MEDIAN_SECONDS, "sigma": SIGMA, "seeds": seeds}
    print(f"written to {write_results('simulated_clock', {'settings': settings, 'rows': rows})}")


def trials_of(workers: int) -> int:
    """How many trials a simulation has."""
    return min(2000, max(400, 20 * workers))


def simulate(problem: Problem, workers: int, mode: str, seed: int) -> Simulation:
    """One search of `trials_of(workers)` trials by NSGA-II."""
    optimizer = Optimizer(
        problem.encoding,
        problem.objectives,
        population=max(20, workers) if mode == "generational" else 20,
        seed=seed,
        generational=mode == "generational",
    )
    lengths = np.random.default_rng([seed, workers])
    running: list[tuple[float, int, Any]] = []
    clock = busy = thought = 0.0
    asked, trials, best, curve = 0, trials_of(workers), np.empty((0, 2)), []
    while True:
        while len(running) < workers and asked < trials:
            began = time.perf_counter()
            candidate = optimizer.ask()
            thinking = time.perf_counter() - began
            # everyone who is free waits for the one optimiser
            clock, thought = clock + thinking, thought + thinking * (workers - len(running))
            if candidate is None:
                break
            length = float(lengths.lognormal(np.log(MEDIAN_SECONDS), SIGMA))
            heapq.heappush(running, (clock + length, candidate.id, candidate))
            asked, busy = asked + 1, busy + length
        if asked == trials:
            busy -= sum(max(0.0, end - clock) for end, _, _ in running)
            return Simulation(busy / (workers * clock), thought / (workers * clock), curve)
        end, number, candidate = heapq.heappop(running)
        clock = max(clock, end)
        began = time.perf_counter()
        optimizer.tell(number, problem.outcome(candidate.sample))
        clock += time.perf_counter() - began
        rows = np.vstack([best, problem.row(problem.encoding.index(candidate.sample))])
        best = rows[pareto.non_dominated(rows)]
        value = volume(best) / problem.volume
        if not curve or value > curve[-1][1]:
            curve.append((clock / 3600, value))


def _row(workers: int, mode: str, runs: Sequence[Simulation]) -> dict[str, Any]:
    reached = [next((t for t, value in run.curve if value >= 0.9), None) for run in runs]
    there = [t for t in reached if t is not None]
    return {
        "workers": workers,
        "mode": mode,
        "trials": trials_of(workers),
        "utilisation": round(statistics.median(run.utilisation for run in runs), 4),
        "worst_utilisation": round(min(run.utilisation for run in runs), 4),
        "thinking": round(statistics.median(run.thinking for run in runs), 6),
        "hours_to_90": round(statistics.median(there), 2) if len(there) == len(runs) else None,
        "hypervolume": round(statistics.median(run.curve[-1][1] for run in runs), 4),
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title="NSGA-II on a simulated clock, medians over seeds")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=140).print(table)


def _plot(curves: dict[tuple[int, str], list[tuple[float, float]]]) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for number, workers in enumerate(WORKERS):
        for mode, style in zip(MODES, ("-", "--"), strict=True):
            hours, values = zip(*curves[workers, mode], strict=True)
            axis.step(
                hours, values, style, where="post", color=f"C{number}", label=f"{workers} {mode}"
            )
    axis.set(xscale="log", xlabel="hours", ylabel="part of the true hypervolume", ylim=(0.4, 1.0))
    axis.legend(fontsize="small")
    figure.savefig(RESULTS / "simulated_clock.png", dpi=110)


if __name__ == "__main__":
    main()
