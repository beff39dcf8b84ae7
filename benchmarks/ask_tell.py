"""What the engine itself costs: one ask and one tell, up to 1,000 results, against plain pymoo.

    python benchmarks/ask_tell.py

Ours is the steady-state optimiser on StructuralSpace with its constraints, its refusal of
duplicates and its records; the peer is pymoo's generational NSGA-II on the same index vectors,
without any of these. Outcomes are drawn at random. Prints milliseconds for each result, over
several seeds, and the ratio; writes benchmarks/results/ask_tell.json.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from common import write_results
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.ux import UX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.problems.static import StaticProblem
from rich.console import Console
from rich.table import Table

from smnas.encoding import Encoding
from smnas.objectives.vector import Objectives
from smnas.optimizer import Optimizer
from smnas.records import Measured
from smnas.spaces import open_space

RESULTS, POPULATION, SEEDS = 1000, 20, range(5)


def main() -> None:
    encoding = Encoding.of(open_space("search_spaces.structural:StructuralSpace"))
    rows = [measure(encoding, seed) for seed in SEEDS]
    table = Table(title=f"One ask and tell, {RESULTS} results, population {POPULATION}")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" for value in row.values()))
    Console(width=140).print(table)
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    print(f"written to {write_results('ask_tell', {'rows': rows, 'median': medians})}")


def measure(encoding: Encoding, seed: int) -> dict[str, Any]:
    ours = time_ours(encoding, seed)
    peer = time_pymoo(encoding, seed)
    return {
        "seed": seed,
        "ours_median_ms": statistics.median(ours),
        "ours_p99_ms": float(np.quantile(ours, 0.99)),
        "ours_last_100_median_ms": statistics.median(ours[-100:]),
        "pymoo_mean_ms": peer,
        "mean_ratio": statistics.fmean(ours) / peer,
    }


def time_ours(encoding: Encoding, seed: int) -> list[float]:
    """Milliseconds of each ask and tell together."""
    objectives = Objectives(
        {"latency_ms": "minimize", "map": "maximize"}, {"latency_ms": 1.0, "map": 0.0}
    )
    optimizer = Optimizer(encoding, objectives, population=POPULATION, seed=seed)
    rng, times = np.random.default_rng(seed), []
    for _ in range(RESULTS):
        began = time.perf_counter()
        candidate = optimizer.ask()
        asked = time.perf_counter() - began
        assert candidate is not None
        latency, accuracy = rng.random(2)
        outcome = Measured({"latency_ms": latency, "map": accuracy})
        began = time.perf_counter()
        optimizer.tell(candidate.id, outcome)
        times.append(1e3 * (asked + time.perf_counter() - began))
    return times


def time_pymoo(encoding: Encoding, seed: int) -> float:
    """Mean milliseconds a result of pymoo's own generational loop."""
    problem = Problem(
        n_var=len(encoding.choices), n_obj=2, xl=0, xu=encoding.n_options - 1, vtype=int
    )
    algorithm = NSGA2(
        pop_size=POPULATION,
        sampling=IntegerRandomSampling(),
        crossover=UX(),
        mutation=PM(vtype=float, repair=RoundingRepair()),
        seed=seed,
    )
    algorithm.termination = NoTermination()
    algorithm.setup(problem)
    rng, seconds, told = np.random.default_rng(seed), 0.0, 0
    while told < RESULTS:
        began = time.perf_counter()
        individuals = algorithm.ask()
        seconds += time.perf_counter() - began
        static = StaticProblem(problem, F=rng.random((len(individuals), 2)))
        algorithm.evaluator.eval(static, individuals)
        began = time.perf_counter()
        algorithm.tell(infills=individuals)
        seconds += time.perf_counter() - began
        told += len(individuals)
    return 1e3 * seconds / told


if __name__ == "__main__":
    main()
