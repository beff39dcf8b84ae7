from __future__ import annotations

from typing import Any

import pytest

from smnas.nni_results import outcome_of
from smnas.objectives.vector import Objectives
from smnas.records import Failed, Measured


@pytest.mark.parametrize(
    ("reported", "words"),
    [
        (0.5, "wanted a dict with ['latency_ms', 'map'], got 0.5"),
        (None, "got None"),
        ({"default": 1.0, "map": 0.5}, "wanted finite numbers for ['latency_ms'], got [None]"),
        ({"map": float("nan"), "latency_ms": True}, "['latency_ms', 'map'], got [True, nan]"),
        ({"state": "failed", "reason": "?"}, "that smnas did not write"),
    ],
)
def test_what_is_no_result_is_a_failure(objectives: Objectives, reported: Any, words: str) -> None:
    outcome = outcome_of(reported, objectives)
    assert isinstance(outcome, Failed) and outcome.reason == "error" and words in outcome.detail


def test_a_reported_failure_keeps_its_reason(objectives: Objectives) -> None:
    failure = Failed("over_latency", "90 ms", {"latency_ms": 90.0})
    assert outcome_of(failure.to_json(), objectives) == failure


def test_numbers_become_metrics_and_info_is_kept(objectives: Objectives) -> None:
    reported = {"default": 0.5, "map": 0.5, "latency_ms": 7, "info": {"device": "GPU"}, "note": "x"}
    outcome = outcome_of(reported, objectives)
    assert outcome == Measured({"map": 0.5, "latency_ms": 7}, {"device": "GPU"})
