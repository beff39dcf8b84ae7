"""The loop of a search and only the loop: ask, submit, collect, append, tell, stop.

Who decides (the optimiser), who runs (the runner) and who remembers (the journal) are protocols
here. Imports no torch, NNI or pymoo.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from smnas.errors import SpaceExhausted
from smnas.journal import Asked, History
from smnas.records import Candidate, Outcome


class Asks(Protocol):
    """An optimiser, see `smnas.optimizer.Optimizer`."""

    def ask(self) -> Candidate | None: ...

    def tell(self, candidate_id: int, outcome: Outcome) -> None: ...

    def replay(self, candidate: Candidate) -> None: ...


class Runs(Protocol):
    """Something that turns candidates into outcomes, see `smnas.runner.EmbeddedRunner`."""

    @property
    def free(self) -> int: ...

    @property
    def running(self) -> Sequence[Candidate]: ...

    def submit(self, candidate: Candidate) -> None: ...

    def collect(self, timeout: float) -> list[tuple[int, Outcome]]: ...


class Remembers(Protocol):
    """A store of events, see `smnas.journal.Journal`."""

    history: History

    def asked(self, candidate: Candidate) -> None: ...

    def told(self, candidate_id: int, outcome: Outcome) -> None: ...


@dataclass(frozen=True)
class Limits:
    """When to stop asking; running trials are always waited for.

    Args:
        trials: number of candidates in the whole study, failed ones included; None for no limit.
        hours: of this call, not counting earlier ones that it resumes; None for no limit.
    """

    trials: int | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Progress:
    """What an observer sees after every event.

    Args:
        asked: candidates so far.
        running: those that a worker has now.
        finished: id and outcome that just came in, None after a submission.
    """

    asked: int
    running: tuple[Candidate, ...]
    finished: tuple[int, Outcome] | None = None


def replay(optimizer: Asks, history: History) -> list[Candidate]:
    """Restores an optimiser from a journal; returns the candidates that never came back."""
    for event in history.events:
        if isinstance(event, Asked):
            optimizer.replay(event.candidate)
        else:
            optimizer.tell(event.id, event.outcome)
    return history.pending()


class Study:
    """One search, new or resumed.

    Args:
        optimizer: fresh; `run` replays the journal into it.
        runner: with no candidate running.
        journal: open.
        limits: when to stop asking.
        observe: called after each submission and each outcome.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        optimizer: Asks,
        runner: Runs,
        journal: Remembers,
        limits: Limits,
        observe: Callable[[Progress], None] = lambda progress: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._optimizer, self._runner, self._journal = optimizer, runner, journal
        self._limits, self._observe, self._clock = limits, observe, clock
        self._asked = 0

    def run(self) -> str:
        """Searches until a limit; returns why it stopped: `trials`, `hours` or `exhausted`."""
        started = self._clock()
        waiting = replay(self._optimizer, self._journal.history)
        self._asked = sum(isinstance(event, Asked) for event in self._journal.history.events)
        while True:
            reason = self._stop_reason(self._clock() - started)
            exhausted = self._fill_workers(waiting, reason is None)
            if not self._runner.running:
                if reason or exhausted:
                    return reason or "exhausted"
                raise RuntimeError("the optimiser waits although no candidate is running")
            for candidate_id, outcome in self._runner.collect(timeout=1.0):
                self._journal.told(candidate_id, outcome)
                self._optimizer.tell(candidate_id, outcome)
                self._report((candidate_id, outcome))

    def _fill_workers(self, waiting: list[Candidate], may_ask: bool) -> bool:
        """Gives every free worker a candidate; returns whether the space is exhausted."""
        while self._runner.free:
            if waiting:
                candidate: Candidate | None = waiting.pop(0)
            elif not may_ask or self._is_full():
                return False
            else:
                try:
                    candidate = self._ask()
                except SpaceExhausted:
                    return True
            if candidate is None:
                return False
            self._runner.submit(candidate)
            self._report(None)
        return False

    def _ask(self) -> Candidate | None:
        candidate = self._optimizer.ask()
        if candidate is not None:
            self._journal.asked(candidate)
            self._asked += 1
        return candidate

    def _is_full(self) -> bool:
        return self._limits.trials is not None and self._asked >= self._limits.trials

    def _stop_reason(self, seconds: float) -> str | None:
        if self._is_full():
            return "trials"
        if self._limits.hours is not None and seconds >= self._limits.hours * 3600:
            return "hours"
        return None

    def _report(self, finished: tuple[int, Outcome] | None) -> None:
        self._observe(Progress(self._asked, tuple(self._runner.running), finished))
