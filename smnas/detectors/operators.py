"""Samples of the modular space: their labels, what may stand in them, mutation and crossover.

`search_spaces.modular` makes its choices and rules of the same ranges and hands samples on to these
operators. Imports no torch and no NNI.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from smnas.detectors.components import check_count
from smnas.detectors.string_moves import (
    DOUBLINGS,
    STAGES,
    bound_moves,
    count_stages,
    doubling_moves,
    draw_stages,
    insertions,
    removals,
    smallest_stages,
)
from smnas.detectors.strings import BackboneString
from smnas.errors import SpaceError
from smnas.records import Option, Sample

MOBILENET = "mobilenet_v2"
"""The one backbone without a string: a block option with a single inside."""

DEPTHS = tuple(f"depth{k + 1}" for k in range(STAGES))
DOUBLES = tuple(f"double{k + 1}" for k in range(DOUBLINGS))
INNER = ("block", "base_width", *DEPTHS, *DOUBLES)
"""Labels of the backbone's choices. Places of doublings are counted from 1 over all stages."""

NECK = ("neck", "neck_start", "neck_end", "neck_width")
STRUCTURE = (*NECK, "rpn", "head", "input_size")
"""Labels of all other choices, which samples of the structural space have, too."""

MOVES = {
    "insert": 1.0,
    "remove": 1.0,
    "doubling": 1.0,
    "bound": 1.0,
    "neck": 1.0,
    "head": 0.5,
    "input_size": 0.5,
    "block": 0.25,
}
"""What a mutation draws from, by weight; SM-NAS weighs the four moves of a string alike."""

MOST_MOVES = 3
"""A mutation makes one move to so many."""

Labels = dict[str, Option]


def string_of(sample: Sample) -> BackboneString | None:
    """The backbone of a modular sample; None for a MobileNet.

    Raises:
        SpaceError: its numbers make no string, or an odd base width.
    """
    if sample["block"] == MOBILENET:
        return None
    numbers = [_number(sample, label) for label in INNER[1:]]
    check_even("base_width", numbers[0])
    depths, doubles = numbers[1 : 1 + STAGES], numbers[1 + STAGES :]
    places = [double - 1 for double in doubles]
    return BackboneString.from_numbers(str(sample["block"]), numbers[0], depths, places)


def _number(sample: Sample, label: str) -> int:
    check_count(label, sample[label])
    return int(sample[label])


def labels_of(string: BackboneString) -> Labels:
    """The backbone's part of a sample."""
    doubles = [place + 1 for place in string.doublings]
    values: list[Option] = [string.kind, string.base_width, *string.depths, *doubles]
    return dict(zip(INNER, values, strict=True))


def check_even(part: str, width: int) -> None:
    """Refuses base widths that some kind of block cannot have.

    Raises:
        SpaceError: naming the part.
    """
    if width % 2:
        raise SpaceError(f"{part}: wanted an even number, got {width}")


@dataclass(frozen=True)
class Insides:
    """The backbones of a modular space.

    Args:
        blocks: kinds of blocks, and `mobilenet_v2` last if it is one of the backbones.
        base_widths: even, ascending.
        fewest: blocks of all stages together.
        most: the same.
    """

    blocks: tuple[str, ...]
    base_widths: tuple[int, ...]
    fewest: int
    most: int

    @property
    def first(self) -> BackboneString:
        """The smallest of them; its numbers stand for the string that a MobileNet has not."""
        stages = smallest_stages(self.fewest)
        return BackboneString(self.blocks[0], self.base_widths[0], stages)

    @property
    def count(self) -> int:
        """How many they are."""
        strings = count_stages(self.fewest, self.most)
        return len(self._kinds) * len(self.base_widths) * strings + (MOBILENET in self.blocks)

    def including(self, parent: BackboneString | None) -> Insides:
        """Ranges that reach as far as a parent; None stands for a MobileNet."""
        if parent is None:
            return replace(self, blocks=(*self.blocks, MOBILENET))
        count = len(parent.blocks)
        return Insides(
            tuple(dict.fromkeys((*self.blocks, parent.kind))),
            tuple(sorted({*self.base_widths, parent.base_width})),
            min(self.fewest, count),
            max(self.most, count),
        )

    def labels(self, string: BackboneString | None) -> Labels:
        """The backbone's part of a sample; None stands for a MobileNet."""
        if string is None:
            return {**labels_of(self.first), "block": MOBILENET}
        return labels_of(string)

    def draw(self, rng: np.random.Generator) -> Labels:
        """The backbone's part of a sample, each equally likely."""
        if MOBILENET in self.blocks and rng.integers(self.count) == 0:
            return self.labels(None)
        kind = self._kinds[int(rng.integers(len(self._kinds)))]
        width = self.base_widths[int(rng.integers(len(self.base_widths)))]
        return labels_of(BackboneString(kind, width, draw_stages(self.fewest, self.most, rng)))

    @property
    def _kinds(self) -> list[str]:
        return [block for block in self.blocks if block != MOBILENET]


@dataclass(frozen=True)
class Operators:
    """SM-NAS's operators on legal samples of a modular space (Yao et al. 2020, modular level).

    Moves are listed before one is drawn, so that none leads out of the space or to where it came
    from.

    Args:
        insides: the space's backbones.
        structures: its legal choices of everything else, in the order of `STRUCTURE`.
    """

    insides: Insides
    structures: Sequence[Labels]

    def draw(self, rng: np.random.Generator) -> Labels:
        """A sample, each equally likely."""
        return {**self.insides.draw(rng), **_one_of(self.structures, rng)}

    def mutate(self, parent: Labels, rng: np.random.Generator) -> Labels:
        """Another sample: in every second child the base width moves to a neighbour, then one to
        three of `MOVES` are made.
        """
        child = parent
        widths = self.neighbours(parent, "base_width")
        if widths and rng.random() < 0.5:
            child = _one_of(widths, rng)
        for _ in range(int(rng.integers(1, MOST_MOVES + 1))):
            child = self._moved(child, rng)
        return self._moved(child, rng) if child == parent else child

    def crossover(self, first: Labels, second: Labels, rng: np.random.Generator) -> Labels:
        """The whole backbone of one sample, and of each other choice one's or the other's.

        Returns:
            A sample that differs from both, or one of them if they have nothing to exchange.
        """
        parents = [first, second]
        children = [
            {**{label: parent[label] for label in INNER}, **structure}
            for parent in parents
            for structure in self.structures
            if all(structure[k] in (first[k], second[k]) for k in STRUCTURE)
        ]
        return _one_of([child for child in children if child not in parents] or parents, rng)

    def neighbours(self, sample: Labels, move: str) -> list[Labels]:
        """All samples that one move leads to, never itself.

        Args:
            sample: where it starts.
            move: a key of `MOVES`, or `base_width`.
        """
        return self._neighbours[move](sample)

    def _moved(self, sample: Labels, rng: np.random.Generator) -> Labels:
        weights = np.array(list(MOVES.values()))
        order = rng.choice(len(MOVES), len(MOVES), replace=False, p=weights / weights.sum())
        for k in order:
            if found := self.neighbours(sample, list(MOVES)[k]):
                return _one_of(found, rng)
        raise SpaceError(f"mutation: the space has no sample besides {sample}")

    @cached_property
    def _neighbours(self) -> dict[str, Callable[[Labels], list[Labels]]]:
        return {
            "insert": lambda sample: self._string_moves(sample, insertions),
            "remove": lambda sample: self._string_moves(sample, removals),
            "doubling": lambda sample: self._string_moves(sample, doubling_moves),
            "bound": lambda sample: self._string_moves(sample, bound_moves),
            "base_width": self._width_moves,
            "block": self._block_moves,
            "neck": lambda sample: self._structure_moves(sample, NECK, _is_near_neck),
            "head": lambda sample: self._structure_moves(sample, ("rpn", "head")),
            "input_size": lambda sample: self._structure_moves(sample, ("input_size",)),
        }

    def _string_moves(
        self, sample: Labels, moves: Callable[[tuple[str, ...]], list[tuple[str, ...]]]
    ) -> list[Labels]:
        string = string_of(sample)
        if string is None:
            return []
        found = [replace(string, stages=stages) for stages in moves(string.stages)]
        allowed = range(self.insides.fewest, self.insides.most + 1)
        return [{**sample, **labels_of(s)} for s in found if len(s.blocks) in allowed]

    def _width_moves(self, sample: Labels) -> list[Labels]:
        if sample["block"] == MOBILENET:
            return []
        near = [
            pair[pair[0] == sample["base_width"]]
            for pair in itertools.pairwise(self.insides.base_widths)
            if sample["base_width"] in pair
        ]
        return [{**sample, "base_width": width} for width in near]

    def _block_moves(self, sample: Labels) -> list[Labels]:
        others = [block for block in self.insides.blocks if block != sample["block"]]
        return [
            {**sample, **(self.insides.labels(None) if block == MOBILENET else {"block": block})}
            for block in others
        ]

    def _structure_moves(
        self,
        sample: Labels,
        labels: Sequence[str],
        is_near: Callable[[Sample, Sample], bool] = lambda old, new: True,
    ) -> list[Labels]:
        own = {label: sample[label] for label in STRUCTURE}
        kept = [label for label in STRUCTURE if label not in labels]
        return [
            {**sample, **found}
            for found in self.structures
            if found != own and all(found[k] == own[k] for k in kept) and is_near(own, found)
        ]


def _is_near_neck(old: Sample, new: Sample) -> bool:
    """Another kind of neck, or the same with one other level or width."""
    changed = [label for label in NECK if old[label] != new[label]]
    return "neck" in changed or len(changed) == 1


def _one_of(samples: Sequence[Labels], rng: np.random.Generator) -> Labels:
    return samples[int(rng.integers(len(samples)))]
