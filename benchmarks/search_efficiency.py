"""How many evaluations an algorithm needs: every one of ours against random search, pymoo, Optuna.

    python benchmarks/search_efficiency.py [--macro TABLE.csv] [--problems ...] [--seeds 20]

Problems: NAS-Bench-Macro, if its table is given; closed forms over StructuralSpace; an emulation of
our search on blood cells. Only distinct legal samples count as evaluations. For each algorithm: the
median number of evaluations to 90, 95 and 99 % of the true hypervolume and the mean area under its
curve over the first 200, with bootstrapped 95 % intervals and as ratios to random search and to
Optuna's NSGA-II. Every finished search is kept in benchmarks/results/search_efficiency.jsonl and
not run again; prints tables, writes search_efficiency.json and .png.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_results
from competitors import OURS, PEERS, POPULATION, start
from matplotlib.figure import Figure
from problems import Problem, bccd, detector, macro, volume
from rich.console import Console
from rich.table import Table

from smnas import pareto
from smnas.errors import SpaceExhausted

LEVELS = (0.90, 0.95, 0.99)
BUDGET = 600
"""Evaluations after which a search is given up; one that reached 99 % is over, too."""

AREA = 200
"""Evaluations under whose curve the area is taken; a search that is over keeps its last value."""

MARKS = (*range(5, 100, 5), *range(100, BUDGET + 1, 20))
"""Evaluations at which the curve is kept."""

BUDGETS = {"surrogate": 200, "optuna-tpe": 150, "optuna-tpe-multivariate": 300}
"""Those that think long for each evaluation get fewer."""

MOST_ASKS = 20
"""A search that proposes so many times its budget what is known or illegal is given up, too."""

SLOW_ASKS = {"optuna-tpe": 4, "optuna-tpe-multivariate": 4}
"""The same for one whose asks cost ever more and are mostly known."""


def main() -> None:
    arguments = _arguments()
    problems = {"detector": detector, "bccd": bccd}
    if arguments.macro:
        problems = {"macro": partial(macro, arguments.macro), **problems}
    else:
        print("NAS-Bench-Macro is left out: --macro PATH names its table")
    problems = {k: v for k, v in problems.items() if k in (arguments.problems or problems)}
    log = RESULTS / "search_efficiency.jsonl"
    done = {(r["problem"], r["algorithm"], r["seed"]) for r in _read(log)}
    names = arguments.algorithms or [*OURS, *PEERS]
    tasks = [
        (problem, name, seed)
        for problem in problems
        for seed in range(arguments.seeds)
        for name in names
        if (problem, name, seed) not in done
    ]
    _run(tasks, arguments.macro, arguments.workers, log)
    wanted = [r for r in _read(log) if r["problem"] in problems and r["seed"] < arguments.seeds]
    summary = {name: _summary(wanted, name) for name in problems}
    about = {name: make().about for name, make in problems.items()}
    for name, rows in summary.items():
        _print(f"{name}: {about[name]}", rows)
    settings = {"population": POPULATION, "budget": BUDGET, "budgets": BUDGETS, "area": AREA}
    results = {"settings": settings, "problems": about, "summary": summary}
    print(f"written to {write_results('search_efficiency', results)}")
    # last, because a changed picture would make the source tree look changed
    _plot(wanted, about, RESULTS / "search_efficiency.png")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluations that each algorithm needs.")
    parser.add_argument("--macro", type=Path, help="table of NAS-Bench-Macro (arch,acc_mean,flops)")
    parser.add_argument("--problems", nargs="*", choices=["macro", "detector", "bccd"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--algorithms", nargs="*", choices=[*OURS, *PEERS])
    return parser.parse_args()


def _read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


# -- searches -----------------------------------------------------------------------------------


def _run(
    tasks: Sequence[tuple[str, str, int]], table: Path | None, workers: int, log: Path
) -> None:
    began = time.monotonic()
    with ProcessPoolExecutor(workers) as pool:
        waiting = [pool.submit(_search, *task, table) for task in tasks]
        for number, future in enumerate(as_completed(waiting), start=1):
            with log.open("a") as file:
                file.write(json.dumps(future.result()) + "\n")
            if number % 20 == 0:
                print(
                    f"{number} of {len(tasks)} after {time.monotonic() - began:.0f} s", flush=True
                )


@cache
def _problem(name: str, table: Path | None) -> Problem:
    if name == "macro":
        assert table is not None
        return macro(table)
    return {"detector": detector, "bccd": bccd}[name]()


def _search(name: str, algorithm: str, seed: int, table: Path | None) -> dict[str, Any]:
    """One search: part of the true hypervolume after each distinct evaluation."""
    problem = _problem(name, table)
    budget = BUDGETS.get(algorithm, BUDGET)
    began = time.process_time()
    curve = _curve(problem, algorithm, seed, budget)
    reached = {str(level): _first(curve, level) for level in LEVELS}
    held = [curve[min(n, len(curve)) - 1] for n in MARKS if n <= budget or max(curve) >= LEVELS[-1]]
    area = float(np.mean([curve[min(n, len(curve) - 1)] for n in range(AREA)]))
    return {
        "problem": name,
        "algorithm": algorithm,
        "seed": seed,
        "reached": reached,
        "budget": budget,
        "area": round(area, 5),
        "curve": [round(value, 4) for value in held],
        "seconds": round(time.process_time() - began, 2),
    }


def _curve(problem: Problem, algorithm: str, seed: int, budget: int) -> list[float]:
    search = start(algorithm, problem, seed)
    seen: set[bytes] = set()
    best, curve, asks = np.empty((0, 2)), [0.0][:0], 0
    index = next(search)
    most = SLOW_ASKS.get(algorithm, MOST_ASKS) * budget
    while len(curve) < budget and asks < most:
        row, asks = problem.row(index), asks + 1
        if index.tobytes() not in seen:
            seen.add(index.tobytes())
            best = np.vstack([best, row])
            best = best[pareto.non_dominated(best)]
            curve.append(volume(best) / problem.volume)
            if curve[-1] >= LEVELS[-1]:
                break
        try:
            index = search.send(row)
        except SpaceExhausted:
            break
    return curve


def _first(curve: Sequence[float], level: float) -> int | None:
    return next((n for n, value in enumerate(curve, start=1) if value >= level), None)


# -- statistics ---------------------------------------------------------------------------------


def _summary(runs: Sequence[Mapping[str, Any]], problem: str) -> dict[str, dict[str, Any]]:
    """For each algorithm medians, mean area, intervals and ratios; fastest to 95 % first."""
    own = [r for r in runs if r["problem"] == problem]
    names = {r["algorithm"]: [s for s in own if s["algorithm"] == r["algorithm"]] for r in own}
    rows = {name: _row(searches) for name, searches in names.items()}
    for row in rows.values():
        for other in ("random", "optuna-nsga2"):
            if other in rows:
                row[f"ratio_to_{other}"] = _ratios(row, rows[other])
    return dict(sorted(rows.items(), key=lambda item: item[1]["0.95"]["median"] or math.inf))


def _row(searches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    row: dict[str, Any] = {"seeds": len(searches), "budget": searches[0]["budget"]}
    for level in map(str, LEVELS):
        values = np.array([s["reached"][level] or np.inf for s in searches], dtype=float)
        row[level] = {
            "median": _number(_median(values)),
            "interval": _interval(values, _median, rng),
        }
    areas = np.array([s["area"] for s in searches])
    row["area"] = {
        "mean": round(float(areas.mean()), 4),
        "interval": _interval(areas, np.mean, rng),
    }
    row["seconds"] = round(float(np.mean([s["seconds"] for s in searches])), 2)
    return row


def _median(values: np.ndarray) -> float:
    """The upper one of the two in the middle, so that no number stands between 200 and never."""
    return float(np.sort(values)[len(values) // 2])


def _interval(values: np.ndarray, statistic: Any, rng: np.random.Generator) -> list[float | None]:
    """Bootstrapped 95 % interval; None where a search did not get there."""
    draws = [statistic(rng.choice(values, len(values))) for _ in range(2000)]
    return [_number(float(q)) for q in np.quantile(draws, [0.025, 0.975], method="nearest")]


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _ratios(row: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float | str | None]:
    """Evaluations by those of another; a text where that one did not get there."""
    ratios: dict[str, float | str | None] = {}
    for level in map(str, LEVELS):
        mine, theirs = row[level]["median"], other[level]["median"]
        if mine is None:
            ratios[level] = None
        elif theirs is None:
            ratios[level] = f"< {mine / other['budget']:.3f}"
        else:
            ratios[level] = round(mine / theirs, 3)
    ratios["area"] = round(row["area"]["mean"] / other["area"]["mean"], 3)
    return ratios


def _print(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    levels = [str(level) for level in LEVELS]
    table = Table(title=title)
    columns = ["algorithm", "seeds", *(f"to {float(v):.0%}" for v in levels), f"area to {AREA}"]
    for name in [*columns, "95 %: by random", "by Optuna NSGA-II", "CPU s"]:
        table.add_column(name, justify="left" if name == "algorithm" else "right")
    for name, row in rows.items():
        cells = [_text(row[level], row["budget"]) for level in levels]
        low, high = row["area"]["interval"]
        cells.append(f"{row['area']['mean']:.3f} [{low:.3f}, {high:.3f}]")
        for other in ("random", "optuna-nsga2"):
            ratio = row.get(f"ratio_to_{other}", {}).get("0.95")
            cells.append("-" if ratio is None else str(ratio))
        table.add_row(name, str(row["seeds"]), *cells, str(row["seconds"]))
    Console(width=160).print(table)


def _text(cell: Mapping[str, Any], budget: int) -> str:
    def one(value: float | None) -> str:
        return f">{budget}" if value is None else f"{value:.0f}"

    low, high = cell["interval"]
    return f"{one(cell['median'])} [{one(low)}, {one(high)}]"


def _plot(runs: Iterable[Mapping[str, Any]], about: Mapping[str, str], path: Path) -> None:
    """Median curve and the middle half of the seeds, one panel a problem."""
    figure = Figure(figsize=(6 * len(about), 5), layout="constrained")
    axes = figure.subplots(1, len(about), sharey=True, squeeze=False)[0]
    everything = list(runs)
    for axis, problem in zip(axes, about, strict=True):
        for number, name in enumerate([*OURS, *PEERS]):
            curves = [
                r["curve"] for r in everything if (r["problem"], r["algorithm"]) == (problem, name)
            ]
            if curves:
                _draw(axis, name, curves, f"C{number % 10}")
        axis.set(title=problem, xlabel="distinct evaluations", xscale="log", ylim=(0.4, 1.01))
        axis.axhline(0.95, color="gray", linewidth=0.5)
    axes[0].set_ylabel("part of the true hypervolume")
    axes[-1].legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=110)


def _draw(axis: Any, name: str, curves: Sequence[Sequence[float]], color: str) -> None:
    length = min(map(len, curves))
    low, middle, high = np.quantile([c[:length] for c in curves], [0.25, 0.5, 0.75], axis=0)
    style = "--" if name in PEERS else ":" if name == "random" else "-"
    axis.plot(MARKS[:length], middle, style, color=color, label=name)
    if name == "surrogate" or name in PEERS:
        axis.fill_between(MARKS[:length], low, high, color=color, alpha=0.15)


if __name__ == "__main__":
    main()
