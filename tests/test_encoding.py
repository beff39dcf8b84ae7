from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nni.mutable import Categorical, ExpressionConstraint, MutableList, Numerical

from smnas.encoding import Encoding
from smnas.errors import SpaceError


def space_with_many_rules() -> MutableList:
    """Six choices of which only every neighbouring pair that differs is legal, and a forced last
    one."""
    choices = [Categorical([0, 1, 2], label=f"x{i}") for i in range(6)]
    pairs = [
        ExpressionConstraint(a != b, label=f"{a.label}_{b.label}")
        for a, b in itertools.pairwise(choices)
    ]
    return MutableList([*choices, *pairs, ExpressionConstraint(choices[5] == 2, label="last")])


def test_round_trip_over_all_samples(encoding: Encoding) -> None:
    seen = set()
    for index in itertools.product(*(range(n) for n in encoding.n_options)):
        sample = encoding.sample(index)
        assert tuple(encoding.index(sample)) == index
        seen.add(tuple(sample.items()))
    assert len(seen) == encoding.size == 5**4 * 3


def test_size_and_legal_samples_agree_with_nni(encoding: Encoding) -> None:
    legal = encoding.legal()
    # 'c' (a third) loses two of five depths
    assert len(legal) == encoding.size - 5**3 * 2
    assert encoding.describe()["legal"] == len(legal)
    assert all(encoding.is_legal(index) for index in legal)


def test_legality_is_what_nni_says(encoding: Encoding) -> None:
    rule = encoding.constraints[0]
    for index in itertools.product(*(range(n) for n in encoding.n_options)):
        wanted = rule.check_contains(encoding.sample(index)) is None
        assert encoding.is_legal(np.array(index)) == wanted


def test_numbers_in_order_are_ordinal_and_the_rest_nominal() -> None:
    space = MutableList(
        [
            Categorical([1, 2.5, 4], label="up"),
            Categorical([4, 1, 2], label="mixed"),
            Categorical(["1", "2"], label="text"),
            Categorical([False, True], label="flag"),
        ]
    )
    assert [c.ordinal for c in Encoding.of(space).choices] == [True, False, False, False]


def test_options_of_mixed_type_keep_their_type() -> None:
    encoding = Encoding.of(MutableList([Categorical([0, "0", True, 1.5], label="x")]))
    for k, option in enumerate([0, "0", True, 1.5]):
        assert encoding.index({"x": option}).tolist() == [k]
        assert type(encoding.sample([k])["x"]) is type(option)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d0": 9}, r"choice 'd0': wanted one of \[0, 1, 2, 3, 4\], got 9"),
        ({"d0": "1"}, "got '1'"),
        ({"knd": "a"}, "no choice named 'knd'; did you mean 'kind'"),
        ({"d0": 4, "kind": "c"}, "constraint 'c_is_shallow' does not hold"),
    ],
)
def test_a_wrong_sample_is_refused_by_name(encoding: Encoding, change: dict, message: str) -> None:
    sample = {"d0": 0, "d1": 0, "d2": 0, "d3": 0, "kind": "a"}
    with pytest.raises(SpaceError, match=message):
        encoding.check({**sample, **change})


def test_a_missing_choice_is_named(encoding: Encoding) -> None:
    with pytest.raises(SpaceError, match="choice 'kind' is missing"):
        encoding.index({"d0": 0, "d1": 0, "d2": 0, "d3": 0})


def test_only_choices_can_be_encoded() -> None:
    with pytest.raises(SpaceError, match="wanted an nni.choice .*, got Numerical"):
        Encoding.of(MutableList([Numerical(0, 1, label="x")]))
    with pytest.raises(SpaceError, match="at least one choice"):
        Encoding({})


@given(seed=st.integers(0, 2**32 - 1))
def test_random_and_repaired_vectors_are_legal(seed: int) -> None:
    encoding = Encoding.of(space_with_many_rules())
    rng = np.random.default_rng(seed)
    assert encoding.is_legal(encoding.random(rng))
    index = rng.integers(encoding.n_options)
    repaired = encoding.repair(index, rng)
    assert encoding.is_legal(repaired)
    if encoding.is_legal(index):
        assert repaired.tolist() == index.tolist()


def test_random_reaches_every_legal_sample(encoding: Encoding) -> None:
    small = Encoding.of(
        MutableList(
            [
                a := Categorical([1, 2, 3], label="a"),
                b := Categorical(["x", "y"], label="b"),
                ExpressionConstraint((a != 3) | (b == "y"), label="r"),
            ]
        )
    )
    rng = np.random.default_rng(0)
    drawn = {tuple(small.random(rng)) for _ in range(300)}
    assert drawn == {tuple(i) for i in small.legal()} and len(drawn) == 5


def test_a_space_without_legal_samples_says_so() -> None:
    a = Categorical([1, 2], label="a")
    encoding = Encoding.of(MutableList([a, ExpressionConstraint(a == 3, label="never")]))
    with pytest.raises(SpaceError, match="0 of 1000 draws"):
        encoding.random(np.random.default_rng(0))


def test_a_space_that_is_too_large_is_not_enumerated() -> None:
    encoding = Encoding.from_choices({f"x{i}": list(range(10)) for i in range(7)})
    assert encoding.size == 10**7 and encoding.describe()["legal"] is None
    with pytest.raises(SpaceError, match="wanted at most 2000000 samples, got 10000000"):
        encoding.legal()


def test_nni_search_space_file(encoding: Encoding) -> None:
    assert encoding.nni_search_space()["kind"] == {"_type": "choice", "_value": ["a", "b", "c"]}


class Rare(MutableList):
    """One legal sample in a million, which the space knows itself."""

    def count_legal(self) -> int:
        return 1

    def draw(self, rng: np.random.Generator) -> dict[str, int]:
        return {f"x{i}": 9 for i in range(7)}


def test_a_space_may_count_and_draw_itself() -> None:
    choices = [Categorical(list(range(10)), label=f"x{i}") for i in range(7)]
    rule = ExpressionConstraint(sum(choices[1:], choices[0]) >= 63, label="all nines")
    encoding = Encoding.of(Rare([*choices, rule]))
    assert encoding.describe()["size"] == 10**7
    assert encoding.describe()["legal"] == 1
    assert encoding.random(np.random.default_rng(0)).tolist() == [9] * 7
    plain = Encoding.of(MutableList([*choices, rule]))
    assert plain.describe()["legal"] is None
    with pytest.raises(SpaceError, match="0 of 1000 draws"):
        plain.random(np.random.default_rng(0))
