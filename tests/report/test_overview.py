from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from smnas.errors import MixedDevicesError, RunError
from smnas.journal import Asked, Event, History, Told
from smnas.records import Candidate, Failed, Measured, Outcome, Stopped
from smnas.report import overview
from smnas.report.overview import Failures, Knowledge, Spent

HEADER: dict[str, Any] = {
    "name": "run",
    "experiment": {
        "objectives": {"latency_ms": "minimize", "map": "maximize"},
        "reference_point": {"latency_ms": 10.0, "map": 0.0},
        "baselines": {},
    },
}


def made(latency: float, quality: float, **info: str) -> Measured:
    return Measured({"latency_ms": latency, "map": quality, "train_seconds": 1800.0}, info)


def history(outcomes: Sequence[Outcome | None], reference: float = 10.0) -> History:
    """Trial k is asked for at k hours and ends an hour later; None is still running."""
    events: list[Event] = []
    for k, outcome in enumerate(outcomes):
        stage = "structural" if k < 3 else "modular"
        events.append(Asked(Candidate(k, stage, {"x": k}), 3600.0 * k))
        if outcome is not None:
            events.append(Told(k, outcome, 3600.0 * (k + 1)))
    experiment = HEADER["experiment"] | {"reference_point": {"latency_ms": reference, "map": 0.0}}
    return History({**HEADER, "experiment": experiment}, tuple(events))


SLOW = Failed("over_latency", "12.0 ms, the bound is 9 ms")
RUN = history([made(5, 0.4), SLOW, made(8, 0.2), made(8, 0.6), Failed("crash", "a\nb"), None])


def test_hypervolume_grows_over_hours() -> None:
    # (10-5) x .4; the failure and the dominated one add nothing; then (10-8) x (.6-.4)
    grown = overview.growth(RUN)
    assert grown.hours == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert grown.hypervolume == pytest.approx([2.0, 2.0, 2.0, 2.4, 2.4])
    assert overview.growth(history([])) == overview.Growth([], [])


def test_the_budget_of_each_stage() -> None:
    assert overview.budget(RUN) == [
        Spent(
            "structural", asked=3, measured=2, failed=1, stopped=0, hours=3.0, training_hours=1.0
        ),
        Spent("modular", asked=3, measured=1, failed=1, stopped=0, hours=2.0, training_hours=0.5),
    ]
    assert overview.budget(history([None])) == [Spent("structural", 1, 0, 0, 0, 0.0, 0.0)]


def test_failures_by_reason_the_most_frequent_first() -> None:
    meaning = "latency is over the bound, so it was not trained"
    crash = Failures("crash", "the trial's process ended without an outcome", [0], "a")
    found = overview.failures(history([Failed("crash", "a\nb"), SLOW, SLOW]))
    assert found == [Failures("over_latency", meaning, [1, 2], SLOW.detail), crash]
    assert overview.failures(history([Failed("crash", "")]))[0].detail == ""
    assert overview.failures(history([made(1, 1.0)])) == []


def test_stopped_trials_are_listed_and_are_no_failures() -> None:
    stopped = Stopped("early_stopped", "after 1 of 4 epochs", {"latency_ms": 9.0}, {"map": 0.1})
    run = history([made(1, 1.0), stopped])
    (found,) = overview.failures(run)
    assert (found.reason, found.ids) == ("early_stopped", [1])
    (spent,) = overview.budget(run)
    assert (spent.asked, spent.measured, spent.failed, spent.stopped) == (2, 1, 0, 1)


def test_what_the_models_knew_round_by_round() -> None:
    def asked(key: int, origin: str, group: int | None = None, **tau: float) -> Asked:
        stage = "structural" if group is None else "modular"
        return Asked(
            Candidate(key, stage, {"x": key}, origin, group=group, knowledge=tau), float(key)
        )

    events = [
        asked(0, "random"),
        asked(1, "model", map=0.5),
        asked(2, "model", map=0.5),
        asked(3, "mating", map=0.5),
        asked(4, "mating", map=0.1),
        asked(5, "model", group=1, map=0.7),
        asked(6, "model", group=2, map=0.7),
    ]
    assert overview.knowledge(History(HEADER, tuple(events))) == [
        Knowledge("structural", None, [1, 2, 3], 2, {"map": 0.5}),
        Knowledge("structural", None, [4], 0, {"map": 0.1}),
        Knowledge("modular", 1, [5], 1, {"map": 0.7}),
        Knowledge("modular", 2, [6], 1, {"map": 0.7}),
    ]
    assert overview.knowledge(RUN) == []


def test_runs_are_compared_against_the_worst_reference() -> None:
    fast = history([made(2, 0.2), made(4, 0.4)], reference=10.0)
    good = history([made(4, 0.4), made(6, 0.8)], reference=20.0)
    found = overview.compare([fast, good])
    assert found.reference == {"latency_ms": 20.0, "map": 0.0}
    assert found.hypervolume == pytest.approx([18 * 0.2 + 16 * 0.2, 16 * 0.4 + 14 * 0.4])
    # the equal one is covered, and both have it on the joint front
    assert found.coverage == [[1.0, 0.5], [0.5, 1.0]] and found.joint == [2, 2]


def test_a_run_without_a_front_compares() -> None:
    found = overview.compare([history([made(5, 0.4)]), history([SLOW])])
    assert found.hypervolume == [2.0, 0.0] and found.joint == [1, 0]
    assert found.coverage == [[1.0, 0.0], [0.0, 0.0]]


def test_other_objectives_do_not_compare() -> None:
    experiment = HEADER["experiment"] | {
        "objectives": {"map": "maximize"},
        "reference_point": {"map": 0.0},
    }
    with pytest.raises(RunError, match="wanted runs with the objectives .* in run"):
        overview.compare([RUN, History({**HEADER, "experiment": experiment}, ())])


def test_runs_of_two_devices_do_not_compare() -> None:
    here, there = (history([made(5, 0.4, device=name)]) for name in ("cpu", "gpu"))
    overview.check_comparable([here, here])
    overview.check_comparable([here, history([made(5, 0.4)])])
    with pytest.raises(MixedDevicesError, match="wanted latency_ms of one device, .* cpu, gpu"):
        overview.check_comparable([here, there])
