"""The algorithms by name, each as an `Engine`: told individuals in, offspring out.

The only module that imports pymoo's algorithms. What they draw, mate and keep is pymoo's; here they
get our operators and lose what would end a search or tie it to a generation. Imports no torch.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.algorithms.moo.moead import NeighborhoodSelection, default_decomp
from pymoo.algorithms.moo.rvea import RVEA
from pymoo.core.decomposition import Decomposition
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.termination.max_gen import MaximumGenerationTermination
from pymoo.util.ref_dirs import get_reference_directions

from smnas.encoding import Encoding
from smnas.errors import ConfigError, MissingLibraryError, check_names, nearest
from smnas.operators import LegalRepair, SampleCrossover, SampleMutation, Unseen

ALGORITHMS = {
    "nsga2": "pymoo.algorithms.moo.nsga2:NSGA2",
    "nsga3": "pymoo.algorithms.moo.nsga3:NSGA3",
    "unsga3": "pymoo.algorithms.moo.unsga3:UNSGA3",
    "agemoea2": "pymoo.algorithms.moo.age2:AGEMOEA2",
    "smsemoa": "pymoo.algorithms.moo.sms:SMSEMOA",
    "rvea": "smnas.algorithms:SteadyRVEA",
    "moead": "smnas.algorithms:SteadyMOEAD",
    "spea2": "pymoo.algorithms.moo.spea2:SPEA2",
}
"""Names of evolutionary algorithms; any `package.module:Class` of a pymoo genetic algorithm works
too.
"""

OTHERS = ("random", "surrogate")
"""Names of the algorithms that are no evolution."""

_OURS = {
    "pop_size", "n_offsprings", "sampling", "crossover", "mutation", "repair", "mating", "seed",
    "eliminate_duplicates", "termination", "output", "display", "callback", "kwargs", "self",
    "of_pymoo",
}  # fmt: skip

_MATINGS = 20
"""What so many matings have not found new, chance finds sooner."""


class Engine:
    """One pymoo algorithm that is told results at any time and in any number.

    Args:
        name: of `ALGORITHMS`, or `package.module:Class` of a pymoo genetic algorithm.
        args: further arguments of that class.
        encoding: of the search space.
        n_objectives: at least 1.
        population: number of individuals, at least 2.
        n_offspring: children of one `mate`.
        seed: at least 0.
        seen: identities that no child may have; the caller adds to it.

    Raises:
        ConfigError: an unknown algorithm or argument, or one that the algorithm refuses.
        MissingLibraryError: the algorithm needs a library that is not installed.
    """

    def __init__(
        self,
        name: str,
        args: Mapping[str, Any],
        encoding: Encoding,
        n_objectives: int,
        *,
        population: int,
        n_offspring: int,
        seed: int,
        seen: set[str],
    ) -> None:
        cls = _algorithm_class(name)
        known = _arguments(cls)
        check_names(args, known, f"algorithm_args of {name}")
        extra = {**_defaults(cls), **args}
        if "ref_dirs" in known and "ref_dirs" not in args:
            extra["ref_dirs"] = _directions(n_objectives, population, seed)
        try:
            self._algorithm = cls(
                pop_size=population,
                n_offsprings=n_offspring,
                sampling=np.empty((0, len(encoding.choices))),
                crossover=SampleCrossover(encoding),
                mutation=SampleMutation(encoding),
                repair=LegalRepair(encoding),
                eliminate_duplicates=Unseen(encoding, seen),
                termination=NoTermination(),
                seed=seed,
                **extra,
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"algorithm {name}: {error}") from error
        # NSGA2 and its kin set their own termination whatever they are given; ours never ends a
        # search
        self._algorithm.termination = NoTermination()
        self._algorithm.mating.n_max_iterations = _MATINGS
        self._algorithm.setup(_IndexProblem(encoding, n_objectives))

    @property
    def ids(self) -> list[int]:
        """Ids of the current population; empty before the first `tell`."""
        if not self._algorithm.is_initialized:
            return []
        return list(dict.fromkeys(int(one.get("id")) for one in self._algorithm.pop))

    def tell(
        self, ids: Sequence[int], indices: np.ndarray, rows: np.ndarray, failed: np.ndarray
    ) -> None:
        """Gives results; the first ones become the first population.

        A failure becomes a constraint violation; its row, which no comparison of pymoo may use, has
        to be finite: an inf would switch off the crowding distance of the whole front.

        Args:
            ids: `n` of them.
            indices: `n x d`.
            rows: `n x m`, minimised.
            failed: `n` booleans.
        """
        population = Population.new("X", indices)
        population.set("F", rows)
        population.set("G", failed.astype(float)[:, None])
        population.set("H", np.zeros((len(ids), 0)))
        population.set("id", np.array(ids))
        population.apply(lambda individual: individual.evaluated.update({"F", "G", "H"}))
        if not self._algorithm.is_initialized:
            self._algorithm._initialize()
        self._algorithm.tell(infills=population)

    def mate(self) -> list[tuple[np.ndarray, tuple[int, ...]]]:
        """Children as index vectors, with their parents' ids; none if mating found nothing new."""
        offspring = self._algorithm.ask()
        # set when mating found nothing new; later matings may find something
        self._algorithm.termination.force_termination = False
        if offspring is None:
            return []
        return [(child.X.astype(int), child.get("parents")) for child in offspring]


class SteadyRVEA(RVEA):
    """RVEA (Cheng et al. 2016) for a search whose length is not known.

    The penalty on distance from a reference direction grows with the results until `horizon` and
    stays; pymoo's wants a number of generations at which it ends. Failures are dropped as soon as
    two results are none: pymoo fills empty directions with them.

    Args:
        ref_dirs: reference directions, `n x m`.
        horizon: results after which the penalty is full, at least 1.
        alpha: exponent of its growth.
        adapt_freq: part of the horizon after which directions are scaled to the front again.
        n_offsprings: children of a generation.
    """

    pop: Any

    def __init__(
        self,
        ref_dirs: np.ndarray,
        horizon: int = 200,
        alpha: float = 2.0,
        adapt_freq: float = 0.1,
        n_offsprings: int = 1,
        **of_pymoo: Any,
    ) -> None:
        if not horizon >= 1:
            raise ValueError(f"horizon: wanted at least 1, got {horizon!r}")
        super().__init__(
            ref_dirs, alpha=alpha, adapt_freq=adapt_freq, n_offsprings=n_offsprings, **of_pymoo
        )
        self._generations = math.ceil(horizon / n_offsprings)

    def _setup(self, problem: Problem, **_: Any) -> None:
        self.termination = _Horizon(self._generations)

    def _advance(self, infills: Population | None = None, **options: Any) -> None:
        super()._advance(infills=infills, **options)
        feasible = self.pop.get("FEAS").ravel()
        if feasible.sum() >= 2:
            self.pop = self.pop[feasible]


class _Horizon(MaximumGenerationTermination):
    """Never ends; recedes once it is reached, so that no share of it is above 1."""

    n_max_gen: float

    def _update(self, algorithm: Any) -> float:
        self.n_max_gen = max(self.n_max_gen, algorithm.n_gen)
        return 0.0


class SteadyMOEAD(GeneticAlgorithm):
    """MOEA/D (Zhang & Li 2007) with global replacement (Wang et al. 2014).

    A child replaces neighbours of the subproblem that it solves best, not of the one that it was
    mated for, so that results may come in any order, and from anywhere. Objectives are scaled to
    the population's range. A failure never replaces a result.

    Args:
        ref_dirs: weights of the subproblems, `n x m`.
        n_neighbors: subproblems that mate and replace each other, at least 2; None for a fifth.
        prob_neighbor_mating: else the mates are anyone's, 0 to 1.
        decomposition: pymoo's; None for Tchebycheff up to two objectives, PBI above.
    """

    def __init__(
        self,
        ref_dirs: np.ndarray,
        n_neighbors: int | None = None,
        prob_neighbor_mating: float = 0.9,
        decomposition: Decomposition | None = None,
        **of_pymoo: Any,
    ) -> None:
        super().__init__(**of_pymoo)
        if n_neighbors is None:
            n_neighbors = max(3, len(ref_dirs) // 5)
        if n_neighbors < 2:
            raise ValueError(f"n_neighbors: wanted at least 2, got {n_neighbors!r}")
        self.ref_dirs, self.decomposition = ref_dirs, decomposition
        distances = np.linalg.norm(ref_dirs[:, None] - ref_dirs[None], axis=2)
        self.neighbors = np.argsort(distances, axis=1, kind="stable")[:, :n_neighbors]
        self.selection = NeighborhoodSelection(prob=prob_neighbor_mating)

    def _setup(self, problem: Problem, **_: Any) -> None:
        self.decomposition = self.decomposition or default_decomp(problem)

    def _initialize_advance(self, infills: Population, **_: Any) -> None:
        values = self._values(infills, infills)
        values[~infills.get("FEAS").ravel()] = np.inf
        self.pop = infills[np.argmin(values, axis=0)]

    def _infill(self) -> Population | None:
        subproblems = self.random_state.permutation(len(self.pop))[: self.n_offsprings]
        parents = self.selection.do(
            self.problem,
            self.pop,
            len(subproblems),
            self.mating.crossover.n_parents,
            neighbors=self.neighbors[subproblems],
            random_state=self.random_state,
        )
        children = self.mating.do(
            self.problem,
            self.pop,
            len(subproblems),
            parents=parents,
            algorithm=self,
            random_state=self.random_state,
        )
        return children if len(children) else None

    def _advance(self, infills: Population, **_: Any) -> None:
        for child in infills:
            self._replace(child)

    def _replace(self, child: Any) -> None:
        if not child.FEAS[0]:
            return
        both = Population.merge(self.pop, Population.create(child))
        values = self._values(both, both)
        old = np.where(self.pop.get("FEAS").ravel(), np.diag(values[:-1]), np.inf)
        group = self.neighbors[np.argmin(values[-1])]
        self.pop[group[values[-1, group] < old[group]]] = child

    def _values(self, individuals: Population, scale: Population) -> np.ndarray:
        """`n x k`: individuals in each subproblem, scaled by what did not fail."""
        feasible = scale.get("FEAS").ravel()
        known = scale.get("F")[feasible if feasible.any() else slice(None)]
        low, high = known.min(axis=0), known.max(axis=0)
        rows = (individuals.get("F") - low) / np.where(high > low, high - low, 1.0)
        assert self.decomposition is not None
        ideal = np.zeros(rows.shape[1])
        return self.decomposition.do(
            rows, weights=self.ref_dirs, ideal_point=ideal, _type="many_to_many"
        )


class _IndexProblem(Problem):
    """Index vectors with one constraint, "did not fail". Never evaluated by pymoo itself."""

    def __init__(self, encoding: Encoding, n_objectives: int) -> None:
        super().__init__(
            n_var=len(encoding.choices),
            n_obj=n_objectives,
            n_ieq_constr=1,
            xl=np.zeros(len(encoding.choices), dtype=int),
            xu=encoding.n_options - 1,
            vtype=int,
        )


def _directions(n_objectives: int, population: int, seed: int) -> np.ndarray:
    """As many reference directions as individuals, `population x m`, evenly spread."""
    if n_objectives <= 2:
        return get_reference_directions("das-dennis", n_objectives, n_partitions=population - 1)
    # no grid of more dimensions has just any number of points
    return get_reference_directions("energy", n_objectives, population, seed=seed)


def _algorithm_class(name: str) -> type[GeneticAlgorithm]:
    path = ALGORITHMS.get(name, name)
    module, colon, attribute = path.partition(":")
    if not colon:
        raise ConfigError(
            f"algorithm: no algorithm named {name!r}{nearest(name, [*ALGORITHMS, *OTHERS])}"
        )
    if name == "agemoea2" and importlib.util.find_spec("numba") is None:
        raise MissingLibraryError("algorithm agemoea2: wanted numba, found none: pip install numba")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"algorithm: {name!r} cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, GeneticAlgorithm)):
        raise ConfigError(f"algorithm: wanted a pymoo GeneticAlgorithm, got {path}")
    return cls


def _arguments(cls: type) -> list[str]:
    names = {
        name
        for base in cls.__mro__
        if base is not object and "__init__" in vars(base)
        for name in inspect.signature(vars(base)["__init__"]).parameters
    }
    return sorted(names - _OURS)


def _defaults(cls: type) -> dict[str, Any]:
    """Fresh copies of a class's default objects.

    pymoo makes them once, in the signature, and some keep a state: SPEA2's survival carries its
    normalisation from one run into the next, which then does not repeat.
    """
    parameters = inspect.signature(cls).parameters.values()
    return {
        p.name: copy.deepcopy(p.default)
        for p in parameters
        if p.name not in _OURS
        and p.default is not p.empty
        and not isinstance(p.default, type(None) | bool | int | float | str)
    }
