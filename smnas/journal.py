"""The append-only record of a search: a header, then `asked` and `outcome` events, one JSON line
each.

The journal is the truth: the optimiser's state is its replay, and every report reads nothing else.
A line is written whole and synced before the search goes on, so a `kill -9` costs at most the line
being written. Imports no torch, NNI or pymoo.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from smnas.errors import JournalError, RunError
from smnas.records import Candidate, Outcome, outcome_from_json

SCHEMA = 1
FILE_NAME = "journal.jsonl"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """The optimiser asked for a candidate at `time` (seconds since the epoch)."""

    candidate: Candidate
    time: float


@dataclass(frozen=True)
class Told:
    """A candidate's outcome reached the optimiser at `time` (seconds since the epoch)."""

    id: int
    outcome: Outcome
    time: float


Event = Asked | Told


def event_to_json(event: Event) -> dict[str, Any]:
    """An event as a journal line holds it."""
    if isinstance(event, Asked):
        return {"event": "asked", "time": event.time, "candidate": event.candidate.to_json()}
    return {
        "event": "outcome",
        "time": event.time,
        "id": event.id,
        "outcome": event.outcome.to_json(),
    }


def event_from_json(record: Mapping[str, Any]) -> Event:
    """The inverse of `event_to_json`.

    Raises:
        ValueError, KeyError, TypeError or AttributeError: the record is no event.
    """
    match record["event"]:
        case "asked":
            return Asked(Candidate.from_json(record["candidate"]), record["time"])
        case "outcome":
            return Told(record["id"], outcome_from_json(record["outcome"]), record["time"])
        case other:
            raise ValueError(f"wanted asked or outcome, got {other!r}")


@dataclass(frozen=True)
class Trial:
    """A candidate and what became of it; `outcome` is None while it runs (or was interrupted)."""

    candidate: Candidate
    outcome: Outcome | None
    asked: float
    told: float | None


@dataclass(frozen=True)
class History:
    """A journal that was read, or those of all stages of a run.

    Args:
        header: the first line; of the first stage.
        events: in order.
        later: first lines of the later stages' journals.
    """

    header: Mapping[str, Any]
    events: tuple[Event, ...]
    later: tuple[Mapping[str, Any], ...] = ()

    def experiment_of(self, candidate: Candidate) -> Mapping[str, Any]:
        """The settings of the stage that a candidate belongs to, as its header holds them."""
        experiments = [header["experiment"] for header in (self.header, *self.later)]
        own = [e for e in experiments if e.get("stage") == candidate.stage]
        return own[0] if own else experiments[0]

    def trials(self) -> list[Trial]:
        """One entry for each candidate, by id."""
        told = {event.id: event for event in self.events if isinstance(event, Told)}
        result = []
        for event in self.events:
            if isinstance(event, Asked):
                end = told.get(event.candidate.id)
                outcome, when = (end.outcome, end.time) if end else (None, None)
                result.append(Trial(event.candidate, outcome, event.time, when))
        return sorted(result, key=lambda trial: trial.candidate.id)

    def pending(self) -> list[Candidate]:
        """Candidates that were asked and never came back, by id."""
        return [trial.candidate for trial in self.trials() if trial.outcome is None]


class Journal:
    """The file, open for appending.

    Use `Journal.open`; it creates the file with its header or reads the one that is there.

    Args:
        path: the file, which ends in a whole line.
        history: what it holds so far.
        clock: seconds since the epoch.
    """

    def __init__(
        self, path: Path, history: History, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self.history = history
        self._clock = clock
        self._file = path.open("ab", buffering=0)

    @classmethod
    def open(
        cls, path: Path, header: Mapping[str, Any], clock: Callable[[], float] = time.time
    ) -> Journal:
        """Opens the journal of a run, new or to be resumed.

        Args:
            path: the file; its folder is made.
            header: what identifies the experiment under `"experiment"`; the rest (device, versions,
                commit) is kept from the first start.

        Raises:
            JournalError: the file is corrupt or belongs to another experiment.
            RunError: the folder cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or _is_torn_header(path):
                line = {"event": "header", "schema": SCHEMA, "time": clock(), **header}
                _write_new(path, _encode(line))
            _drop_torn_line(path)
            history = read(path)
            _check_same(path, history.header, header)
            return cls(path, history, clock)
        except OSError as error:
            raise RunError(f"run folder {path.parent}: cannot be written: {error}") from error

    def asked(self, candidate: Candidate) -> None:
        """Records that the optimiser asked for a candidate."""
        self._append(event_to_json(Asked(candidate, self._clock())))

    def told(self, candidate_id: int, outcome: Outcome) -> None:
        """Records a candidate's outcome; call it before the optimiser is told."""
        self._append(event_to_json(Told(candidate_id, outcome, self._clock())))

    def close(self) -> None:
        self._file.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        data = _encode(line)
        try:
            written = self._file.write(data)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}: cannot append: {error}") from error
        if written != len(data):
            raise RunError(f"{self.path}: wrote {written} of {len(data)} bytes; is the disk full?")


def read(path: Path) -> History:
    """Reads a journal without changing it; a torn last line is left out with a warning.

    Args:
        path: the file, or the run folder that holds it.

    Raises:
        RunError: there is no journal.
        JournalError: a line is not a journal line, or the order of events is impossible; with file
            and line.
    """
    path = path / FILE_NAME if path.is_dir() else path
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise RunError(f"run: no journal at {path}") from error
    except OSError as error:
        raise RunError(f"run: {path} cannot be read: {error}") from error
    *lines, torn = data.split(b"\n")
    if torn:
        _logger.warning("%s: dropped a torn last line of %d bytes", path, len(torn))
    if not lines:
        raise JournalError(f"{path}: wanted a header line, got an empty file")
    header = _header(path, lines[0])
    return History(MappingProxyType(header), tuple(_events(path, lines[1:])))


def read_run(run: Path) -> History:
    """Reads all stages of a run as one history: the first stage's header, everyone's events.

    Args:
        run: folder with the first stage's journal, and a folder with a journal for each later
            stage; or one journal file, which is read alone.

    Raises:
        RunError: there is no journal.
        JournalError: a journal is corrupt.
    """
    later = [read(path) for path in run.glob(f"*/{FILE_NAME}")]
    first, *others = [read(run), *sorted(later, key=lambda history: history.header["time"])]
    events = (event for history in (first, *others) for event in history.events)
    return History(first.header, tuple(events), tuple(history.header for history in others))


def _header(path: Path, line: bytes) -> dict[str, Any]:
    header = _decode(path, 1, line)
    if header.get("event") != "header":
        raise JournalError(f"{path}:1: wanted a header, got event {header.get('event')!r}")
    if header.get("schema") != SCHEMA:
        raise JournalError(f"{path}:1: wanted schema {SCHEMA}, got {header.get('schema')!r}")
    return header


def _events(path: Path, lines: list[bytes]) -> Iterator[Event]:
    running: set[int] = set()
    asked: set[int] = set()
    for number, line in enumerate(lines, start=2):
        event = _event(path, number, line)
        if isinstance(event, Asked):
            if event.candidate.id in asked:
                raise JournalError(f"{path}:{number}: candidate {event.candidate.id} asked twice")
            asked.add(event.candidate.id)
            running.add(event.candidate.id)
        elif event.id not in running:
            state = "told twice" if event.id in asked else "told but never asked"
            raise JournalError(f"{path}:{number}: candidate {event.id} was {state}")
        else:
            running.discard(event.id)
        yield event


def _event(path: Path, number: int, line: bytes) -> Event:
    record = _decode(path, number, line)
    try:
        return event_from_json(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise JournalError(f"{path}:{number}: corrupt event: {error!r}") from error


def _decode(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise JournalError(f"{path}:{number}: wanted a JSON line, got {line[:60]!r}") from error
    if not isinstance(record, dict):
        raise JournalError(f"{path}:{number}: wanted a JSON object, got {line[:60]!r}")
    return record


def _encode(line: Mapping[str, Any]) -> bytes:
    # allow_nan=False: NaN and infinity are no JSON, and a failure is a reason, never a number
    return json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _write_new(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _is_torn_header(path: Path) -> bool:
    # killed while the very first line was being written: nothing has been asked yet
    return b"\n" not in path.read_bytes()


def _drop_torn_line(path: Path) -> None:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        _logger.warning("%s: dropped a torn last line of %d bytes", path, len(data) - whole)
        os.truncate(path, whole)


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, now = dict(old["experiment"]), json.loads(json.dumps(new["experiment"]))
    if now.get("library"):
        # journals from before there was a choice are torchvision's
        before.setdefault("library", "torchvision")
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise JournalError(
                f"run folder {path.parent} belongs to another experiment: {key}: "
                f"it has {before.get(key)!r}, this one has {now.get(key)!r};"
                " name another with --run"
            )
