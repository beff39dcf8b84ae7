from __future__ import annotations

import math

import numpy as np
import pytest

from smnas.errors import ConfigError
from smnas.objectives.vector import Objectives


def test_maximised_objectives_change_sign_and_back(objectives: Objectives) -> None:
    row = objectives.minimised({"latency_ms": 12.0, "map": 0.4, "params_m": 3.0})
    assert row.tolist() == [12.0, -0.4]
    assert objectives.named(row) == {"latency_ms": 12.0, "map": 0.4}
    assert objectives.reference_point.tolist() == [50.0, 0.0]


def test_missing_names_what_is_not_there(objectives: Objectives) -> None:
    assert objectives.missing({"latency_ms": 1.0}) == ["map"]
    assert objectives.missing({"latency_ms": 1.0, "map": np.float64(0)}) == []


@pytest.mark.parametrize(
    ("directions", "reference", "message"),
    [
        ({}, {}, "wanted at least one, got none"),
        ({"map": "max"}, {"map": 0}, "objectives: map: wanted minimize or maximize, got 'max'"),
        ({"map": "maximize"}, {}, r"wanted a value for each of \['map'\], got \[\]"),
        ({"map": "maximize"}, {"map": 0, "x": 1}, r"got \['map', 'x'\]"),
        ({"map": "maximize"}, {"map": math.inf}, "map: wanted a finite number, got inf"),
        ({"map": "maximize"}, {"map": "0"}, "map: wanted a finite number, got '0'"),
    ],
)
def test_wrong_objectives_are_refused(directions: dict, reference: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Objectives(directions, reference)
