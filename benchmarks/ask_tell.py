"""What the engine itself costs: one ask and one tell, against plain pymoo, and as results grow.

    python benchmarks/ask_tell.py [--most 100000]

Ours is the steady-state optimiser on StructuralSpace with its constraints, its refusal of
duplicates and its records; the peer is pymoo's generational NSGA-II on the same index vectors,
without any of these. Outcomes are drawn at random. Prints milliseconds for each result, over
several seeds, and the ratio; then, on a space with enough samples, the same from 10^2 to 10^5
results, and for the surrogate at 100 and 500, where outcomes follow the sample, because it only
models what it can know; `most ms` is then a result at which it chooses its models again. Processor
time counts, so that others change little.
Writes benchmarks/results/ask_tell.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
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
WINDOW = 100
"""Results at the end of a number of them, over which the cost is taken."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Milliseconds of one ask and one tell.")
    parser.add_argument("--most", type=int, default=100_000, help="results, a power of ten")
    most = parser.parse_args().most
    encoding = Encoding.of(open_space("search_spaces.structural:StructuralSpace"))
    rows = [measure(encoding, seed) for seed in SEEDS]
    table = Table(title=f"One ask and tell, {RESULTS} results, population {POPULATION}")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" for value in row.values()))
    Console(width=140).print(table)
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    marks = [10**k for k in range(2, 6) if 10**k <= most]
    growth = {"nsga2": grow("nsga2", marks), "surrogate": grow("surrogate", [100, 500])}
    _print_growth(growth)
    results = {"rows": rows, "median": medians, "growth": growth}
    print(f"written to {write_results('ask_tell', results)}")


def grow(algorithm: str, marks: Sequence[int]) -> list[dict[str, Any]]:
    """Cost of the last results of numbers of them, on 12 ordinal and 4 nominal choices."""
    choices: dict[str, list[Any]] = {f"size{k}": list(range(5)) for k in range(12)}
    choices |= {f"kind{k}": list("abc") for k in range(4)}
    encoding, times, rows = Encoding.from_choices(choices), [], []
    for number, one in enumerate(_times(encoding, 0, algorithm, marks[-1]), start=1):
        times.append(one)
        if number in marks:
            last = times[-WINDOW:]
            row = {"results": number, "mean_ms": statistics.fmean(last), "most_ms": max(last)}
            rows.append(row)
    return rows


def _print_growth(growth: dict[str, list[dict[str, Any]]]) -> None:
    table = Table(title=f"One ask and tell as results grow, the last {WINDOW} of each")
    for name in ("algorithm", "results", "mean ms", "most ms"):
        table.add_column(name, justify="right")
    for algorithm, rows in growth.items():
        for row in rows:
            values = (f"{row[key]:.3g}" for key in ("mean_ms", "most_ms"))
            table.add_row(algorithm, str(row["results"]), *values)
    Console(width=140).print(table)


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
    return list(_times(encoding, seed, "nsga2", RESULTS))


def _times(encoding: Encoding, seed: int, algorithm: str, results: int) -> Iterator[float]:
    objectives = Objectives(
        {"latency_ms": "minimize", "map": "maximize"}, {"latency_ms": 10.0, "map": 0.0}
    )
    optimizer = Optimizer(
        encoding, objectives, algorithm=algorithm, population=POPULATION, seed=seed
    )
    rng = np.random.default_rng(seed)
    for _ in range(results):
        began = time.process_time()
        candidate = optimizer.ask()
        asked = time.process_time() - began
        assert candidate is not None
        # half chance, half what the sample says, so that there is something to be learned
        latency, accuracy = rng.random(2) + encoding.index(candidate.sample)[:2] / 4
        outcome = Measured({"latency_ms": latency, "map": accuracy})
        began = time.process_time()
        optimizer.tell(candidate.id, outcome)
        yield 1e3 * (asked + time.process_time() - began)


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
        began = time.process_time()
        individuals = algorithm.ask()
        seconds += time.process_time() - began
        static = StaticProblem(problem, F=rng.random((len(individuals), 2)))
        algorithm.evaluator.eval(static, individuals)
        began = time.process_time()
        algorithm.tell(infills=individuals)
        seconds += time.process_time() - began
        told += len(individuals)
    return 1e3 * seconds / told


if __name__ == "__main__":
    main()
