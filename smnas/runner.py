"""The embedded runner: every trial is a subprocess of this one, with a time limit and a folder of
its own.

The same `trialCommand` runs here and under NNI. A trial finds its candidate and its folder through
environment variables (`SMNAS_SAMPLE`, `SMNAS_TRIAL_DIR`, `SMNAS_SEED`, `SMNAS_LIBRARY`), writes
`curve.jsonl` and `outcome.json` there, and ends when this process does, because its standard input
is a pipe that we hold. Imports no torch.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from smnas.errors import RunError
from smnas.records import Candidate, Failed, Outcome, Stopped, outcome_from_json
from smnas.stopping import Line, Watch

CURVE = "curve.jsonl"
"""What a trial has reported so far, in its folder."""

EXAMPLES_FILE = "examples.json"
"""What a trial's folder may hold for reports: detections in a few pictures."""

_POLL_SECONDS = 0.02
_TAIL_LINES = 20

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """A place for one trial at a time.

    Args:
        gpu: what `CUDA_VISIBLE_DEVICES` is set to, None to leave it alone.
        threads: CPU threads for the trial, at least 1.
    """

    gpu: str | None = None
    threads: int = 1


def local_workers(number: int, gpus: Sequence[str] | None = None) -> list[Worker]:
    """Workers that share this machine's cores evenly and its GPUs in turn.

    Args:
        number: of workers, at least 1.
        gpus: device numbers; None or empty where trials take no GPU.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // number)
    if not gpus:
        return [Worker(threads=threads) for _ in range(number)]
    return [Worker(gpus[k % len(gpus)], threads) for k in range(number)]


def visible_gpus() -> list[str]:
    """Numbers of the CUDA devices, from `CUDA_VISIBLE_DEVICES` or `nvidia-smi`; empty where there
    are none.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(k) for k, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU ")]


@dataclass
class _Running:
    candidate: Candidate
    worker: Worker
    process: subprocess.Popen[bytes]
    deadline: float | None
    lines: list[Line] = field(default_factory=list)
    read: int = 0
    verdict: Stopped | None = None


class EmbeddedRunner:
    """Runs trials of one study on this machine.

    Args:
        command: shell command of a trial, the experiment file's `trialCommand`.
        directory: where the command runs, its `trialCodeDirectory`.
        trials: folder that gets one folder for each candidate.
        workers: at least one.
        seed: of the study, handed to each trial.
        time_limit: seconds that a trial may take, None for any time.
        library: that detectors are built with, handed to each trial; None leaves it to them.
        watch: shown what a trial has reported, after each line; ends the trial with what it
            answers. None lets all trials run.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        command: str,
        directory: Path,
        trials: Path,
        workers: Sequence[Worker],
        *,
        seed: int = 0,
        time_limit: float | None = None,
        library: str | None = None,
        watch: Watch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command, self._directory, self._trials = command, directory, trials
        self._idle = list(workers)
        self._seed, self._time_limit, self._clock = seed, time_limit, clock
        self._library = library
        self._watch = watch
        self._running: list[_Running] = []
        self._ready: list[tuple[Candidate, Outcome]] = []

    @property
    def free(self) -> int:
        """Number of workers without a trial."""
        return max(0, len(self._idle) - len(self._ready))

    @property
    def running(self) -> Sequence[Candidate]:
        """Candidates that were submitted and not yet collected."""
        return [c for c, _ in self._ready] + [r.candidate for r in self._running]

    def submit(self, candidate: Candidate) -> None:
        """Starts a trial, or takes up the outcome that an interrupted search left behind.

        Raises:
            RunError: the trial's folder cannot be written or the command cannot be started.
        """
        folder, worker = self._trials / str(candidate.id), self._idle[0]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _only_trial(folder) as lock:
                left_behind = read_outcome(folder, candidate)
                if left_behind is not None:
                    self._ready.append((candidate, left_behind))
                    return
                process = self._start(candidate, folder, worker, lock)
        except OSError as error:
            raise RunError(f"trial folder {folder}: cannot start a trial: {error}") from error
        self._idle.remove(worker)
        deadline = None if self._time_limit is None else self._clock() + self._time_limit
        self._running.append(_Running(candidate, worker, process, deadline))

    def collect(self, timeout: float) -> list[tuple[int, Outcome]]:
        """Outcomes that came in; waits for the first one, at most `timeout` seconds."""
        give_up = self._clock() + timeout
        while True:
            done, self._ready = [(c.id, o) for c, o in self._ready], []
            for trial in list(self._running):
                if self._is_over(trial):
                    done.append((trial.candidate.id, self._finish(trial)))
            if done or self._clock() >= give_up:
                return done
            time.sleep(_POLL_SECONDS)

    def cancel(self) -> None:
        """Kills what is running. The candidates stay asked in the journal and are run again on
        resume.
        """
        for trial in self._running:
            _kill(trial.process)
            self._idle.append(trial.worker)
        self._running = []

    def _start(
        self, candidate: Candidate, folder: Path, worker: Worker, lock: IO[str]
    ) -> subprocess.Popen[bytes]:
        sample = folder / "sample.json"
        sample.write_text(json.dumps(dict(candidate.sample), indent=1))
        (folder / CURVE).unlink(missing_ok=True)
        environment = {
            **trial_environment(worker, self._seed, self._library),
            "SMNAS_SAMPLE": str(sample.resolve()),
            "SMNAS_TRIAL_DIR": str(folder.resolve()),
            "SMNAS_WATCH_STDIN": "1",
        }
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                self._command,
                shell=True,
                cwd=self._directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
        lock.write(str(process.pid))
        return process

    def _is_over(self, trial: _Running) -> bool:
        late = trial.deadline is not None and self._clock() > trial.deadline
        return late or trial.process.poll() is not None or self._is_stopped(trial)

    def _is_stopped(self, trial: _Running) -> bool:
        if self._watch is None:
            return False
        for line in _new_lines(trial, self._trials / str(trial.candidate.id) / CURVE):
            trial.lines.append(line)
            trial.verdict = self._watch(trial.candidate, trial.lines)
            if trial.verdict is not None:
                return True
        return False

    def _finish(self, trial: _Running) -> Outcome:
        folder = self._trials / str(trial.candidate.id)
        status = trial.process.poll()
        _kill(trial.process)
        self._running.remove(trial)
        self._idle.append(trial.worker)
        outcome = read_outcome(folder, trial.candidate)
        if isinstance(outcome, Failed) and outcome.reason != "over_latency":
            return Failed(outcome.reason, f"{outcome.detail}\n{log_tail(folder)}", outcome.metrics)
        if outcome is not None:
            return outcome
        if trial.verdict is not None:
            outcome = trial.verdict
        elif status is None:
            detail = f"longer than {self._time_limit:g} s"
            outcome = Failed("timeout", f"{detail}\n{log_tail(folder)}")
        else:
            outcome = Failed("crash", f"{_describe_status(status)}\n{log_tail(folder)}")
        write_outcome(folder, trial.candidate, outcome)
        return outcome


def _new_lines(trial: _Running, curve: Path) -> list[Line]:
    """What a trial has reported since the last look; a line that is being written waits."""
    try:
        with curve.open("rb") as file:
            file.seek(trial.read)
            data = file.read()
    except FileNotFoundError:
        return []
    whole = data[: data.rfind(b"\n") + 1]
    trial.read += len(whole)
    return [json.loads(line) for line in whole.splitlines()]


@contextmanager
def _only_trial(folder: Path) -> Iterator[IO[str]]:
    """Locks a trial's folder, first ending the trial that a killed search may have left in it.

    The trial inherits the lock and holds it as long as it lives; the file names its process group.
    """
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _logger.warning("%s: an earlier search left its trial running; ending it", folder)
            lock.seek(0)
            # killed before it could be named: it ends by itself
            if group := lock.read():
                _kill_group(int(group))
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        yield lock


def trial_environment(worker: Worker, seed: int, library: str | None = None) -> dict[str, str]:
    """This process's environment, with a trial's share of the machine, the study's seed and
    detector library, and this Python's programs.
    """
    threads = str(worker.threads)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {
        **os.environ,
        "PATH": path,
        "OMP_NUM_THREADS": threads,
        "SMNAS_THREADS": threads,
        "SMNAS_SEED": str(seed),
    }
    if library is not None:
        environment["SMNAS_LIBRARY"] = library
    if worker.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = worker.gpu
    return environment


def write_outcome(folder: Path, candidate: Candidate, outcome: Outcome) -> None:
    """Writes `outcome.json` of a trial whole or not at all."""
    record: Mapping[str, object] = {
        "sample": dict(candidate.sample),
        "outcome": outcome.to_json(),
    }
    partial = folder / "outcome.json.partial"
    with partial.open("w") as file:
        json.dump(record, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / "outcome.json")


def read_outcome(folder: Path, candidate: Candidate) -> Outcome | None:
    """The outcome in a trial's folder; None if there is none or it is another sample's."""
    path = folder / "outcome.json"
    try:
        record = json.loads(path.read_text())
        if record["sample"] != dict(candidate.sample):
            return None
        return outcome_from_json(record["outcome"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        _logger.warning("%s: not an outcome (%s); the trial is run again", path, error)
        return None


def log_tail(folder: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a trial's log, empty if there is none."""
    try:
        text = (folder / "log.txt").read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _describe_status(status: int) -> str:
    # a shell reports a child's signal as 128 + number
    number = -status if status < 0 else status - 128
    if number in {s.value for s in signal.Signals}:
        return f"killed by {signal.Signals(number).name}"
    return f"exit status {status} without an outcome"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a trial and whatever it started (its process group), and closes the pipe."""
    _kill_group(process.pid)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of the group has ended by itself
