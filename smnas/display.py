"""What a search shows while it runs: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from statistics import fmean
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from smnas import pareto
from smnas.journal import History, Told
from smnas.objectives.vector import Objectives
from smnas.records import Failed, Measured, Outcome, Stopped
from smnas.study import Limits
from smnas.study import Progress as StudyProgress

_LINES_SHOWN = 8


class Standing:
    """How a search stands: counts, best values, hypervolume, time left.

    Args:
        objectives: of the study.
    """

    def __init__(self, objectives: Objectives) -> None:
        self._objectives = objectives
        self._rows = np.empty((0, len(objectives.names)))
        self._seconds: list[float] = []
        self.done, self.failed, self.stopped = 0, 0, 0
        self.limits = Limits()

    def resume(self, history: History, limits: Limits) -> None:
        """Takes over what a stage's journal holds; the front of earlier stages stays."""
        self.limits, self._seconds = limits, []
        self.done, self.failed, self.stopped = 0, 0, 0
        for event in history.events:
            if isinstance(event, Told):
                self.add(event.outcome)

    def add(self, outcome: Outcome, seconds: float | None = None) -> None:
        """Counts an outcome; `seconds` that its trial took, None if it was not run by this call."""
        self.done += 1
        if seconds is not None:
            self._seconds.append(seconds)
        if isinstance(outcome, Stopped):
            self.stopped += 1
            return
        if isinstance(outcome, Failed) or self._objectives.missing(outcome.metrics):
            self.failed += 1
            return
        rows = np.vstack([self._rows, self._objectives.minimised(outcome.metrics)])
        self._rows = rows[pareto.non_dominated(rows)]

    @property
    def hypervolume(self) -> float:
        return pareto.hypervolume(self._rows, self._objectives.reference_point)

    @property
    def best(self) -> dict[str, float]:
        """Best value of each objective; empty before the first measured trial."""
        return self._objectives.named(self._rows.min(axis=0)) if len(self._rows) else {}

    def seconds_left(self, running: int, workers: int) -> float | None:
        """From the trials that this call ran; None before the first or without a limit of trials.

        Args:
            running: trials under way, which are taken to be half done.
            workers: trials that run at a time.
        """
        if self.limits.trials is None or not self._seconds:
            return None
        to_do = max(0.0, self.limits.trials - self.done - running / 2)
        return fmean(self._seconds) * to_do / max(1, workers)

    def text(self, running: int, workers: int) -> str:
        """Everything in one line."""
        best = ", ".join(f"best {name} {value:.4g}" for name, value in self.best.items())
        left = self.seconds_left(running, workers)
        parts = [
            f"{running} running",
            f"{self.stopped} stopped" if self.stopped else "",
            f"{self.failed} failed",
            best or "nothing measured yet",
            f"hypervolume {self.hypervolume:.4g}",
            "" if left is None else f"about {_duration(left)} left",
        ]
        return ", ".join(part for part in parts if part)


class SearchDisplay:
    """Observer of a study; use it as a context manager around the search.

    Args:
        objectives: of the study.
        console: where to show it; on a terminal the display is live.
    """

    def __init__(self, objectives: Objectives, console: Console) -> None:
        self._standing, self._console = Standing(objectives), console
        self._objectives = objectives
        self._lines: list[str] = []
        self._running: dict[int, float] = {}
        self._workers = 0
        self._bar = Progress(
            TextColumn("trials"), BarColumn(), MofNCompleteColumn(), console=console
        )
        self._task = self._bar.add_task("trials", total=None)
        self._live = Live(console=console, refresh_per_second=2, get_renderable=self._picture)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def started(self, stage: str, history: History, limits: Limits) -> None:
        """Called before the first trial of each stage."""
        self._standing.resume(history, limits)
        self._say(f"{stage} stage{_parents(history)}")
        if self._standing.done:
            self._say(f"resuming: {self._standing.done} trials are finished already")

    def __call__(self, progress: StudyProgress) -> None:
        now = time.monotonic()
        began = {c.id: self._running.get(c.id, now) for c in progress.running}
        self._workers = max(self._workers, len(began))
        if progress.finished:
            candidate_id, outcome = progress.finished
            seconds = now - self._running.get(candidate_id, now)
            self._standing.add(outcome, seconds)
            self._say(self._line(candidate_id, outcome, seconds, len(began)))
        self._running = began

    def _line(self, candidate_id: int, outcome: Outcome, seconds: float, running: int) -> str:
        total = f"/{self._standing.limits.trials}" if self._standing.limits.trials else ""
        head = f"[{self._standing.done}{total}] trial {candidate_id} ({_duration(seconds)}): "
        line = head + describe_outcome(outcome, self._objectives)
        # the live display shows the standing below its lines
        return (
            line
            if self._console.is_terminal
            else f"{line} | {self._standing.text(running, self._workers)}"
        )

    def _say(self, line: str) -> None:
        if self._console.is_terminal:
            self._lines = [*self._lines, line][-_LINES_SHOWN:]
        else:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _picture(self) -> Group:
        self._bar.update(
            self._task, total=self._standing.limits.trials, completed=self._standing.done
        )
        now = time.monotonic()
        table = Table.grid(padding=(0, 1))
        for line in self._lines:
            table.add_row(line)
        ids = ", ".join(f"{i} ({_duration(now - t)})" for i, t in self._running.items())
        table.add_row(f"running: {ids or 'none'}")
        table.add_row(self._standing.text(len(self._running), self._workers))
        return Group(self._bar, table)


def _parents(history: History) -> str:
    parents = history.header["experiment"].get("parents", {})
    return f": the inside of {', '.join(parents)}" if parents else ""


def describe_outcome(outcome: Outcome, objectives: Objectives) -> str:
    """One short line: the objectives' values, or why there are none."""
    if isinstance(outcome, Measured):
        names = [n for n in objectives.names if n in outcome.metrics]
        return ", ".join(f"{name} {outcome.metrics[name]:.4g}" for name in names)
    if isinstance(outcome, Stopped):
        return f"{outcome.reason}: {outcome.detail}"
    return f"failed, {outcome.reason}: {(outcome.detail.splitlines() or [''])[0]}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
