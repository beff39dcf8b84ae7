"""Pareto ranks and hypervolume (pymoo's), and a run as a pymoo `Result`.

Works on minimised rows, as `objectives.vector` makes them. Imports no torch; the algorithms
themselves are imported by `optimizer` alone.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from pymoo.core.algorithm import Algorithm
from pymoo.core.individual import Individual
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.result import Result
from pymoo.indicators.hv import HV
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from scipy.stats import norm, qmc

from smnas.encoding import Encoding
from smnas.journal import Trial
from smnas.objectives.vector import Objectives
from smnas.records import Measured

DIRECTIONS = 128
"""Directions over which an expected gain of hypervolume is averaged."""

SPREADS = {"latency_ms": "latency_iqr_ms"}
"""Metrics that come with an interquartile range, and its name; all others are taken as exact."""


def non_dominated(rows: np.ndarray) -> np.ndarray:
    """Indices of the rows (`n x m`, minimised) that no other row dominates, in their own order.

    Equal rows do not dominate each other, so all of them are kept. Empty in, empty out.
    """
    if len(rows) == 0:
        return np.array([], dtype=int)
    return np.sort(NonDominatedSorting().do(rows, only_non_dominated_front=True)).astype(int)


def non_dominated_beyond_noise(rows: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Indices of the rows that no other row dominates by more than the noise of both, in order.

    What is no worse in any objective and better in one dominates another row only where it is
    ahead by at least the sum of both rows' noise, in every objective. So all that `non_dominated`
    keeps is kept, and nothing else without noise.

    Args:
        rows: `n x m`, minimised.
        noise: `n x m`, at least 0: half the width of what a value may be by chance.
    """

    def beaten(row: np.ndarray, own: np.ndarray) -> bool:
        ahead = (rows + noise <= row - own).all(axis=1)
        return bool((ahead & (rows < row).any(axis=1)).any())

    kept = [not beaten(*pair) for pair in zip(rows, noise, strict=True)]
    return np.flatnonzero(kept)


def hypervolume(rows: np.ndarray, reference: np.ndarray) -> float:
    """Volume that rows (`n x m`, minimised) dominate within the reference point (`m`); 0 for
    none.
    """
    if len(rows) == 0:
        return 0.0
    return float(HV(ref_point=reference)(rows))


def knee(rows: np.ndarray) -> int | None:
    """The row of a front where a little more of one objective stops to buy much of another.

    The least sum of objectives, each scaled from its best in the front (0) to its worst (1): with
    two objectives the row farthest from the line through both ends (Das 1999). None where that is
    an end of the front, so that nothing bulges, and for less than three rows.

    Args:
        rows: a front, `n x m`, minimised.
    """
    if len(rows) < 3:
        return None
    low, high = rows.min(axis=0), rows.max(axis=0)
    scaled = (rows - low) / np.where(high > low, high - low, 1.0)
    best = int(scaled.sum(axis=1).argmin())
    return None if (scaled[best] == 0).any() else best


def coverage(rows: np.ndarray, others: np.ndarray) -> float:
    """Share of the other rows that some row is at least as good as in every objective (Zitzler and
    Thiele 1999, C metric); both `n x m`, minimised; 0 where there are no others.
    """
    if len(others) == 0 or len(rows) == 0:
        return 0.0
    return float((rows[:, None] <= others[None]).all(axis=2).any(axis=0).mean())


def ranked(rows: np.ndarray) -> np.ndarray:
    """Indices of all rows (`n x m`, minimised), the first front first, in their own order within
    a front.
    """
    if len(rows) == 0:
        return np.array([], dtype=int)
    return np.concatenate([np.sort(front) for front in NonDominatedSorting().do(rows)]).astype(int)


def expected_gains(draws: np.ndarray, rows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Hypervolume that each of several uncertain points adds to rows, on average.

    Up to a constant factor: hypervolume is the expected value, over directions, of the best
    Chebyshev score of any row (Zhang & Golovin 2020), so a gain needs no volume to be computed,
    and any number of objectives costs the same.

    Args:
        draws: `s x n x m`, minimised: what the `n` points may turn out to be.
        rows: `k x m`, minimised: what is there.
        reference: `m`.

    Returns:
        `n` gains, at least 0.
    """
    span = reference - rows.min(axis=0, initial=np.inf)
    span = np.where((span > 0) & np.isfinite(span), span, 1.0)
    best = _scores(rows, reference, span).max(axis=0, initial=0.0)
    total = np.zeros(draws.shape[1])
    for draw in draws:
        total += np.clip(_scores(draw, reference, span) - best, 0.0, None).mean(axis=1)
    return total / len(draws)


def _scores(rows: np.ndarray, reference: np.ndarray, span: np.ndarray) -> np.ndarray:
    """Chebyshev score of each row in each direction, `n x DIRECTIONS`, raised to the power `m`."""
    better = np.clip((reference - rows) / span, 0.0, None)
    score = np.full((len(rows), DIRECTIONS), np.inf)
    for values, parts in zip(better.T, _directions(len(reference)), strict=True):
        np.minimum(score, values[:, None] / parts, out=score)
    return score ** len(reference)


@cache
def _directions(m: int) -> np.ndarray:
    """Unit vectors spread evenly over the positive part of a sphere, `m x DIRECTIONS`."""
    uniform = qmc.Sobol(m, scramble=False).fast_forward(1).random(DIRECTIONS)
    normal = norm.ppf(0.5 + uniform / 2)
    return (normal / np.linalg.norm(normal, axis=1, keepdims=True)).T


def measured(trials: list[Trial], objectives: Objectives) -> tuple[list[Trial], np.ndarray]:
    """The trials that have every objective, and their minimised rows (`n x m`)."""
    kept = [
        trial
        for trial in trials
        if isinstance(trial.outcome, Measured) and not objectives.missing(trial.outcome.metrics)
    ]
    rows = [objectives.minimised(t.outcome.metrics) for t in kept if t.outcome is not None]
    return kept, np.array(rows).reshape(len(kept), len(objectives.names))


def front(trials: list[Trial], objectives: Objectives) -> list[Trial]:
    """The Pareto set of a run's trials, sorted by the first objective."""
    kept, rows = measured(trials, objectives)
    best = non_dominated(rows)
    return [kept[i] for i in best[np.argsort(rows[best, 0], kind="stable")]]


def front_beyond_noise(trials: list[Trial], objectives: Objectives) -> list[Trial]:
    """The trials that no other one is sure to beat, sorted by the first objective.

    A trial's latency is sure to be lower than another's where the middle halves of their timed
    calls do not overlap: the medians differ by more than the sum of half the interquartile ranges.
    """
    kept, rows = measured(trials, objectives)
    best = non_dominated_beyond_noise(rows, _noise(kept, objectives))
    return [kept[i] for i in best[np.argsort(rows[best, 0], kind="stable")]]


def _noise(trials: list[Trial], objectives: Objectives) -> np.ndarray:
    """Half the interquartile range of each objective of each trial, 0 where none was measured."""
    spreads = [SPREADS.get(name, "") for name in objectives.names]
    metrics = [trial.outcome.metrics for trial in trials if isinstance(trial.outcome, Measured)]
    halves = [[one.get(name, 0.0) / 2 for name in spreads] for one in metrics]
    return np.array(halves).reshape(len(trials), len(spreads))


def hypervolume_curve(trials: list[Trial], objectives: Objectives) -> list[float]:
    """Hypervolume after each finished trial, in the order of finishing (failures repeat the
    value).
    """
    finished = sorted((t for t in trials if t.told is not None), key=lambda t: t.told or 0.0)
    curve, rows, value = [], np.empty((0, len(objectives.names))), 0.0
    for trial in finished:
        _, row = measured([trial], objectives)
        if len(row):
            rows = np.vstack([rows, row])
            rows = rows[non_dominated(rows)]
            value = hypervolume(rows, objectives.reference_point)
        curve.append(value)
    return curve


def result(stages: list[list[Trial]], objectives: Objectives, encoding: Encoding) -> Result:
    """A pymoo `Result` from growing lists of finished trials, the last one being the whole run."""
    individuals: dict[int, Individual] = {}
    history = [_snapshot(trials, objectives, encoding, individuals) for trials in stages]
    last = history[-1]
    outcome = Result()
    outcome.algorithm, outcome.history = last, history
    outcome.pop, outcome.opt = last.pop, last.opt
    outcome.X, outcome.F, outcome.CV, outcome.G = last.opt.get("X", "F", "CV", "G")
    outcome.problem = last.problem
    outcome.data = {
        "objectives": objectives.names,
        "choices": {choice.label: choice.options for choice in encoding.choices},
    }
    return outcome


def _snapshot(
    trials: list[Trial],
    objectives: Objectives,
    encoding: Encoding,
    individuals: dict[int, Individual],
) -> Algorithm:
    kept, rows = measured(trials, objectives)
    for trial, row in zip(kept, rows, strict=True):
        if trial.candidate.id not in individuals:
            individuals[trial.candidate.id] = _individual(trial, row, encoding)
    algorithm = Algorithm()
    algorithm.problem = Problem(
        n_var=len(encoding.choices),
        n_obj=len(objectives.names),
        xl=np.zeros(len(encoding.choices)),
        xu=encoding.n_options - 1,
        vtype=int,
    )
    algorithm.pop = Population.create(*(individuals[t.candidate.id] for t in kept))
    algorithm.opt = algorithm.pop[non_dominated(rows)]
    algorithm.evaluator.n_eval = len(trials)
    algorithm.n_iter = len(trials)
    return algorithm


def _individual(trial: Trial, row: np.ndarray, encoding: Encoding) -> Individual:
    individual = Individual(X=encoding.index(trial.candidate.sample), F=row, G=np.zeros(0))
    individual.set("id", trial.candidate.id)
    return individual
