"""NNI's own search-space types as ordered options, so that the optimiser can search any of them.

For `smnas.tuner.ParetoTuner` without a `space`. The dimensions become choices of
`smnas.encoding.Encoding`, which alone translates between options and index vectors. Imports no
torch or pymoo.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from nni.common.hpo_utils import validate_search_space

from smnas.encoding import Encoding
from smnas.errors import SpaceError
from smnas.records import Option

GRID = 1001
"""Values that stand for a continuous dimension: steps of a thousandth of its range."""


def encoding_of(search_space: Any) -> Encoding:
    """The encoding of an NNI search space, without constraints.

    `choice` keeps its options. All other types become ordinal choices whose values have equal
    probability under NNI's distribution: evenly spaced for `uniform`, evenly spaced logarithms for
    `loguniform`, quantiles for `normal` and `lognormal`. Quantised types (`q...`) hold only values
    that NNI itself gives, and all of them where they are not closer together than the grid.

    Args:
        search_space: `{label: {"_type": ..., "_value": [...]}}`.

    Raises:
        SpaceError: no search space, an unknown type, wrong arguments, or a nested choice.
    """
    try:
        validate_search_space(search_space, raise_exception=True)
    except (ValueError, TypeError, IndexError) as error:
        raise SpaceError(f"search space: {error}") from error
    return Encoding.from_choices(
        {name: _options(name, spec["_type"], spec["_value"]) for name, spec in search_space.items()}
    )


def _options(label: str, kind: str, args: Sequence[Any]) -> list[Option]:
    if kind == "choice":
        return _plain_options(label, args)
    if kind == "randint":
        low, high = args
        whole = np.linspace(low, high - 1, min(high - low, GRID)).round()
        return [int(value) for value in whole]
    values = _quantiles(kind.removeprefix("q"), *args[:2])
    if kind.startswith("q"):
        values = _quantised(label, kind, values, args)
    if not np.isfinite(values).all():
        raise SpaceError(f"search space: {label!r} ({kind}): values are not finite: {list(args)}")
    return [float(value) for value in np.unique(values)]


def _plain_options(label: str, args: Sequence[Any]) -> list[Option]:
    if not args:
        raise SpaceError(f"search space: {label!r} (choice): wanted at least one option, got none")
    for option in args:
        if isinstance(option, Mapping):
            raise SpaceError(
                f"search space: {label!r}: wanted a choice of strings or numbers, got a nested"
                " choice; write its parts as choices of their own"
            )
    for k, option in enumerate(args):
        if option in args[:k]:
            raise SpaceError(
                f"search space: {label!r}: wanted different options, got {option!r} twice"
            )
    return list(args)


def _quantiles(kind: str, first: float, second: float) -> np.ndarray:
    """`GRID` ascending values of equal probability; `first`, `second` as in NNI's search space."""
    if kind == "uniform":
        return np.linspace(first, second, GRID)
    if kind == "loguniform":
        # the ends as the user wrote them, not as exp(log(x))
        inside = np.exp(np.linspace(math.log(first), math.log(second), GRID)[1:-1])
        return np.array([first, *inside, second])
    bell = NormalDist(first, second)
    normal = np.array([bell.inv_cdf((k + 0.5) / GRID) for k in range(GRID)])
    with np.errstate(over="ignore"):  # the caller refuses what is not finite
        return np.exp(normal) if kind == "lognormal" else normal


def _quantised(label: str, kind: str, values: np.ndarray, args: Sequence[Any]) -> np.ndarray:
    """As `nni.parameter_expressions` rounds: multiples of `q`, clipped where there are bounds."""
    step = args[2]
    if not step > 0:
        raise SpaceError(f"search space: {label!r} ({kind}): wanted q above 0, got {step!r}")
    rounded = np.round(values / step) * step
    return rounded if "normal" in kind else np.clip(rounded, args[0], args[1])
