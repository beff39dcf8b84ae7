"""Trainings that partial order pruning saves, and members of the true front that it costs.

    python benchmarks/pruning.py TABLE.csv [RUN ...] [--seeds 10] [--candidates 200] [--orders 100]

TABLE.csv is that of NAS-Bench-Macro (arch, acc_mean, flops): every choice of its 3^8 networks is
ordered (identity, 3x3 with expansion 3, 5x5 with expansion 6). Random search and NSGA-II propose
candidates; flops are known before training, the judge of `smnas.stopping` decides, and what it lets
through is looked up. The measured trials of every RUN are judged in random orders, each by those
that were trained before it: members of the run's own front must not be lost to short trainings.
Prints tables, writes results/pruning.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import write_results
from problems import Problem, macro, volume
from rich.console import Console
from rich.table import Table

from smnas import pareto
from smnas.journal import Trial, read
from smnas.optimizer import Optimizer
from smnas.records import Measured
from smnas.report.tables import objectives_of
from smnas.stopping import Judge, Pruning, excesses

MARGINS = {"random": (0.0, 0.0025, 0.005, 0.01), "nsga2": (None, 0.0025, 0.005)}
"""In parts of the accuracy's whole range, 48 points; None does not prune."""

RECORDED = ((0.02, 0), (0.0, 15), (0.02, 15))
"""Margin in mAP, and pairs that are wanted first."""

POPULATION = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN")
    parser.add_argument("--orders", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=200)
    arguments = parser.parse_args()
    problem = macro(arguments.table)
    front = true_front(problem)
    rows = []
    for algorithm, margins in MARGINS.items():
        for margin in margins:
            searches = [
                search(problem, front, algorithm, margin, seed, arguments.candidates)
                for seed in range(arguments.seeds)
            ]
            rows.append({"algorithm": algorithm, "margin": margin, **summary(searches)})
            print(rows[-1], flush=True)
    show(rows, arguments)
    recorded = [
        {"run": run.resolve().name, "margin": margin, "pairs": pairs}
        | judged_again(run, Pruning(margin, pairs), arguments.orders)
        for run in arguments.runs
        for margin, pairs in RECORDED
    ]
    for row in recorded:
        print(row)
    settings = {name: vars(arguments)[name] for name in ("seeds", "candidates", "orders")}
    results = {"settings": settings, "rows": rows, "recorded": recorded}
    print(f"written to {write_results('pruning', results)}")


def judged_again(run: Path, pruning: Pruning, orders: int) -> dict[str, Any]:
    """A run's measured trials in random orders, each judged by those that were trained by then."""
    history = read(run)
    objectives = objectives_of(history)
    trials = [t for t in history.trials() if isinstance(t.outcome, Measured)]
    front = {t.candidate.id for t in pareto.front(trials, objectives)}
    chains = history.header["space"]["monotone"]
    judge = Judge(objectives, pruning, None, chains)
    pruned: list[int] = []
    for seed in range(orders):
        finished: list[Trial] = []
        for index in np.random.default_rng(seed).permutation(len(trials)):
            trial = trials[index]
            assert trial.outcome is not None
            line = {"epoch": 0, "latency_ms": trial.outcome.metrics["latency_ms"]}
            if judge.verdict(trial.candidate, [line], finished):
                pruned.append(trial.candidate.id)
            else:
                finished.append(trial)
    trained = [(t.candidate.sample, -t.outcome.metrics["map"]) for t in trials if t.outcome]
    above = excesses(trained, chains)
    return {
        "trials": len(trials),
        "pairs_that_compare": len(above),
        "pairs_that_break_the_order": sum(excess > 0 for excess in above),
        "largest_excess": max(0.0, *above),
        "not_trained": len(pruned) / (orders * len(trials)),
        "front_met": orders * len(front),
        "front_pruned": sum(number in front for number in pruned),
    }


def search(
    problem: Problem,
    front: set[tuple[int, ...]],
    algorithm: str,
    margin: float | None,
    seed: int,
    candidates: int,
) -> dict[str, float]:
    """One search: what it trained, what it pruned, what that cost."""
    optimizer = Optimizer(
        problem.encoding,
        problem.objectives,
        algorithm=algorithm,
        population=POPULATION,
        seed=seed,
    )
    judge = (
        None
        if margin is None
        else Judge(
            problem.objectives,
            Pruning(margin),
            None,
            {choice.label: [choice.options] for choice in problem.encoding.choices},
        )
    )
    trained: list[Trial] = []
    pruned = met = lost = 0
    for _ in range(candidates):
        candidate = optimizer.ask()
        assert candidate is not None
        index = tuple(problem.encoding.index(candidate.sample).tolist())
        outcome = problem.outcome(candidate.sample)
        line = {"epoch": 0, "epochs": 1, "cost": outcome.metrics["cost"]}
        verdict = None if judge is None else judge.verdict(candidate, [line], trained)
        optimizer.tell(candidate.id, verdict or outcome)
        met += index in front
        if verdict is None:
            trained.append(Trial(candidate, outcome, 0.0, 1.0))
        else:
            pruned += 1
            lost += index in front
    rows = np.array([problem.row(problem.encoding.index(t.candidate.sample)) for t in trained])
    return {
        "pruned": pruned / candidates,
        "volume": volume(rows) / problem.volume,
        "met": met,
        "lost": lost,
    }


def true_front(problem: Problem) -> set[tuple[int, ...]]:
    indices = list(problem.rows)
    rows = np.array([problem.rows[index] for index in indices])
    return {indices[i] for i in pareto.non_dominated(rows)}


def summary(searches: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means with bootstrapped 95 % intervals; members of the front over all searches."""
    rng = np.random.default_rng(0)
    result: dict[str, Any] = {}
    for name in ("pruned", "volume"):
        values = np.array([one[name] for one in searches])
        draws = rng.choice(values, (2000, len(values))).mean(axis=1)
        interval = [float(q) for q in np.quantile(draws, [0.025, 0.975])]
        result[name] = {"mean": float(values.mean()), "interval": interval}
    met, lost = (int(sum(one[name] for one in searches)) for name in ("met", "lost"))
    return result | {"front_proposed": met, "front_pruned": lost}


def show(rows: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    title = f"{arguments.candidates} candidates, {arguments.seeds} seeds"
    table = Table(title=title)
    for name in ("algorithm", "margin", "not trained", "hypervolume", "true front: pruned"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = []
        for name in ("pruned", "volume"):
            low, high = row[name]["interval"]
            cells.append(f"{row[name]['mean']:.1%} [{low:.1%}, {high:.1%}]")
        cells.append(f"{row['front_pruned']} of {row['front_proposed']}")
        margin = "no pruning" if row["margin"] is None else f"{row['margin']:g}"
        table.add_row(row["algorithm"], margin, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
