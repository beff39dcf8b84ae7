from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from toy import toy_outcome_with_failures

from smnas import pareto
from smnas.journal import Trial, read
from smnas.objectives.vector import Objectives
from smnas.records import Candidate, Failed, Measured

POINTS = arrays(float, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(0, 5))


@given(rows=POINTS)
def test_non_dominated_is_the_definition(rows: np.ndarray) -> None:
    def dominates(a: np.ndarray, b: np.ndarray) -> bool:
        return bool((a <= b).all() and (a < b).any())

    wanted = [i for i, b in enumerate(rows) if not any(dominates(a, b) for a in rows)]
    assert pareto.non_dominated(rows).tolist() == wanted


def test_nothing_in_nothing_out() -> None:
    assert pareto.non_dominated(np.empty((0, 2))).tolist() == []
    assert pareto.hypervolume(np.empty((0, 2)), np.array([1.0, 1.0])) == 0.0


def test_hypervolume_of_a_staircase() -> None:
    """Steps (0,3) (1,2) (2,1) (3,0) below (4,4): columns of 1, 2, 3, 4 cells."""
    rows = np.array([[0.0, 3], [1, 2], [2, 1], [3, 0]])
    for order in itertools.permutations(range(4)):
        assert pareto.hypervolume(rows[list(order)], np.array([4.0, 4.0])) == pytest.approx(10)
    assert pareto.hypervolume(np.vstack([rows, rows]), np.array([4.0, 4.0])) == pytest.approx(10)


def test_points_beyond_the_reference_point_count_nothing() -> None:
    reference = np.array([4.0, 4.0])
    assert pareto.hypervolume(np.array([[5.0, 0.0]]), reference) == 0.0
    assert pareto.hypervolume(np.array([[5.0, 0.0], [3.0, 3.0]]), reference) == pytest.approx(1)


@pytest.fixture
def run(toy_run: Callable[..., Path]) -> Path:
    return toy_run(40, toy_outcome_with_failures)


def test_front_of_a_run(run: Path, objectives: Objectives) -> None:
    trials = read(run).trials()
    front = pareto.front(trials, objectives)
    _, rows = pareto.measured(front, objectives)
    assert (
        rows[:, 0].tolist() == sorted(rows[:, 0])
        and rows[:, 1].tolist() == sorted(rows[:, 1])[::-1]
    )
    everyone, all_rows = pareto.measured(trials, objectives)
    assert len(everyone) == sum(not isinstance(t.outcome, Failed) for t in trials) < 40
    for row in all_rows:
        assert ((rows <= row).all(axis=1)).any(), "each point is beaten or equalled by the front"


def test_hypervolume_never_falls_and_ends_at_the_front_s(run: Path, objectives: Objectives) -> None:
    trials = read(run).trials()
    curve = pareto.hypervolume_curve(trials, objectives)
    assert len(curve) == 40 and curve == sorted(curve)
    _, rows = pareto.measured(pareto.front(trials, objectives), objectives)
    assert curve[-1] == pytest.approx(pareto.hypervolume(rows, objectives.reference_point))


def test_ranked_gives_the_fronts_one_after_the_other() -> None:
    rows = np.array([[3.0, 3.0], [1.0, 2.0], [2.0, 1.0], [2.0, 2.0]])
    assert pareto.ranked(rows).tolist() == [1, 2, 3, 0]
    assert pareto.ranked(rows[:0]).tolist() == []


@pytest.mark.parametrize("m", [1, 2, 3])
def test_expected_gains_are_proportional_to_hypervolume(m: int) -> None:
    """Points that are certain, against one row: within the error of 128 directions."""
    rng = np.random.default_rng(m)
    row, points = np.full((1, m), 0.5), rng.random((40, m))
    reference = np.ones(m)
    gains = pareto.expected_gains(points[None], row, reference)
    exact = [pareto.hypervolume(np.vstack([row, point]), reference) - 0.5**m for point in points]
    assert np.corrcoef(gains, exact)[0, 1] > 0.99
    assert (gains[np.all(points >= 0.5, axis=1)] == 0).all()


def test_a_gain_is_the_mean_over_draws_and_knows_no_gain_beyond_the_reference() -> None:
    reference, rows = np.ones(2), np.array([[0.5, 0.5]])
    better, worse = np.array([[0.2, 0.2]]), np.array([[0.9, 0.9]])
    sure = pareto.expected_gains(better[None], rows, reference)
    half = pareto.expected_gains(np.stack([better, worse]), rows, reference)
    assert half == pytest.approx(sure / 2)
    beyond = np.array([[[0.0, 1.5]]])
    assert pareto.expected_gains(beyond, rows[:0], reference).tolist() == [0.0]


def test_the_knee_bulges_most_from_the_line_between_the_ends() -> None:
    front = np.array([[10.0, -0.2], [20.0, -0.5], [30.0, -0.6], [50.0, -0.7]])
    # scaled sums: 1, .25 + .4, .5 + .2, 1
    assert pareto.knee(front) == 1
    assert pareto.knee(front * [1000, 1] + [7, 3]) == 1, "whatever the units"


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 2.0], [2.0, 1.0]],
        [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]],
        [[0.0, 1.0], [0.9, 0.9], [1.0, 0.0]],
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]],
    ],
    ids=["two", "straight", "hollow", "equal"],
)
def test_a_front_without_a_bulge_has_no_knee(rows: list[list[float]]) -> None:
    assert pareto.knee(np.array(rows)) is None
    assert pareto.knee(np.empty((0, 2))) is None


def test_coverage_counts_what_is_met_or_beaten() -> None:
    a, b = np.array([[1.0, 3.0], [3.0, 1.0]]), np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 2.0]])
    assert pareto.coverage(a, b) == pytest.approx(2 / 3)
    assert pareto.coverage(b, a) == pytest.approx(1 / 2)
    assert pareto.coverage(a, a) == 1.0
    assert pareto.coverage(a, a[:0]) == pareto.coverage(a[:0], a) == 0.0


NOISY = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*[arrays(float, (n, 2), elements=st.integers(0, 5)) for _ in range(2)])
)


@given(pair=NOISY)
def test_beyond_noise_is_the_definition_and_keeps_the_ordinary_front(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    rows, noise = pair

    def surely_dominates(i: int, j: int) -> bool:
        ahead = (rows[j] - rows[i] >= noise[i] + noise[j]).all()
        return bool(ahead and (rows[i] != rows[j]).any())

    n = range(len(rows))
    wanted = [j for j in n if not any(surely_dominates(i, j) for i in n)]
    found = pareto.non_dominated_beyond_noise(rows, noise).tolist()
    assert found == wanted
    assert set(pareto.non_dominated(rows).tolist()) <= set(found)


@given(rows=POINTS)
def test_without_noise_it_is_the_ordinary_front(rows: np.ndarray) -> None:
    found = pareto.non_dominated_beyond_noise(rows, np.zeros_like(rows))
    assert found.tolist() == pareto.non_dominated(rows).tolist()


def test_a_trial_within_the_spread_of_a_better_one_stays(objectives: Objectives) -> None:
    """10 +- 0.2 ms at mAP .5: 10.3 +- 0.2 may be as fast, 10.5 +- 0.2 is not."""
    metrics = [(10.0, 0.5, 0.4), (10.3, 0.4, 0.4), (10.5, 0.4, 0.4), (8.0, 0.1, None)]
    trials = []
    for number, (latency, quality, spread) in enumerate(metrics):
        values = {"latency_ms": latency, "map": quality}
        values |= {} if spread is None else {"latency_iqr_ms": spread}
        candidate = Candidate(number, "structural", {"d0": number})
        trials.append(Trial(candidate, Measured(values), 0.0, 1.0))
    ids = [t.candidate.id for t in pareto.front_beyond_noise(trials, objectives)]
    assert ids == [3, 0, 1]
    assert [t.candidate.id for t in pareto.front(trials, objectives)] == [3, 0]
    assert pareto.front_beyond_noise([], objectives) == []
