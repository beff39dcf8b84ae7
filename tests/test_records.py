from __future__ import annotations

import json
import math

import pytest

from smnas.records import (
    Candidate,
    Failed,
    Measured,
    Outcome,
    Stopped,
    expected,
    identity,
    outcome_from_json,
)


def test_identity_does_not_depend_on_the_order_of_labels() -> None:
    assert identity({"b": 2, "a": "x"}) == identity({"a": "x", "b": 2}) == '{"a":"x","b":2}'


@pytest.mark.parametrize(
    ("one", "other"),
    [({"a": 1}, {"a": "1"}), ({"a": 1}, {"a": True}), ({"a": 1}, {"b": 1})],
)
def test_identity_tells_apart(one: dict, other: dict) -> None:
    assert identity(one) != identity(other)


def test_a_candidate_survives_json_and_cannot_be_changed() -> None:
    candidate = Candidate(3, "structural", {"a": 1, "b": "x"}, "mating")
    assert Candidate.from_json(json.loads(json.dumps(candidate.to_json()))) == candidate
    with pytest.raises(TypeError):
        candidate.sample["a"] = 2  # type: ignore[index]


@pytest.mark.parametrize(
    "outcome",
    [
        Measured({"map": 0.25, "latency_ms": 3.5}, {"device": "cpu", "curve": [{"epoch": 1}]}),
        Failed("timeout", "longer than 5 s", {"latency_ms": 3.5}),
        Stopped("pruned", "because", {"latency_ms": 3.5}, {"map": 0.25}, {"epochs": 4}),
    ],
)
def test_outcomes_survive_json(outcome: Outcome) -> None:
    assert outcome_from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "0.5", True])
def test_a_metric_is_a_finite_number(value: object) -> None:
    with pytest.raises(ValueError, match="metric map: wanted a"):
        Measured({"map": value})  # type: ignore[dict-item]


def test_a_failure_needs_a_known_reason() -> None:
    with pytest.raises(ValueError, match="wanted one of .*crash.*, got 'bad luck'"):
        Failed("bad luck", "")


def test_a_stop_needs_a_known_reason_and_is_expected_to_reach_its_estimate() -> None:
    with pytest.raises(ValueError, match="wanted one of .*pruned.*, got 'bored'"):
        Stopped("bored", "", {}, {})
    stopped = Stopped("early_stopped", "", {"latency_ms": 3.5}, {"map": 0.25})
    assert expected(stopped) == {"latency_ms": 3.5, "map": 0.25}
    assert expected(Measured({"map": 0.5})) == {"map": 0.5}


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'running'"):
        outcome_from_json({"state": "running"})
