from __future__ import annotations

import numpy as np
import pytest

from smnas.encoding import Encoding
from smnas.regression import MODELS, Choice, Features, Model, Scale, choose


@pytest.fixture
def features() -> Features:
    return Features(Encoding.from_choices({"size": [1, 2, 4], "kind": ["a", "b", "c"]}))


def test_ordinal_choices_are_steps_and_nominal_ones_are_equally_far(features: Features) -> None:
    rows = features(np.array([[0, 0], [1, 1], [2, 2]]))
    half = np.sqrt(0.5)
    wanted = [[0, 0, half, 0, 0], [half, 0, 0, half, 0], [half, half, 0, 0, half]]
    np.testing.assert_allclose(rows, wanted)
    assert np.linalg.norm(rows[0, :2] - rows[2, :2]) == pytest.approx(1.0)
    assert np.linalg.norm(rows[0, 2:] - rows[2, 2:]) == pytest.approx(1.0)


def test_a_long_ordinal_choice_is_one_number() -> None:
    features = Features(Encoding.from_choices({"x": list(range(101))}))
    assert features(np.array([[0], [25], [100]])).tolist() == [[0.0], [0.25], [1.0]]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_ranks_what_can_be_known(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((60, 3))
    choice = choose(x, 3 * x[:, 0] + x[:, 1], [name], seed=0)
    assert choice.name == name and choice.tau > 0.5 and choice.is_informed
    model = Model(choice, x, 3 * x[:, 0] + x[:, 1])
    mean, deviation = model.predict(np.array([[0.9, 0.9, 0.5], [0.1, 0.1, 0.5]]))
    high, low = model.natural(mean)
    assert high > low + 1 and (deviation > 0).all()


def test_products_are_for_ridge_with_pairs_and_noise_for_nobody() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2, (80, 6)).astype(float)
    exclusive = (x[:, 0] != x[:, 1]) + 0.1 * x[:, 2]
    assert choose(x, exclusive, ["ridge"], seed=0).tau > 0.8
    assert not choose(x, rng.random(80), list(MODELS), seed=0).is_informed


def test_chance_is_the_95_percent_quantile_of_kendall_s_tau() -> None:
    """Its standard deviation at n = 10 is sqrt(2 x 25 / (9 x 10 x 9)) = 0.2485."""
    assert Choice("gp", 0.41, 1.0, 10, None).is_informed
    assert not Choice("gp", 0.40, 1.0, 10, None).is_informed


def test_a_scale_goes_there_and_back_and_ends_at_what_was_seen() -> None:
    y = np.exp(np.random.default_rng(0).normal(size=100)) * 1e-3
    scale = Scale(y)
    np.testing.assert_allclose(scale.natural(scale.standard(y)), y, rtol=1e-6)
    assert abs(scale.standard(y).mean()) < 1e-9
    beyond = scale.natural(np.array([-1e3, 1e3]))
    assert np.isfinite(beyond).all() and beyond[0] <= beyond[1]


def test_a_long_tail_is_no_longer_one() -> None:
    y = np.exp(2 * np.random.default_rng(0).normal(size=200))
    assert np.abs(Scale(y).standard(y)).max() < 4 < np.abs((y - y.mean()) / y.std()).max()
