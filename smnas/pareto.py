"""Pareto ranks and hypervolume (pymoo's), and a run as a pymoo `Result`.

Works on minimised rows, as `objectives.vector` makes them. Imports no torch; the algorithms
themselves are imported by `optimizer` alone.
"""

from __future__ import annotations

import numpy as np
from pymoo.core.algorithm import Algorithm
from pymoo.core.individual import Individual
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.result import Result
from pymoo.indicators.hv import HV
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from smnas.encoding import Encoding
from smnas.journal import Trial
from smnas.objectives.vector import Objectives
from smnas.records import Measured


def non_dominated(rows: np.ndarray) -> np.ndarray:
    """Indices of the rows (`n x m`, minimised) that no other row dominates, in their own order.

    Equal rows do not dominate each other, so all of them are kept. Empty in, empty out.
    """
    if len(rows) == 0:
        return np.array([], dtype=int)
    return np.sort(NonDominatedSorting().do(rows, only_non_dominated_front=True)).astype(int)


def hypervolume(rows: np.ndarray, reference: np.ndarray) -> float:
    """Volume that rows (`n x m`, minimised) dominate within the reference point (`m`); 0 for
    none.
    """
    if len(rows) == 0:
        return 0.0
    return float(HV(ref_point=reference)(rows))


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
