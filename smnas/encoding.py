"""The only translator between NNI mutables, vectors of option indices and canonical JSON samples.

The optimiser works on index vectors, the journal and the trials on samples; both meet here and
nowhere else. Imports `nni.mutable` (which needs no torch); must not import torch or pymoo.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from nni.mutable import Categorical, Constraint, LabeledMutable, Mutable

from smnas.errors import SpaceError, nearest
from smnas.records import Monotone, Option, Sample

MAX_ENUMERATED = 2_000_000
"""Spaces up to this size are enumerated for counting and for finding the last samples that are
left.
"""

_MAX_TABLE = 100_000  # a constraint over more combinations than this is evaluated each time instead


Mutate = Callable[[Sample, np.random.Generator], Sample]
"""A legal sample -> another legal sample that is a little different."""

Crossover = Callable[[Sample, Sample, np.random.Generator], Sample]
"""Two legal samples -> a legal sample with something of both."""


@dataclass(frozen=True)
class Choice:
    """One dimension of a search space.

    Args:
        label: NNI's label of the mutable.
        options: at least one, in the order of the space.
        ordinal: options are numbers in ascending order, so that neighbours are alike.
    """

    label: str
    options: tuple[Option, ...]
    ordinal: bool


class _Rule:
    """A constraint over the choices that it mentions, with what is known of its truth."""

    def __init__(self, constraint: Constraint, choices: Sequence[Choice]) -> None:
        position = {choice.label: k for k, choice in enumerate(choices)}
        labels = [m.label for m in constraint.simplify().values() if m.label in position]
        self.constraint = constraint
        self.columns = tuple(position[label] for label in dict.fromkeys(labels))
        self.choices = [choices[k] for k in self.columns]
        self._known: dict[tuple[int, ...], bool] = {}

    def _holds(self, index: Sequence[int]) -> bool:
        sample = {c.label: c.options[i] for c, i in zip(self.choices, index, strict=True)}
        return bool(self.constraint.check_contains(sample) is None)

    def holds(self, index: np.ndarray) -> bool:
        own = tuple(int(index[k]) for k in self.columns)
        if own not in self._known:
            self._known[own] = self._holds(own)
        return self._known[own]

    @cached_property
    def _table(self) -> np.ndarray | None:
        """Truth over all combinations, if these are few enough."""
        shape = tuple(len(choice.options) for choice in self.choices)
        if math.prod(shape) > _MAX_TABLE:
            return None
        return np.array([self._holds(index) for index in np.ndindex(shape)]).reshape(shape)

    def mask(self, indices: np.ndarray) -> np.ndarray:
        """`n x d` index vectors -> `n` booleans."""
        if self._table is not None:
            return self._table[tuple(indices[:, k] for k in self.columns)]
        return np.array([self.holds(index) for index in indices], dtype=bool)


class Encoding:
    """Samples of one search space as integer vectors.

    An index vector has one entry for each choice, in the order of the space: the position of the
    chosen option. Numeric options in ascending order make a choice ordinal, all others are nominal.

    Args:
        mutables: `{label: mutable}` as `space.simplify()` gives it: `Categorical`s and
            `Constraint`s.
        space: what has them. Its own methods (see `detectors.space.DetectorSpace`) are taken where
            it has any.

    Raises:
        SpaceError: a mutable is of another kind, an option is no JSON scalar, or there is no
            choice.

    Attributes:
        monotone: what the space says about sizes; empty where it says nothing.
    """

    def __init__(
        self, mutables: Mapping[str, LabeledMutable], space: Mutable | None = None
    ) -> None:
        self._space = space
        self.monotone: Monotone = getattr(space, "monotone", {})
        self.choices = tuple(
            _choice(label, m) for label, m in mutables.items() if not isinstance(m, Constraint)
        )
        if not self.choices:
            raise SpaceError("search space: wanted at least one choice, got none")
        constraints = [m for m in mutables.values() if isinstance(m, Constraint)]
        self.constraints: tuple[Constraint, ...] = tuple(constraints)
        self._rules = [_Rule(constraint, self.choices) for constraint in constraints]
        self._positions = [
            {_key(option): i for i, option in enumerate(choice.options)} for choice in self.choices
        ]

    @classmethod
    def of(cls, space: Mutable) -> Encoding:
        """The encoding of an NNI model space (or any other mutable)."""
        return cls(space.simplify(), space)

    @classmethod
    def from_choices(cls, choices: Mapping[str, Sequence[Option]]) -> Encoding:
        """An encoding without constraints from `{label: options}`, as journals and NNI files hold
        them.
        """
        return cls({label: Categorical(list(o), label=label) for label, o in choices.items()})

    @classmethod
    def union(cls, encodings: Sequence[Encoding]) -> Encoding:
        """The encoding, without constraints, of whatever one of several has: each choice with the
        options of all, numbers in ascending order; sizes as any of them has them.
        """
        options: dict[str, list[Option]] = {}
        for encoding in encodings:
            for choice in encoding.choices:
                known = options.setdefault(choice.label, [])
                known += [o for o in choice.options if _key(o) not in map(_key, known)]
        numeric = (int, float)
        whole = cls.from_choices(
            {
                label: sorted(o) if all(type(x) in numeric for x in o) else o
                for label, o in options.items()
            }
        )
        chains: dict[str, list[Sequence[Option]]] = {}
        for encoding in encodings:
            for label, lists in encoding.monotone.items():
                known_lists = chains.setdefault(label, [])
                known_lists += [chain for chain in lists if chain not in known_lists]
        whole.monotone = chains
        return whole

    @property
    def mutate(self) -> Mutate | None:
        """The space's own mutation, None where it has none."""
        return getattr(self._space, "mutate", None)

    @property
    def crossover(self) -> Crossover | None:
        """The space's own crossover, None where it has none."""
        return getattr(self._space, "crossover", None)

    @property
    def n_options(self) -> np.ndarray:
        """`d` numbers of options."""
        return np.array([len(choice.options) for choice in self.choices])

    @property
    def ordinal(self) -> np.ndarray:
        """`d` booleans: which choices are ordinal."""
        return np.array([choice.ordinal for choice in self.choices])

    @property
    def size(self) -> int:
        """Number of samples, legal or not."""
        return math.prod(len(choice.options) for choice in self.choices)

    def sample(self, index: Sequence[int] | np.ndarray) -> dict[str, Option]:
        """Index vector (`d`) -> sample."""
        return {c.label: c.options[int(i)] for c, i in zip(self.choices, index, strict=True)}

    def index(self, sample: Sample) -> np.ndarray:
        """Sample -> index vector (`d` integers).

        Raises:
            SpaceError: a label is unknown or missing, or an option is not in the choice.
        """
        labels = [choice.label for choice in self.choices]
        for label in sample:
            if label not in labels:
                raise SpaceError(f"sample: no choice named {label!r}{nearest(label, labels)}")
        return np.array(
            [_position(c, p, sample) for c, p in zip(self.choices, self._positions, strict=True)]
        )

    def is_legal(self, index: np.ndarray) -> bool:
        """Whether every constraint holds for an index vector (`d`)."""
        return all(rule.holds(index) for rule in self._rules)

    def violated(self, index: np.ndarray) -> list[tuple[int, ...]]:
        """For each constraint that does not hold: the positions of the choices it mentions."""
        return [rule.columns for rule in self._rules if not rule.holds(index)]

    def check(self, sample: Sample) -> np.ndarray:
        """Index vector of a sample that must be legal.

        Raises:
            SpaceError: as `index`, or a constraint is violated; the message names the constraint.
        """
        index = self.index(sample)
        for rule in self._rules:
            if not rule.holds(index):
                raise SpaceError(
                    f"sample {dict(sample)}: constraint {rule.constraint.label!r} does not hold"
                )
        return index

    def legal(self) -> np.ndarray:
        """All legal index vectors (`n x d`), in lexicographic order.

        Raises:
            SpaceError: the space has more than `MAX_ENUMERATED` samples.
        """
        if self.size > MAX_ENUMERATED:
            raise SpaceError(
                f"enumerating the space: wanted at most {MAX_ENUMERATED} samples, got {self.size}"
            )
        indices = np.indices(tuple(self.n_options)).reshape(len(self.choices), -1).T
        for rule in self._rules:
            indices = indices[rule.mask(indices)]
        return indices

    def count_legal(self) -> int | None:
        """Number of legal samples; None if they are too many to count."""
        count = getattr(self._space, "count_legal", None)
        if count is not None:
            return int(count())
        return len(self.legal()) if self.size <= MAX_ENUMERATED else None

    def random(self, rng: np.random.Generator, tries: int = 1000) -> np.ndarray:
        """A legal index vector (`d`), uniform over the legal ones: the space's own draw, or by
        rejection.

        Raises:
            SpaceError: none of `tries` draws was legal; the message gives the acceptance rate.
        """
        draw = getattr(self._space, "draw", None)
        if draw is not None:
            return self.check(draw(rng))
        for _ in range(tries):
            index = rng.integers(self.n_options)
            if self.is_legal(index):
                return index
        if self.size <= MAX_ENUMERATED and len(legal := self.legal()):
            return legal[rng.integers(len(legal))]
        raise SpaceError(f"drawing a legal sample: 0 of {tries} draws met the constraints")

    def repair(self, index: np.ndarray, rng: np.random.Generator, flips: int = 200) -> np.ndarray:
        """The index vector (`d`) made legal by changing few choices; itself if it is legal.

        Changes one choice of a violated constraint at a time, towards fewer violations (WalkSAT,
        Selman et al. 1994); draws a new legal vector when `flips` changes did not suffice.
        """
        index = index.copy()
        for _ in range(flips):
            broken = self.violated(index)
            if not broken:
                return index
            columns = broken[rng.integers(len(broken))]
            column = columns[rng.integers(len(columns))]
            index[column] = self._least_violating(index, column, rng)
        return self.random(rng)

    def _least_violating(self, index: np.ndarray, column: int, rng: np.random.Generator) -> int:
        trial = index.copy()
        options = [i for i in range(len(self.choices[column].options)) if i != index[column]]
        if not options:
            return int(index[column])
        rng.shuffle(options)
        costs = []
        for option in options:
            trial[column] = option
            costs.append(len(self.violated(trial)))
        return options[int(np.argmin(costs))]

    def describe(self) -> dict[str, Any]:
        """Choices, constraints, what is larger, size and number of legal combinations (None if too
        many to count).
        """
        return {
            "choices": {c.label: list(c.options) for c in self.choices},
            "ordinal": [c.label for c in self.choices if c.ordinal],
            "constraints": {c.label: _text(c) for c in self.constraints},
            "monotone": {k: [list(chain) for chain in v] for k, v in self.monotone.items()},
            "size": self.size,
            "legal": self.count_legal(),
        }

    def nni_search_space(self) -> dict[str, Any]:
        """The space as an NNI search-space file holds it (which has no place for constraints)."""
        return {c.label: {"_type": "choice", "_value": list(c.options)} for c in self.choices}


def _text(constraint: Constraint) -> str:
    return str(getattr(constraint, "expression", constraint))


def _key(option: Any) -> str:
    # JSON text tells 1 from True and from "1", which Python's == and numpy do not
    return json.dumps(option)


def _choice(label: str, mutable: LabeledMutable) -> Choice:
    if not isinstance(mutable, Categorical):
        raise SpaceError(
            f"choice {label!r}: wanted an nni.choice (Categorical), got {type(mutable).__name__}"
        )
    options = tuple(mutable.values)
    for option in options:
        if not isinstance(option, str | int | float | bool):
            raise SpaceError(f"choice {label!r}: wanted strings or numbers, got {option!r}")
    numeric = all(isinstance(o, int | float) and not isinstance(o, bool) for o in options)
    ascending = numeric and all(a < b for a, b in itertools.pairwise(options))
    return Choice(label, options, ascending)


def _position(choice: Choice, positions: Mapping[str, int], sample: Sample) -> int:
    if choice.label not in sample:
        raise SpaceError(f"sample: choice {choice.label!r} is missing; got {sorted(sample)}")
    option = sample[choice.label]
    if _key(option) not in positions:
        raise SpaceError(
            f"sample: choice {choice.label!r}: wanted one of {list(choice.options)}, got {option!r}"
        )
    return positions[_key(option)]
