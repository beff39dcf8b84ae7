from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nni import parameter_expressions

from smnas.encoding import Choice
from smnas.errors import SpaceError
from smnas.nni_space import GRID, encoding_of


def choice_of(kind: str, *args: float) -> Choice:
    (choice,) = encoding_of({"x": {"_type": kind, "_value": list(args)}}).choices
    return choice


@pytest.mark.parametrize(
    ("kind", "args", "wanted"),
    [
        ("choice", ["a", 1, 0.5], ("a", 1, 0.5)),
        ("randint", [2, 6], (2, 3, 4, 5)),
        ("quniform", [0.5, 3.2, 1], (0.5, 1.0, 2.0, 3.0)),
        ("quniform", [0, 10, 4], (0.0, 4.0, 8.0)),
        ("qloguniform", [1, 9, 2], (1.0, 2.0, 4.0, 6.0, 8.0)),
        ("qnormal", [0, 1, 2], (-4.0, -2.0, 0.0, 2.0, 4.0)),
    ],
)
def test_short_dimensions_hold_exactly_the_values_that_nni_gives(
    kind: str, args: list, wanted: tuple
) -> None:
    assert choice_of(kind, *args).options == wanted


def test_long_ranges_become_a_grid_with_its_ends() -> None:
    uniform, log = choice_of("uniform", -1, 3), choice_of("loguniform", 1e-4, 1)
    for choice, low, high in ((uniform, -1, 3), (log, 1e-4, 1)):
        assert len(choice.options) == GRID and choice.ordinal
        assert (choice.options[0], choice.options[-1]) == (low, high)
    assert np.allclose(np.diff(uniform.options), 4 / (GRID - 1))
    assert np.allclose(np.diff(np.log(log.options)), math.log(1e4) / (GRID - 1))
    wide = choice_of("randint", 0, 1_000_000).options
    assert len(wide) == GRID and (wide[0], wide[-1]) == (0, 999_999)
    assert all(isinstance(option, int) for option in wide)


def test_normal_dimensions_are_quantiles() -> None:
    normal = np.array(choice_of("normal", 5, 2).options)
    assert normal[GRID // 2] == 5
    assert np.isclose(np.quantile(normal, 0.8413), 5 + 2, atol=0.02)
    assert np.allclose(choice_of("lognormal", 5, 2).options, np.exp(normal))


@given(
    kind=st.sampled_from(["quniform", "qloguniform", "qnormal", "qlognormal"]),
    first=st.floats(0.5, 5),
    width=st.floats(0.1, 20),
    step=st.floats(0.05, 3),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_what_nni_draws_is_within_a_grid_step_of_an_option(
    kind: str, first: float, width: float, step: float, seed: int
) -> None:
    """Where fewer values than the grid's are possible, it is an option."""
    second = width / 10 if "normal" in kind else first + width
    draw: Callable[..., float] = getattr(parameter_expressions, kind)
    value = float(draw(first, second, step, np.random.RandomState(seed)))
    options = np.array(choice_of(kind, first, second, step).options)
    inside = options[0] <= value <= options[-1]
    if kind in ("quniform", "qloguniform"):
        assert inside
    if kind == "quniform" and width / step < GRID / 2:
        assert value in options
    elif inside:
        gap = np.diff(options).max(initial=0)
        assert np.abs(options - value).min() <= gap


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ([], "is a list, expect a dict"),
        ({"x": {"_type": "unifrom", "_value": [0, 1]}}, '"x" has unsupported type "unifrom"'),
        ({"x": {"_type": "uniform", "_value": [1, 0]}}, '"x" .* must have high > low'),
        ({"x": {"_type": "loguniform", "_value": [0, 1]}}, '"x" .* must have low > 0'),
        ({"x": {"_type": "normal", "_value": [0, 0]}}, '"x" .* must have sigma > 0'),
        ({"x": {"_type": "quniform", "_value": [0, 1, 0]}}, "'x' .* wanted q above 0, got 0"),
        ({"x": {"_type": "choice", "_value": []}}, "'x' .* at least one option"),
        ({"x": {"_type": "choice", "_value": [{"_name": "a"}]}}, "'x': .* got a nested choice"),
        ({"x": {"_type": "choice", "_value": [1, 2, 1.0]}}, "'x': .* got 1.0 twice"),
        ({"x": {"_type": "choice", "_value": [[1, 2]]}}, '"x" .* should only contain numbers'),
        ({"x": {"_type": "lognormal", "_value": [0, 1e9]}}, "'x' .* not finite"),
        ({}, "wanted at least one choice"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(space: object, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        encoding_of(space)
