"""Ask and tell over pymoo: the only module that imports pymoo's algorithms.

Steady state by default: `ask` answers at any time, by mating from what has been measured, so no
worker waits for a generation. Samples go out as candidates with an id and results come back by that
id, in any order. The whole state follows from the arguments and the sequence of calls, so a
journal's replay restores it exactly. Imports no torch.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.ux import UX
from pymoo.util.ref_dirs import get_reference_directions

from smnas.encoding import MAX_ENUMERATED, Encoding
from smnas.errors import ConfigError, SpaceError, SpaceExhausted, check_names, nearest
from smnas.objectives.vector import Objectives
from smnas.records import Candidate, Failed, Outcome, Sample, identity

ALGORITHMS = {
    "nsga2": "pymoo.algorithms.moo.nsga2:NSGA2",
    "nsga3": "pymoo.algorithms.moo.nsga3:NSGA3",
    "unsga3": "pymoo.algorithms.moo.unsga3:UNSGA3",
    "smsemoa": "pymoo.algorithms.moo.sms:SMSEMOA",
}
"""Names for `algorithm`; `random` and any `package.module:Class` of pymoo's genetic algorithms
work too.
"""

_OURS = {
    "pop_size", "n_offsprings", "sampling", "crossover", "mutation", "repair", "mating", "seed",
    "eliminate_duplicates", "termination", "output", "display", "callback", "kwargs", "self",
}  # fmt: skip


_Proposal = tuple[np.ndarray, str, tuple[int, ...]]
"""Index vector, origin, parents."""


class Optimizer:
    """Proposes samples of a search space and learns from their outcomes.

    Args:
        encoding: of the search space.
        objectives: what the outcomes must hold.
        algorithm: a name of `ALGORITHMS`, `random`, or `package.module:Class` of a pymoo genetic
            algorithm.
        algorithm_args: further arguments of that class, checked against its signature.
        population: number of individuals, at least 2.
        seed: at least 0; decides everything that is drawn.
        baselines: `{name: sample}`, known good detectors; asked first.
        generational: hand out whole generations, and wait for each to come back.
        stage: `stage` of the candidates.
        ancestor: where the search starts: asked first, and mutants of it take the place of random
            samples; wants a space with a `mutate` of its own. None for random ones.
        group: `group` of the candidates, the earlier stage's candidate that `ancestor` stands for.

    Attributes:
        next_id: of the next candidate; optimisers that share a run's ids set it.

    Raises:
        ConfigError: an unknown algorithm or argument, a number out of range, an illegal baseline.
        SpaceError: the ancestor is not in the space, or the space has no `mutate`.
    """

    def __init__(
        self,
        encoding: Encoding,
        objectives: Objectives,
        *,
        algorithm: str = "nsga2",
        algorithm_args: Mapping[str, Any] | None = None,
        population: int = 20,
        seed: int = 0,
        baselines: Mapping[str, Sample] | None = None,
        generational: bool = False,
        stage: str = "structural",
        ancestor: Sample | None = None,
        group: int | None = None,
    ) -> None:
        _check_integer("population", population, 2)
        _check_integer("seed", seed, 0)
        self.encoding, self.objectives, self.stage = encoding, objectives, stage
        self.next_id = 0
        self._group, self._ancestor = group, None if ancestor is None else dict(ancestor)
        self._population, self._generational = population, generational
        own, theirs = np.random.SeedSequence(seed).spawn(2)
        self._rng = np.random.default_rng(own)
        self._seen: set[str] = set()
        self._asked: dict[int, np.ndarray] = {}
        self._told: dict[int, tuple[np.ndarray, Outcome]] = {}
        self._generations: dict[int, int] = {}
        self._initial = self._first_samples(baselines or {})
        self._queue: list[tuple[np.ndarray, tuple[int, ...]]] = []
        self._batch: list[int] = []
        self._started = False
        self._algorithm = self._build(
            algorithm, algorithm_args or {}, int(theirs.generate_state(1)[0])
        )

    @property
    def pending(self) -> list[int]:
        """Ids that were asked and not yet told."""
        return sorted(set(self._asked) - set(self._told))

    @property
    def population_ids(self) -> list[int]:
        """Ids of the algorithm's current population; empty until the first one is complete."""
        if self._algorithm is None or not self._started:
            return []
        return [int(individual.get("id")) for individual in self._algorithm.pop]

    def ask(self) -> Candidate | None:
        """The next candidate, never one that was asked before; None while a generation must be
        waited for.

        Raises:
            SpaceExhausted: every legal sample has been asked.
        """
        if self._initial:
            return self._propose(*self._initial.pop(0))
        if not self._started and len(self._told) < self._population:
            if self._generational and len(self._asked) >= self._population:
                return None
            return self._propose_fresh()
        if self._algorithm is None:
            return self._propose_fresh()
        if not self._started:
            self._start()
        if not self._queue and self._generational and set(self._batch) - set(self._told):
            return None
        if not self._queue:
            self._queue = self._mate()
        index, parents = self._queue.pop(0) if self._queue else (None, ())
        if index is None or identity(self.encoding.sample(index)) in self._seen:
            return self._propose_fresh()
        return self._propose(index, "mating", parents)

    def tell(self, candidate_id: int, outcome: Outcome) -> None:
        """Gives a candidate's outcome; a `Measured` without every objective counts as failed.

        Raises:
            ValueError: the id was not asked, or was told before.
        """
        if candidate_id not in self._asked or candidate_id in self._told:
            state = "told before" if candidate_id in self._told else "never asked"
            raise ValueError(f"tell: candidate {candidate_id} was {state}")
        self._told[candidate_id] = (self._asked[candidate_id], outcome)
        if not self._started or self._algorithm is None:
            return
        if not self._generational:
            self._algorithm.tell(infills=self._individuals([candidate_id]))
        elif not set(self._batch) - set(self._told):
            # by id, so that the order in which results came back changes nothing
            self._algorithm.tell(infills=self._individuals(sorted(self._batch)))
            self._batch = []

    def replay(self, candidate: Candidate) -> None:
        """Asks again as the journal says it was asked.

        The proposal equals the journal's unless a library changed since; then the journal's sample
        counts.

        Raises:
            SpaceError: the journal's sample is not in the space.
        """
        index = self.encoding.check(candidate.sample)
        try:
            proposed = self.ask()
        except SpaceExhausted:
            proposed = None
        if proposed is not None:
            self._seen.discard(proposed.identity)
            self._asked.pop(proposed.id)
            self._generations.pop(proposed.id)
            self._batch = [i for i in self._batch if i != proposed.id]
        self._register(candidate, index)

    # -- proposals ------------------------------------------------------------------------------

    def _first_samples(self, baselines: Mapping[str, Sample]) -> list[_Proposal]:
        """What is asked before anything else: index, origin and parents."""
        known = _baseline_indices(self.encoding, baselines)
        first: list[_Proposal] = [(index, "baseline", ()) for index in known]
        if self._ancestor is None:
            return first
        if self.encoding.mutate is None:
            raise SpaceError("search space: wanted one with a method mutate, got none")
        parents = () if self._group is None else (self._group,)
        return [(self.encoding.check(self._ancestor), "control", parents), *first]

    def _propose(self, index: np.ndarray, origin: str, parents: tuple[int, ...] = ()) -> Candidate:
        own = [self._generations[i] for i in parents if i in self._generations]
        candidate = Candidate(
            self.next_id,
            self.stage,
            self.encoding.sample(index),
            origin,
            parents,
            generation=1 + max(own) if own else 0,
            group=self._group,
        )
        self._register(candidate, index)
        return candidate

    def _propose_fresh(self) -> Candidate:
        """A candidate that owes nothing to what has been measured."""
        if self._ancestor is None:
            return self._propose(self._random_unseen(), "random")
        control = min(self._asked)
        return self._propose(self._mutant_unseen(self._ancestor), "mutant", (control,))

    def _register(self, candidate: Candidate, index: np.ndarray) -> None:
        self._asked[candidate.id] = index
        self._generations[candidate.id] = candidate.generation
        self._seen.add(candidate.identity)
        self.next_id = candidate.id + 1
        if self._started and self._generational:
            self._batch.append(candidate.id)

    def _mutant_unseen(self, sample: Sample, steps: int = 200) -> np.ndarray:
        """Mutates until it finds what was not asked before; a walk, so that it gets out of a
        neighbourhood that is known.
        """
        assert self.encoding.mutate is not None
        for _ in range(steps):
            sample = self.encoding.mutate(sample, self._rng)
            if identity(sample) not in self._seen:
                return self.encoding.index(sample)
        raise SpaceExhausted(f"{steps} mutations in a row were all asked before")

    def _random_unseen(self, tries: int = 200) -> np.ndarray:
        for _ in range(tries):
            index = self.encoding.random(self._rng)
            if identity(self.encoding.sample(index)) not in self._seen:
                return index
        if self.encoding.size > MAX_ENUMERATED:
            raise SpaceExhausted(f"{tries} random legal samples were all asked before")
        left = [
            index
            for index in self.encoding.legal()
            if identity(self.encoding.sample(index)) not in self._seen
        ]
        if not left:
            raise SpaceExhausted(f"all {len(self._seen)} legal samples have been asked")
        return left[self._rng.integers(len(left))]

    # -- pymoo ----------------------------------------------------------------------------------

    def _build(self, name: str, args: Mapping[str, Any], seed: int) -> GeneticAlgorithm | None:
        if name == "random":
            check_names(args, [], "algorithm_args of random")
            return None
        cls = _algorithm_class(name)
        known = _arguments(cls)
        check_names(args, known, f"algorithm_args of {name}")
        extra = dict(args)
        if "ref_dirs" in known and "ref_dirs" not in extra:
            extra["ref_dirs"] = get_reference_directions(
                "energy", len(self.objectives.names), self._population, seed=seed
            )
        try:
            algorithm = cls(
                pop_size=self._population,
                n_offsprings=self._population if self._generational else 1,
                sampling=np.empty((0, len(self.encoding.choices))),
                crossover=SampleCrossover(self.encoding),
                mutation=SampleMutation(self.encoding),
                repair=LegalRepair(self.encoding),
                eliminate_duplicates=Unseen(self.encoding, self._seen),
                termination=NoTermination(),
                seed=seed,
                **extra,
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"algorithm {name}: {error}") from error
        # NSGA2 and its kin set their own termination whatever they are given; ours never ends a
        # search
        algorithm.termination = NoTermination()
        # what twenty matings have not found new, chance finds sooner
        algorithm.mating.n_max_iterations = 20
        algorithm.setup(_IndexProblem(self.encoding, len(self.objectives.names)))
        return algorithm

    def _start(self) -> None:
        assert self._algorithm is not None
        # pymoo's first `tell` must bring the first population: everything that is known by now
        self._algorithm._initialize()
        self._algorithm.tell(infills=self._individuals(sorted(self._told)))
        self._started = True

    def _mate(self) -> list[tuple[np.ndarray, tuple[int, ...]]]:
        assert self._algorithm is not None
        offspring = self._algorithm.ask()
        # set when mating found nothing new; chance takes over, and later matings may find something
        self._algorithm.termination.force_termination = False
        if offspring is None:
            return []
        return [(individual.X.astype(int), individual.get("parents")) for individual in offspring]

    def _individuals(self, ids: Sequence[int]) -> Population:
        """The told candidates as evaluated pymoo individuals.

        A failure becomes a constraint violation; its objective values, which no comparison of pymoo
        may use, are the reference point: an inf would switch off the crowding distance of the whole
        front.
        """
        rows = [self._row(self._told[i][1]) for i in ids]
        population = Population.new("X", np.array([self._told[i][0] for i in ids]))
        population.set("F", np.array([values for values, _ in rows]))
        population.set("G", np.array([[violation] for _, violation in rows]))
        population.set("H", np.zeros((len(ids), 0)))
        population.set("id", np.array(ids))
        population.apply(lambda individual: individual.evaluated.update({"F", "G", "H"}))
        return population

    def _row(self, outcome: Outcome) -> tuple[np.ndarray, float]:
        if isinstance(outcome, Failed) or self.objectives.missing(outcome.metrics):
            return self.objectives.reference_point, 1.0
        return self.objectives.minimised(outcome.metrics), 0.0


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


class SampleCrossover(UX):
    """Crosses as the space does, uniformly where it has no `crossover` of its own; notes on every
    child as `parents` the ids of the two that it comes from.

    Args:
        encoding: of the search space.
    """

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self._encoding = encoding

    def do(
        self, problem: Problem, pop: Any, parents: Any = None, *args: Any, **options: Any
    ) -> Population:
        matings = pop if parents is None else [pop[mating] for mating in parents]
        children = super().do(problem, pop, parents, *args, **options)
        for k, child in enumerate(children):
            mates = matings[k % len(matings)]
            child.set("parents", tuple(dict.fromkeys(int(mate.get("id")) for mate in mates)))
        return children

    def _do(
        self,
        problem: Problem,
        X: np.ndarray,
        *args: Any,
        random_state: np.random.Generator,
        **options: Any,
    ) -> np.ndarray:
        cross = self._encoding.crossover
        if cross is None:
            return super()._do(problem, X, *args, random_state=random_state, **options)
        children = np.empty_like(X)
        for mating in range(X.shape[1]):
            a, b = (self._encoding.sample(x) for x in X[:, mating])
            children[0, mating] = self._encoding.index(cross(a, b, random_state))
            children[1, mating] = self._encoding.index(cross(b, a, random_state))
        return children


class SampleMutation(Mutation):
    """Mutates as the space does, and by `IndexMutation` where it has no `mutate` of its own.

    Args:
        encoding: of the search space.
    """

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self._encoding, self._by_index = encoding, IndexMutation(encoding)

    def _do(
        self,
        problem: Problem,
        X: np.ndarray,
        *args: Any,
        random_state: np.random.Generator,
        **options: Any,
    ) -> np.ndarray:
        mutate, encoding = self._encoding.mutate, self._encoding
        if mutate is None:
            return self._by_index._do(problem, X, *args, random_state=random_state, **options)
        return np.array([encoding.index(mutate(encoding.sample(x), random_state)) for x in X])


_LONG = 20
"""Ordinal choices with more options than this are steps of a number line, see `IndexMutation`."""


class IndexMutation(Mutation):
    """Changes each choice with probability 1/d: a short ordinal one to a neighbour, a nominal one
    to any other.

    A long ordinal choice (a continuous range on a grid) moves by a step whose length is drawn
    evenly on a logarithmic scale from one to a quarter of the range, so that both a jump and the
    last fine step are likely.

    Args:
        encoding: of the search space with `d` choices.
    """

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self._n_options = encoding.n_options
        self._ordinal = encoding.ordinal

    def _do(
        self,
        problem: Problem,
        X: np.ndarray,
        *args: Any,
        random_state: np.random.Generator,
        **_: Any,
    ) -> np.ndarray:
        X = X.astype(int)
        change = random_state.random(X.shape) < 1.0 / X.shape[1]
        for row, column in np.argwhere(change & (self._n_options > 1)):
            X[row, column] = self._other(X[row, column], column, random_state)
        return X

    def _other(self, value: int, column: int, rng: np.random.Generator) -> int:
        n = self._n_options[column]
        if not self._ordinal[column]:
            return (value + rng.integers(1, n)) % n
        direction = 1 if value == 0 else -1 if value == n - 1 else rng.choice([-1, 1])
        length = 1 if n <= _LONG else int(np.exp(rng.uniform(0, np.log(n / 4))))
        return int(np.clip(value + direction * length, 0, n - 1))


class LegalRepair(Repair):
    """Makes offspring legal by changing few choices."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self._encoding = encoding

    def _do(
        self,
        problem: Problem,
        X: np.ndarray,
        *args: Any,
        random_state: np.random.Generator,
        **_: Any,
    ) -> np.ndarray:
        return np.array([self._encoding.repair(x, random_state) for x in X.astype(int)])


class Unseen(DuplicateElimination):
    """Refuses whatever was asked before, measured, failed or still running, and twins among the
    offspring.

    Args:
        encoding: of the search space.
        seen: identities that were asked; the optimiser adds to it.
    """

    def __init__(self, encoding: Encoding, seen: set[str]) -> None:
        super().__init__()
        self._encoding, self._seen = encoding, seen

    def _do(
        self, pop: Population, other: Population | None, is_duplicate: np.ndarray
    ) -> np.ndarray:
        taken = set(self._seen) if other is None else {self._identity(o) for o in other}
        for k, individual in enumerate(pop):
            own = self._identity(individual)
            is_duplicate[k] |= own in taken
            if other is None:
                taken.add(own)
        return is_duplicate

    def _identity(self, individual: Any) -> str:
        return identity(self._encoding.sample(individual.X.astype(int)))


def _baseline_indices(encoding: Encoding, baselines: Mapping[str, Sample]) -> list[np.ndarray]:
    indices = {}
    for name, sample in baselines.items():
        try:
            index = encoding.check(sample)
        except SpaceError as error:
            raise ConfigError(f"baselines: {name}: {error}") from error
        indices[identity(encoding.sample(index))] = index
    return list(indices.values())


def _algorithm_class(name: str) -> type[GeneticAlgorithm]:
    path = ALGORITHMS.get(name, name)
    module, colon, attribute = path.partition(":")
    if not colon:
        known = [*ALGORITHMS, "random"]
        raise ConfigError(f"algorithm: no algorithm named {name!r}{nearest(name, known)}")
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


def _check_integer(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name}: wanted a whole number of at least {low}, got {value!r}")
