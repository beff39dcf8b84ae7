from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toy import toy_outcome, toy_outcome_with_failures

from smnas.encoding import Encoding
from smnas.journal import FILE_NAME, Asked, Journal, read
from smnas.objectives.vector import Objectives
from smnas.optimizer import Optimizer
from smnas.records import Candidate, Outcome, Sample
from smnas.study import Limits, Progress, Study


class FakeRunner:
    """Finishes the newest candidate first, one a call, and can be killed after a number of
    results."""

    def __init__(
        self, workers: int, outcome: Callable[[Sample], Outcome], dies_after: int | None = None
    ) -> None:
        self._workers, self._outcome, self._left = workers, outcome, dies_after
        self.running: list[Candidate] = []
        self.ran: list[Candidate] = []

    @property
    def free(self) -> int:
        return self._workers - len(self.running)

    def submit(self, candidate: Candidate) -> None:
        self.running.append(candidate)
        self.ran.append(candidate)

    def collect(self, timeout: float) -> list[tuple[int, Outcome]]:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left = None if self._left is None else self._left - 1
        candidate = self.running.pop()
        return [(candidate.id, self._outcome(candidate.sample))]


@pytest.fixture
def search(
    tmp_path: Path, encoding: Encoding, objectives: Objectives, toy_header: dict
) -> Callable[..., tuple[str, FakeRunner]]:
    def run(
        name: str = "run",
        trials: int | None = 30,
        workers: int = 1,
        dies_after: int | None = None,
        generational: bool = False,
        limits: Limits | None = None,
        **options: Callable,
    ) -> tuple[str, FakeRunner]:
        optimizer = Optimizer(encoding, objectives, population=8, seed=4, generational=generational)
        runner = FakeRunner(workers, toy_outcome_with_failures, dies_after)
        journal = Journal.open(tmp_path / name / FILE_NAME, toy_header)
        try:
            study = Study(optimizer, runner, journal, limits or Limits(trials), **options)
            return study.run(), runner
        finally:
            journal.close()

    return run


def asked(path: Path) -> list[Candidate]:
    return [event.candidate for event in read(path).events if isinstance(event, Asked)]


@pytest.mark.parametrize("generational", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_stops_after_the_trials_and_everything_is_in_the_journal(
    search: Callable, tmp_path: Path, workers: int, generational: bool
) -> None:
    reason, runner = search(workers=workers, generational=generational)
    assert reason == "trials"
    trials = read(tmp_path / "run").trials()
    assert len(trials) == len(runner.ran) == 30
    assert all(t.outcome == toy_outcome_with_failures(t.candidate.sample) for t in trials)


@pytest.mark.parametrize("dies_after", [0, 3, 8, 9, 20])
def test_one_worker_killed_and_resumed_equals_uninterrupted(
    search: Callable, tmp_path: Path, dies_after: int
) -> None:
    search("whole")
    with pytest.raises(KeyboardInterrupt):
        search("cut", dies_after=dies_after)
    _, second = search("cut")
    assert asked(tmp_path / "cut") == asked(tmp_path / "whole")
    # the one that was running is run again; what was finished is not
    assert [c.id for c in second.ran] == list(range(dies_after, 30))


def test_several_workers_killed_twice_lose_and_repeat_nothing(
    search: Callable, tmp_path: Path
) -> None:
    for dies_after in (7, 9):
        with pytest.raises(KeyboardInterrupt):
            search(workers=3, dies_after=dies_after)
    before = {t.candidate.id for t in read(tmp_path / "run").trials() if t.outcome}
    assert len(before) == 16
    _, runner = search(workers=3)
    assert not before & {c.id for c in runner.ran}
    trials = read(tmp_path / "run").trials()
    assert len(trials) == 30 and all(t.outcome for t in trials)
    assert len({t.candidate.identity for t in trials}) == 30


def test_a_complete_run_does_nothing_more_and_can_be_extended(search: Callable) -> None:
    search()
    reason, runner = search()
    assert (reason, runner.ran) == ("trials", [])
    _, runner = search(trials=35)
    assert [c.id for c in runner.ran] == [30, 31, 32, 33, 34]


def test_hours_end_the_asking_not_the_running(search: Callable, tmp_path: Path) -> None:
    seconds = iter(range(0, 100_000, 600))
    reason, runner = search(
        workers=2, limits=Limits(None, hours=1.0), clock=lambda: float(next(seconds))
    )
    assert reason == "hours"
    assert 0 < len(runner.ran) < 30
    assert all(t.outcome for t in read(tmp_path / "run").trials())


def test_an_exhausted_space_ends_the_search(
    tmp_path: Path, objectives: Objectives, toy_header: dict
) -> None:
    small = Encoding.from_choices({f"d{i}": [0, 1] for i in range(4)} | {"kind": ["a", "b"]})
    journal = Journal.open(tmp_path / FILE_NAME, toy_header)
    runner = FakeRunner(2, toy_outcome)
    optimizer = Optimizer(small, objectives, population=4)
    assert Study(optimizer, runner, journal, Limits()).run() == "exhausted"
    assert len({c.identity for c in runner.ran}) == small.size == 32
    journal.close()


def test_the_observer_sees_every_submission_and_every_outcome(search: Callable) -> None:
    seen: list[Progress] = []
    search(trials=5, workers=2, observe=seen.append)
    finished = [p.finished for p in seen if p.finished]
    assert sorted(i for i, _ in finished) == [0, 1, 2, 3, 4]
    assert len(seen) == 10 and max(len(p.running) for p in seen) == 2
    assert seen[-1].asked == 5 and seen[-1].running == ()


def test_the_journal_holds_an_outcome_before_the_optimiser_hears_of_it(
    tmp_path: Path, encoding: Encoding, objectives: Objectives, toy_header: dict
) -> None:
    journal = Journal.open(tmp_path / FILE_NAME, toy_header)

    class Watching(Optimizer):
        def tell(self, candidate_id: int, outcome: Outcome) -> None:
            told = {t.candidate.id for t in read(tmp_path).trials() if t.outcome}
            assert candidate_id in told
            super().tell(candidate_id, outcome)

    Study(Watching(encoding, objectives), FakeRunner(1, toy_outcome), journal, Limits(5)).run()
    journal.close()
