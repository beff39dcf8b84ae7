"""Ask and tell: what a search proposes, and what it learns from.

Steady state by default: `ask` answers at any time, by mating from what has been measured, so no
worker waits for a generation. Samples go out as candidates with an id and results come back by that
id, in any order. The whole state follows from the arguments and the sequence of calls, so a
journal's replay restores it exactly. Imports no torch; pymoo's algorithms through `algorithms`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smnas.algorithms import Engine
from smnas.encoding import MAX_ENUMERATED, Encoding
from smnas.errors import ConfigError, SpaceError, SpaceExhausted, check_names
from smnas.objectives.vector import Objectives
from smnas.records import Candidate, Failed, Outcome, Sample, expected, identity
from smnas.surrogate import Surrogate


@dataclass(frozen=True)
class _Proposal:
    """What becomes a candidate; see there."""

    index: np.ndarray
    origin: str
    parents: tuple[int, ...] = ()


class Optimizer:
    """Proposes samples of a search space and learns from their outcomes.

    Args:
        encoding: of the search space.
        objectives: what the outcomes must hold.
        algorithm: a name of `algorithms.ALGORITHMS`, `surrogate`, `random`, or
            `package.module:Class` of a pymoo genetic algorithm.
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
        surrogate: the models of algorithm `surrogate`, None for every other.

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
        self._learned: set[int] = set()
        self._generations: dict[int, int] = {}
        self._initial = self._first_samples(baselines or {})
        self._queue: list[tuple[np.ndarray, tuple[int, ...]]] = []
        self._batch: list[int] = []
        self._started = False
        self.surrogate: Surrogate | None = None
        self._engine = self._build(
            algorithm, algorithm_args or {}, int(theirs.generate_state(1)[0])
        )

    @property
    def pending(self) -> list[int]:
        """Ids that were asked and not yet told."""
        return sorted(set(self._asked) - set(self._told))

    @property
    def population_ids(self) -> list[int]:
        """Ids of the algorithm's current population; empty until the first one is complete."""
        return [] if self._engine is None else self._engine.ids

    def ask(self) -> Candidate | None:
        """The next candidate, never one that was asked before; None while a generation must be
        waited for.

        Raises:
            SpaceExhausted: every legal sample has been asked.
        """
        if self._must_wait():
            return None
        self._start_if_due()
        return self._register(self._modelled() or self._evolved())

    def tell(self, candidate_id: int, outcome: Outcome) -> None:
        """Gives a candidate's outcome; a `Measured` without every objective counts as failed, and a
        `Stopped` as what it is estimated to have reached.

        Raises:
            ValueError: the id was not asked, or was told before.
        """
        if candidate_id not in self._asked or candidate_id in self._told:
            state = "told before" if candidate_id in self._told else "never asked"
            raise ValueError(f"tell: candidate {candidate_id} was {state}")
        self._told[candidate_id] = (self._asked[candidate_id], outcome)
        if not self._started:
            return
        if not self._generational:
            self._learn([candidate_id])
        elif len(self._batch) >= self._population and not set(self._batch) - set(self._told):
            # by id, so that the order in which results came back changes nothing
            self._learn(sorted(self._batch))
            self._batch, self._queue = [], []

    def replay(self, candidate: Candidate) -> None:
        """Asks again as the journal says it was asked.

        The proposal equals the journal's unless a library changed since; then the journal's sample
        counts.

        Raises:
            SpaceError: the journal's sample is not in the space.
        """
        index = self.encoding.check(candidate.sample)
        if not self._must_wait():
            self._start_if_due()
            # a model's proposals leave no trace in any state, and take their time
            if candidate.origin != "model":
                self._repeat()
        self._add(candidate, index)

    # -- proposals ------------------------------------------------------------------------------

    def _must_wait(self) -> bool:
        """Whether a generation is out and has not come back."""
        if not self._generational or self._initial:
            return False
        if self._started:
            return len(self._batch) >= self._population
        return len(self._asked) >= self._population > len(self._told)

    def _modelled(self) -> _Proposal | None:
        """What the surrogate wants to know; None without one, and while it knows nothing."""
        if self.surrogate is None or not self._started:
            return None
        running = [self._asked[i] for i in self._asked if i not in self._learned]
        index = self.surrogate.propose(running, self._seen, len(self._asked))
        if index is None:
            return None
        return _Proposal(index, "model")

    def _evolved(self) -> _Proposal:
        """What the algorithm mates, and until then and where it finds nothing new: chance."""
        if self._initial:
            return self._initial.pop(0)
        if self._engine is None or not self._started:
            return self._fresh()
        if not self._queue:
            self._queue = self._engine.mate()
        if self._queue:
            index, parents = self._queue.pop(0)
            if identity(self.encoding.sample(index)) not in self._seen:
                return _Proposal(index, "mating", parents)
        return self._fresh()

    def _repeat(self) -> None:
        """Draws what was drawn for a proposal of the journal."""
        try:
            self._evolved()
        except SpaceExhausted:
            # then the journal's sample is new to us, and there is nothing to draw
            return

    def _first_samples(self, baselines: Mapping[str, Sample]) -> list[_Proposal]:
        """What is asked before anything else."""
        known = _baseline_indices(self.encoding, baselines)
        first = [_Proposal(index, "baseline") for index in known]
        if self._ancestor is None:
            return first
        if self.encoding.mutate is None:
            raise SpaceError("search space: wanted one with a method mutate, got none")
        parents = () if self._group is None else (self._group,)
        return [_Proposal(self.encoding.check(self._ancestor), "control", parents), *first]

    def _fresh(self) -> _Proposal:
        """A candidate that owes nothing to what has been measured."""
        if self._ancestor is not None:
            return _Proposal(self._mutant_unseen(self._ancestor), "mutant", (min(self._asked),))
        if self.surrogate is None or self._started:
            return _Proposal(self._random_unseen(), "random")
        asked = list(self._asked.values())
        return _Proposal(self.surrogate.first(self._random_unseen, asked), "random")

    def _register(self, proposal: _Proposal) -> Candidate:
        parents = proposal.parents
        own = [self._generations[i] for i in parents if i in self._generations]
        candidate = Candidate(
            self.next_id,
            self.stage,
            self.encoding.sample(proposal.index),
            proposal.origin,
            parents,
            generation=1 + max(own) if own else 0,
            group=self._group,
            knowledge=self.surrogate.knowledge if self.surrogate else {},
        )
        self._add(candidate, proposal.index)
        return candidate

    def _add(self, candidate: Candidate, index: np.ndarray) -> None:
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

    # -- algorithms -----------------------------------------------------------------------------

    def _build(self, name: str, args: Mapping[str, Any], seed: int) -> Engine | None:
        if name == "random":
            check_names(args, [], "algorithm_args of random")
            return None
        if name == "surrogate":
            check_names(args, ["models"], "algorithm_args of surrogate")
            self.surrogate = Surrogate(
                self.encoding, self.objectives, population=self._population, seed=seed, **args
            )
            name, args = "nsga2", {}
        return Engine(
            name,
            args,
            self.encoding,
            len(self.objectives.names),
            population=self._population,
            n_offspring=self._population if self._generational else 1,
            seed=seed,
            seen=self._seen,
        )

    def _start_if_due(self) -> None:
        """Makes everything that is known by now the first population, once it is large enough."""
        enough = len(self._told) >= self._population and not self._initial
        if enough and not self._started and self._engine is not None:
            self._learn(sorted(self._told))
            self._started = True

    def _learn(self, ids: Sequence[int]) -> None:
        assert self._engine is not None
        told = [self._told[i] for i in ids]
        rows = [self._row(outcome) for _, outcome in told]
        self._engine.tell(
            ids,
            np.array([index for index, _ in told]),
            np.array([values for values, _ in rows]),
            np.array([failed for _, failed in rows]),
        )
        self._learned.update(ids)
        if self.surrogate is not None:
            for index, outcome in told:
                self.surrogate.tell(index, outcome)

    def _row(self, outcome: Outcome) -> tuple[np.ndarray, bool]:
        """Minimised values, and whether it failed; a failure has the reference point's."""
        metrics = expected(outcome)
        if isinstance(outcome, Failed) or self.objectives.missing(metrics):
            return self.objectives.reference_point, True
        return self.objectives.minimised(metrics), False


def _baseline_indices(encoding: Encoding, baselines: Mapping[str, Sample]) -> list[np.ndarray]:
    indices = {}
    for name, sample in baselines.items():
        try:
            index = encoding.check(sample)
        except SpaceError as error:
            raise ConfigError(f"baselines: {name}: {error}") from error
        indices[identity(encoding.sample(index))] = index
    return list(indices.values())


def _check_integer(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name}: wanted a whole number of at least {low}, got {value!r}")
