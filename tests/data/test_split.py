"""The search split: closed properties, and ids that must never move between versions."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smnas.data.split import position, split_ids
from smnas.errors import ConfigError

ids = st.lists(st.integers(0, 10**12), max_size=60)
fractions = st.floats(0, 1, exclude_min=True, exclude_max=True)


@given(ids, fractions)
def test_parts_are_sorted_disjoint_and_complete(image_ids: list[int], fraction: float) -> None:
    train, search = split_ids(image_ids, fraction)
    assert train == sorted(train) and search == sorted(search)
    assert set(train).isdisjoint(search)
    assert sorted(train + search) == sorted(set(image_ids))


@given(ids.filter(lambda values: len(set(values)) >= 2), fractions)
def test_neither_part_is_empty_from_two_ids_on(image_ids: list[int], fraction: float) -> None:
    assert all(split_ids(image_ids, fraction))


@given(ids, st.randoms(use_true_random=False))
def test_order_does_not_matter(image_ids: list[int], rng: Random) -> None:
    shuffled = rng.sample(image_ids, len(image_ids))
    assert split_ids(shuffled) == split_ids(image_ids)


@given(ids, ids)
def test_other_ids_do_not_matter(some: list[int], others: list[int]) -> None:
    # 0 falls on the train side and 8 on the search side, so that no side has to be filled.
    some, all_of_them = [0, 8, *some], [0, 8, *some, *others]
    train, search = split_ids(all_of_them)
    assert split_ids(some) == (
        sorted(set(train) & set(some)),
        sorted(set(search) & set(some)),
    )


@given(ids, fractions, fractions)
def test_a_larger_search_part_holds_the_smaller(ids: list[int], one: float, two: float) -> None:
    small, large = sorted((one, two))
    assert set(split_ids(ids, small)[1]) <= set(split_ids(ids, large)[1])


def test_frozen_membership() -> None:
    assert split_ids(range(20)) == (
        [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 14, 15, 16, 17, 18, 19],
        [8, 9, 13],
    )


def test_share_is_near_the_fraction() -> None:
    # 10,000 draws at 1/4: standard deviation 43; four of them.
    assert abs(len(split_ids(range(10_000))[1]) - 2500) < 174


def test_position_is_sha256_scaled_to_one() -> None:
    # sha256(b"0") begins 5feceb66ffc86f38.
    assert position(0) == position("0") == (0x5FECEB66FFC86F38 >> 11) / 2**53


def test_one_id_and_none() -> None:
    assert split_ids([]) == ([], [])
    assert sorted(map(len, split_ids([7]))) == [0, 1]


@pytest.mark.parametrize("fraction", [0, 1, -0.25, 25, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        split_ids([1, 2], fraction)


@pytest.mark.parametrize("module", ["split", "files", "findings", "check", "voc", "digits"])
def test_imports_no_torch(module: str) -> None:
    code = f"import sys, smnas.data.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
