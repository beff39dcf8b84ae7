"""What makes new index vectors of old ones: crossover, mutation, repair, refusal of duplicates.

pymoo operators over an `Encoding`; a space's own `crossover` and `mutate` are taken where it has
them. `algorithms.py` gives them to every algorithm. Imports no pymoo algorithm and no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.operators.crossover.ux import UX

from smnas.encoding import Encoding
from smnas.records import identity


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
