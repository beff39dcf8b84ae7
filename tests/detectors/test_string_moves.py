"""Moves of stages, counted and drawn ones: against enumeration and closed forms."""

import itertools
from collections import Counter
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smnas.detectors.string_moves import (
    bound_moves,
    count_stages,
    doubling_moves,
    draw_stages,
    insertions,
    removals,
    smallest_stages,
)

RANGES = st.tuples(st.integers(4, 12), st.integers(0, 6)).map(lambda pair: (pair[0], sum(pair)))


def enumerated(blocks: int) -> set[tuple[str, ...]]:
    """Every four stages of that many blocks with three doublings."""
    texts = ["".join(text) for text in itertools.product("12", repeat=blocks)]
    texts = [text for text in texts if text.count("2") == 3]
    cuts = list(itertools.combinations(range(1, blocks), 3))
    return {(t[:a], t[a:b], t[b:c], t[c:]) for t in texts for a, b, c in cuts}


@pytest.mark.parametrize("blocks", range(4, 9))
def test_counts_against_enumeration(blocks):
    assert count_stages(blocks, blocks) == len(enumerated(blocks))
    assert count_stages(4, blocks) == sum(len(enumerated(n)) for n in range(4, blocks + 1))


def test_counts_of_the_paper():
    assert count_stages(5, 15) == 406_428
    assert count_stages(5, 35) == 207_417_404
    assert count_stages(4, 4) == comb(3, 3) * comb(4, 3) == 4


def test_smallest_stages():
    assert smallest_stages(4) == ("1", "2", "2", "2")
    assert smallest_stages(6) == ("111", "2", "2", "2")


def test_moves_of_an_example():
    stages = ("1", "21", "2", "2")
    assert insertions(stages) == [
        ("11", "21", "2", "2"),
        ("1", "121", "2", "2"),
        ("1", "211", "2", "2"),
        ("1", "21", "12", "2"),
        ("1", "21", "21", "2"),
        ("1", "21", "2", "12"),
        ("1", "21", "2", "21"),
    ]
    assert removals(stages) == [("1", "2", "2", "2")]
    assert doubling_moves(stages) == [
        ("2", "11", "2", "2"),
        ("1", "12", "2", "2"),
        ("2", "21", "1", "2"),
        ("1", "22", "1", "2"),
        ("1", "22", "2", "1"),
    ]
    assert bound_moves(stages) == [("12", "1", "2", "2"), ("1", "2", "12", "2")]


def test_moves_reach_no_further():
    stages = ("111111", "2", "2", "2")
    assert bound_moves(stages, reach=2) == [("1111", "112", "2", "2"), ("11111", "12", "2", "2")]
    assert ("111211", "1", "2", "2") in doubling_moves(stages, reach=3)
    assert ("112111", "1", "2", "2") not in doubling_moves(stages, reach=3)


@given(RANGES, st.integers(0, 2**32))
@settings(deadline=None)
def test_moves_keep_what_they_are_not_about(bounds, seed):
    stages = draw_stages(*bounds, np.random.default_rng(seed))
    blocks = "".join(stages)
    lengths = [len(stage) for stage in stages]
    for moves, count in ((insertions, 1), (removals, -1), (doubling_moves, 0), (bound_moves, 0)):
        found = moves(stages)
        assert len(found) == len(set(found))
        for moved in found:
            assert moved != stages and len(moved) == 4 and all(moved)
            assert len("".join(moved)) == len(blocks) + count
            assert "".join(moved).count("2") == 3
    assert all([len(s) for s in moved] == lengths for moved in doubling_moves(stages))
    assert all("".join(moved) == blocks for moved in bound_moves(stages))


@given(RANGES, st.integers(0, 2**32))
@settings(deadline=None)
def test_every_move_can_be_taken_back(bounds, seed):
    stages = draw_stages(*bounds, np.random.default_rng(seed))
    assert all(stages in removals(moved) for moved in insertions(stages))
    assert all(stages in insertions(moved) for moved in removals(stages))
    assert all(stages in doubling_moves(moved) for moved in doubling_moves(stages))
    assert all(stages in bound_moves(moved) for moved in bound_moves(stages))


def test_draws_are_uniform():
    """Chi-square over the 44 stages of 4 or 5 blocks: its 99.9 % point for 43 degrees is 77.4."""
    rng = np.random.default_rng(0)
    found = Counter(draw_stages(4, 5, rng) for _ in range(8800))
    assert set(found) == enumerated(4) | enumerated(5)
    assert sum((count - 200) ** 2 / 200 for count in found.values()) < 77.4
