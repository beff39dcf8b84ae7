"""Real experiments under `nnictl`, with trials that make their numbers up in a moment.

Every experiment lives in `tmp_path`, NNI's home included, and is stopped by its id. Waits are for
events, with limits that only a broken program reaches.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from nni_trial import made_up
from rich.console import Console

from smnas import load_result, nni_runs
from smnas.assembly import make_optimizer
from smnas.display import SearchDisplay
from smnas.encoding import Encoding
from smnas.experiment import SearchSettings, load_experiment
from smnas.journal import Asked, History, Told, read
from smnas.nni_space import encoding_of
from smnas.records import Candidate, Failed, Measured, Outcome, Stopped
from smnas.report import tables
from smnas.search import Overrides, search
from smnas.spaces import open_space
from smnas.stopping import FEWEST

HERE = Path(__file__).parent
PATIENCE = 300
TRIALS = 10
FIELDS = {field.name for field in dataclasses.fields(SearchSettings)}
TOO_SLOW_TO_START = "did not connect in 10 seconds"


class Nni:
    """`nnictl` at home in one folder.

    Args:
        folder: for NNI's home, the experiment file and what the trials write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.id, self.port, self._earlier = folder, "none", 0, 0
        self._environment = {
            **os.environ,
            "HOME": str(folder),
            "PYTHONPATH": str(HERE.parent),
            # where fonts are listed already; a new home would cost seconds of making the list
            "MPLCONFIGDIR": str(Path.home() / ".cache" / "matplotlib"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }

    def nnictl(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "nnictl"), *map(str, words)]
        return subprocess.run(
            command, env=self._environment, cwd=self.folder, capture_output=True, text=True
        )

    def create(self, experiment: Path) -> None:
        """Starts an experiment; again where this machine is too busy for NNI's limits: three
        seconds for the manager's start, ten for the tuner's.
        """
        self._start("create", "--config", experiment)

    def resume(self) -> None:
        self._start("resume", self.id)

    def stop(self) -> None:
        done = self.nnictl("stop", self.id)
        assert done.returncode == 0, done.stderr[-2000:]
        wait_until(lambda: not psutil.pid_exists(self.manager), "the manager's end")

    @property
    def run(self) -> Path:
        return self.folder / "nni" / self.id / "smnas"

    @property
    def manager(self) -> int:
        listed = json.loads((self.folder / "nni-experiments" / ".experiment").read_text())
        return int(listed[self.id]["pid"])

    def get(self, what: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/nni/{what}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)

    def is_done(self) -> bool:
        status = self.get("check-status")
        assert status["status"] != "ERROR", (status, self._logs())
        return bool(status["status"] == "DONE")

    def history(self) -> History:
        return read(self.run)

    def told(self) -> dict[int, Outcome]:
        if not (self.run / "journal.jsonl").exists():
            return {}
        return {e.id: e.outcome for e in self.history().events if isinstance(e, Told)}

    def started(self) -> Counter[str]:
        """How often a trial of each sample was started."""
        path = self.folder / "started.txt"
        return Counter(path.read_text().splitlines() if path.exists() else [])

    def wait_for_proposals(self) -> None:
        """Waits until this dispatcher has proposed something: from then on NNI knows which trials
        are its own and which are of an earlier start.
        """
        wait_until(lambda: self._proposals() > self._earlier, "the tuner's first proposal")

    def processes(self) -> list[psutil.Process]:
        """The dispatcher and the trials of this experiment, whoever their parent is."""
        return [p for p in psutil.process_iter() if is_inside(p, self.folder)]

    def _logged(self, log: str, words: str) -> int:
        path = self.run.parent / "log" / log
        return path.read_text().count(words) if path.exists() else 0

    def _proposals(self) -> int:
        return self._logged("nnimanager.log", "command from dispatcher: TR,")

    def _connections(self) -> int:
        return self._logged("dispatcher.log", "Initial search space")

    def _start(self, *words: object) -> None:
        for _ in range(8):
            self._earlier, connected = self._proposals(), self._connections()
            self.port = free_port()
            done = self.nnictl(*words, "--port", self.port)
            if done.returncode != 0:
                assert "_check_rest_server" in done.stderr, done.stderr[-2000:]
                continue
            found = re.search(r"Experiment ID: (?:\x1b\[\d+m)?(\w+)", done.stdout)
            assert found, done.stdout
            if found[1] != self.id:
                self.id, connected = found[1], 0
            wait_until(lambda: self._is_up(connected), "the tuner's start")
            errors = self.get("check-status")["errors"]
            if not errors:
                return
            assert TOO_SLOW_TO_START in errors[0], self._logs()
            self.stop()
        pytest.skip("this machine is too busy for the limits that NNI sets to its own start")

    def _is_up(self, connected: int) -> bool:
        is_broken = self.get("check-status")["status"] == "ERROR"
        return is_broken or self._connections() > connected

    def _logs(self) -> str:
        folder = self.run.parent / "log"
        return "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.log")))


@pytest.fixture
def nni(tmp_path: Path) -> Iterator[Nni]:
    nni = Nni(tmp_path)
    yield nni
    if nni.id != "none" and psutil.pid_exists(nni.manager):
        nni.stop()
    wait_until(lambda: not nni.processes(), "the end of all processes")


def is_inside(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd().startswith(str(folder)) or str(folder) in " ".join(process.cmdline())
    except psutil.Error:
        return False


def wait_until(happened: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, f"waited {PATIENCE} s for {what}"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


NNI_SPACE = {
    "depth": {"_type": "choice", "_value": [1, 2, 3, 4, 5]},
    "width": {"_type": "quniform", "_value": [16, 256, 16]},
    "rate": {"_type": "loguniform", "_value": [0.001, 1]},
}
DETECTORS = {
    "space": "search_spaces.structural:StructuralSpace",
    "space_args": {"input_sizes": ["96x96", "128x128"]},
}


def write_experiment(folder: Path, nni_space: dict, workers: int, **class_args: object) -> Path:
    path = folder / "toy.yml"
    content = {
        "experimentName": "toy",
        "searchSpace": nni_space,
        "trialCommand": f"exec {sys.executable} {HERE / 'nni_trial.py'}",
        "trialConcurrency": workers,
        "maxTrialNumber": TRIALS,
        "experimentWorkingDirectory": str(folder / "nni"),
        "trainingService": {"platform": "local"},
        "tuner": {
            "className": "smnas.tuner.ParetoTuner",
            "codeDirectory": ".",
            "classArgs": {
                "objectives": {"latency_ms": "minimize", "map": "maximize"},
                "reference_point": {"latency_ms": 60},
                "population": 4,
                **class_args,
            },
        },
    }
    # JSON is YAML, too
    path.write_text(json.dumps(content))
    return path


def events_without_time(history: History) -> list[object]:
    return [
        event.candidate if isinstance(event, Asked) else (event.id, event.outcome)
        for event in history.events
    ]


def test_the_same_file_the_same_search(
    nni: Nni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker: `smnas search` and `nnictl create` propose and record the same, and NNI's portal
    has both objectives.
    """
    space = Encoding.of(open_space(DETECTORS["space"], **DETECTORS["space_args"]))
    path = write_experiment(tmp_path, space.nni_search_space(), 1, **DETECTORS)
    monkeypatch.setenv("PYTHONPATH", str(HERE.parent))
    experiment = load_experiment(path)
    display = SearchDisplay(experiment.search.objective_vector(), Console(quiet=True))
    search([experiment], tmp_path / "run", Overrides(), display)
    nni.create(path)
    wait_until(nni.is_done, "the experiment's end")

    wanted = read(tmp_path / "run")
    assert events_without_time(nni.history()) == events_without_time(wanted)
    assert nni.history().header["experiment"] == wanted.header["experiment"]
    assert {type(trial.outcome) for trial in wanted.trials()} == {Measured, Failed}

    measured = [t.outcome for t in wanted.trials() if isinstance(t.outcome, Measured)]
    shown = [json.loads(json.loads(m["data"])) for m in nni.get("metric-data?type=FINAL")]
    for outcome in measured:
        assert {"default": outcome.metrics["map"], **outcome.metrics} in shown
    states = Counter(job["status"] for job in nni.get("trial-jobs"))
    assert states == {"SUCCEEDED": len(measured), "FAILED": TRIALS - len(measured)}

    monkeypatch.setenv("HOME", str(tmp_path))
    assert nni_runs.find_run(nni.id) == nni.run
    assert tables.front_rows(read(nni.run)) == tables.front_rows(wanted)
    assert len(load_result(nni.id).pop) == len(measured)


def test_stop_and_resume_and_kill_and_resume(nni: Nni, tmp_path: Path) -> None:
    """Nothing finished is trained again, failures stay failures, the population is what it was."""
    gate = tmp_path / "gate"
    gate.write_text("4")
    nni.create(write_experiment(tmp_path, NNI_SPACE, 2))
    wait_until(lambda: nni.started().total() == 6, "four finished trials and two running ones")
    wait_until(lambda: len(nni.told()) == 4, "four outcomes")
    finished = nni.told()
    nni.stop()

    nni.resume()
    wait_until(lambda: nni.started().total() == 8, "the two running ones again")
    nni.wait_for_proposals()
    os.kill(nni.manager, signal.SIGKILL)
    wait_until(lambda: not nni.processes(), "the end of what the killed manager had started")
    assert nni.told() == finished

    nni.resume()
    nni.wait_for_proposals()
    gate.unlink()
    wait_until(nni.is_done, "the experiment's end")
    wait_until(lambda: len(nni.told()) == TRIALS, "all outcomes")

    outcomes, history = nni.told(), nni.history()
    assert {key: outcomes[key] for key in finished} == finished
    for trial in history.trials():
        if trial.candidate.id in finished:
            assert nni.started()[sample_line(trial.candidate)] == 1
        if trial.outcome is not None:
            assert trial.outcome == made_up(trial.candidate.sample)
    assert_one_search(history)


def test_an_assessor_ends_what_is_dominated_and_nothing_else(nni: Nni, tmp_path: Path) -> None:
    """One worker. Curves lie on a line, so that six of them foretell the seventh exactly; it then
    waits for the verdict, and ends by itself only where there will be none.
    """
    gate = tmp_path / "gate"
    gate.write_text("0")
    (tmp_path / "curves").touch()
    path = write_experiment(tmp_path, NNI_SPACE, 1, early_stopping={"rungs": [1]})
    content = json.loads(path.read_text()) | {"maxTrialNumber": 12}
    content["assessor"] = {"className": "smnas.assessor.ParetoAssessor", "codeDirectory": "."}
    path.write_text(json.dumps(content))
    nni.create(path)
    wait_until(lambda: nni.started().total() == 1, "the first trial")
    for number in range(12):
        wait_until(lambda: len(nni.history().pending()) == 1, "the next trial")
        (candidate,) = nni.history().pending()
        if not is_foretold_dominated(made_up(candidate.sample), nni.told()):
            gate.write_text(str(number + 1))
        wait_until(lambda: len(nni.told()) == number + 1, "its outcome")
    stopped = [outcome for outcome in nni.told().values() if isinstance(outcome, Stopped)]
    assert stopped and {outcome.reason for outcome in stopped} == {"early_stopped"}
    wait_until(nni.is_done, "the experiment's end")
    states = Counter(job["status"] for job in nni.get("trial-jobs"))
    # what NNI 3.0 calls the trials that it ends for an assessor
    assert states["USER_CANCELED"] == len(stopped), states


def is_foretold_dominated(outcome: Outcome, told: dict[int, Outcome]) -> bool:
    others = [other.metrics for other in told.values() if isinstance(other, Measured)]
    return (
        isinstance(outcome, Measured)
        and len(others) >= FEWEST
        and any(
            other["latency_ms"] <= outcome.metrics["latency_ms"]
            and other["map"] > outcome.metrics["map"]
            for other in others
        )
    )


def sample_line(candidate: Candidate) -> str:
    return json.dumps(dict(candidate.sample), sort_keys=True)


def assert_one_search(history: History) -> None:
    """Every proposal is the one of an optimiser that was never interrupted."""
    settings = SearchSettings.from_class_args(
        {k: v for k, v in history.header["experiment"].items() if k in FIELDS}, "journal"
    )
    optimizer = make_optimizer(settings, encoding_of(NNI_SPACE))
    for event in history.events:
        if isinstance(event, Told):
            optimizer.tell(event.id, event.outcome)
        else:
            assert optimizer.ask() == event.candidate
