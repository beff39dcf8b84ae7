"""Who takes part in `search_efficiency.py`: our algorithms by name, pymoo's own loop, Optuna's.

Each is a generator of index vectors that is sent the scaled row of what it asked. All get the same
space; illegal samples are never evaluated and cost nobody anything.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from problems import Problem
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem as PymooProblem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling

from smnas.algorithms import ALGORITHMS
from smnas.optimizer import Optimizer
from smnas.records import Measured

POPULATION = 20

Search = Generator[np.ndarray, np.ndarray, None]
"""Yields an index vector (`d`), legal; is sent its row."""

OURS = ("surrogate", *ALGORITHMS, "random")
PEERS = ("pymoo-nsga2", "optuna-nsga2", "optuna-tpe", "optuna-tpe-multivariate")


def start(name: str, problem: Problem, seed: int) -> Search:
    """A fresh search by one competitor."""
    if name in OURS:
        return _ours(name, problem, seed)
    if name == "pymoo-nsga2":
        return _pymoo(problem, seed)
    samplers: dict[str, BaseSampler] = {
        "optuna-nsga2": NSGAIISampler(population_size=POPULATION, seed=seed),
        "optuna-tpe": TPESampler(seed=seed),
        "optuna-tpe-multivariate": TPESampler(seed=seed, multivariate=True),
    }
    return _optuna(samplers[name], problem)


def _ours(name: str, problem: Problem, seed: int) -> Search:
    optimizer = Optimizer(
        problem.encoding, problem.objectives, algorithm=name, population=POPULATION, seed=seed
    )
    while (candidate := optimizer.ask()) is not None:
        cost, loss = yield problem.encoding.index(candidate.sample)
        optimizer.tell(candidate.id, Measured({"cost": cost, "quality": 1 - loss}))


def _pymoo(problem: Problem, seed: int) -> Search:
    """Generational NSGA-II as pymoo's manual sets it up for integers; rules as a constraint."""
    encoding = problem.encoding
    algorithm = NSGA2(
        pop_size=POPULATION,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
        seed=seed,
    )
    algorithm.termination = NoTermination()
    upper = encoding.n_options - 1
    algorithm.setup(
        PymooProblem(n_var=len(upper), n_obj=2, n_ieq_constr=1, xl=0 * upper, xu=upper, vtype=int)
    )
    while True:
        offspring = algorithm.ask()
        algorithm.termination.force_termination = False
        if offspring is None:
            continue
        for individual in offspring:
            index = individual.X.astype(int)
            broken = len(encoding.violated(index))
            individual.F = np.ones(2) if broken else (yield index)
            individual.G, individual.H = np.array([float(broken)]), np.zeros(0)
            individual.evaluated.update({"F", "G", "H"})
        algorithm.tell(infills=offspring)


def _optuna(sampler: BaseSampler, problem: Problem) -> Search:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    encoding = problem.encoding
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    space: dict[str, BaseDistribution] = {
        choice.label: (
            IntDistribution(0, len(choice.options) - 1)
            if choice.ordinal
            else CategoricalDistribution(list(range(len(choice.options))))
        )
        for choice in encoding.choices
    }
    while True:
        trial = study.ask(space)
        index = np.array([trial.params[choice.label] for choice in encoding.choices])
        broken = len(encoding.violated(index))
        trial.set_constraint("broken rules", float(broken))
        row = np.ones(2) if broken else (yield index)
        study.tell(trial, [float(value) for value in row])
