"""What may be done to the stages of a backbone string: single moves, counting, drawing.

The modular space makes its operators of them. Stages are those of `strings.BackboneString`, four of
them with three doublings. Imports no torch and no NNI.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, pairwise
from math import comb

import numpy as np

STAGES = 4
DOUBLINGS = 3
"""SM-NAS's backbones: strides 4 to 32, and a last width of 8 times the base width."""

REACH = 3
"""Blocks by which a doubling or the bound of a stage moves at most."""

Stages = tuple[str, ...]


def insertions(stages: Stages) -> list[Stages]:
    """All stages with one `1` more."""
    return _different(
        _replaced(stages, number, f"{stage[:at]}1{stage[at:]}")
        for number, stage in enumerate(stages)
        for at in range(len(stage) + 1)
    )


def removals(stages: Stages) -> list[Stages]:
    """All stages with one `1` less, none of them empty."""
    return _different(
        _replaced(stages, number, stage[:at] + stage[at + 1 :])
        for number, stage in enumerate(stages)
        for at, block in enumerate(stage)
        if block == "1" and len(stage) > 1
    )


def doubling_moves(stages: Stages, reach: int = REACH) -> list[Stages]:
    """All stages with one `2` moved by up to `reach` blocks; stages keep their lengths."""
    blocks = "".join(stages)
    bounds = _bounds(stages)
    return _different(
        _cut(_swapped(blocks, old, new), bounds)
        for old, block in enumerate(blocks)
        if block == "2"
        for new in range(max(0, old - reach), min(len(blocks), old + reach + 1))
        if blocks[new] == "1"
    )


def bound_moves(stages: Stages, reach: int = REACH) -> list[Stages]:
    """All stages with one `-` moved by up to `reach` blocks; the blocks keep their order."""
    blocks = "".join(stages)
    bounds = [0, *_bounds(stages), len(blocks)]
    return _different(
        _cut(blocks, [*bounds[1:k], new, *bounds[k + 1 : -1]])
        for k in range(1, len(bounds) - 1)
        for new in range(bounds[k] - reach, bounds[k] + reach + 1)
        if new != bounds[k] and bounds[k - 1] < new < bounds[k + 1]
    )


def smallest_stages(blocks: int) -> Stages:
    """Stages of that many blocks with the shortest ones last and each of those a `2`, as in
    ResNets.
    """
    return ("1" * (blocks - DOUBLINGS), *("2" * DOUBLINGS))


def count_stages(fewest: int, most: int) -> int:
    """How many different stages have from `fewest` to `most` blocks."""
    return sum(_count(blocks) for blocks in range(fewest, most + 1))


def draw_stages(fewest: int, most: int, rng: np.random.Generator) -> Stages:
    """Stages of `fewest` to `most` blocks, all equally likely."""
    counts = np.array([_count(blocks) for blocks in range(fewest, most + 1)], dtype=float)
    blocks = fewest + int(rng.choice(len(counts), p=counts / counts.sum()))
    bounds = 1 + rng.choice(blocks - 1, STAGES - 1, replace=False)
    doubled = set(rng.choice(blocks, DOUBLINGS, replace=False).tolist())
    text = "".join("2" if block in doubled else "1" for block in range(blocks))
    return _cut(text, sorted(bounds.tolist()))


def _count(blocks: int) -> int:
    return comb(blocks - 1, STAGES - 1) * comb(blocks, DOUBLINGS)


def _bounds(stages: Stages) -> list[int]:
    return list(accumulate(map(len, stages)))[:-1]


def _cut(blocks: str, bounds: Iterable[int]) -> Stages:
    return tuple(blocks[start:end] for start, end in pairwise([0, *bounds, len(blocks)]))


def _swapped(blocks: str, old: int, new: int) -> str:
    moved = list(blocks)
    moved[old], moved[new] = moved[new], moved[old]
    return "".join(moved)


def _replaced(stages: Stages, number: int, stage: str) -> Stages:
    return (*stages[:number], stage, *stages[number + 1 :])


def _different(found: Iterable[Stages]) -> list[Stages]:
    return list(dict.fromkeys(found))
