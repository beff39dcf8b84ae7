from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from smnas import runner as module
from smnas.errors import RunError
from smnas.journal import FILE_NAME, Asked, Journal, read
from smnas.records import Candidate, Failed, Measured, Outcome, Sample, Stopped
from smnas.runner import EmbeddedRunner, Worker, local_workers, read_outcome, write_outcome
from smnas.stopping import Judge, Line, Watch, watch
from smnas.study import Limits, Progress, Study

PROGRAM = """
import json, os, sys, time
from pathlib import Path
from smnas.records import Candidate, Failed, Measured
from smnas.runner import write_outcome

sample = json.loads(Path(os.environ["SMNAS_SAMPLE"]).read_text())
folder = Path(os.environ["SMNAS_TRIAL_DIR"])
print("trial says", sample, flush=True)
(folder / "pid").write_text(str(os.getpid()))
if sample["do"] == "crash":
    sys.exit(3)
if sample["do"] == "killed":
    os.kill(os.getpid(), 9)
if sample["do"] == "sleep":
    time.sleep(60)
if sample["do"] == "fail":
    outcome = Failed(sample["reason"], "step 3", {"latency_ms": 2.0})
    write_outcome(folder, Candidate(0, "structural", sample), outcome)
    sys.exit(1)
info = {k: v for k, v in os.environ.items() if "SMNAS" in k or k == "OMP_NUM_THREADS"}
write_outcome(folder, Candidate(0, "structural", sample), Measured({"map": 0.5}, info))
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return f"PYTHONPATH={Path(__file__).parents[1]} {sys.executable} {path}"


def make(
    program: str, tmp_path: Path, workers: int = 1, limit: float | None = None
) -> EmbeddedRunner:
    return EmbeddedRunner(
        program,
        tmp_path,
        tmp_path / "trials",
        [Worker(threads=1) for _ in range(workers)],
        seed=7,
        time_limit=limit,
    )


def candidate(number: int, do: str) -> Candidate:
    return Candidate(number, "structural", {"do": do, "n": number})


def collect_all(runner: EmbeddedRunner) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}
    while runner.running:
        outcomes |= dict(runner.collect(timeout=5.0))
    return outcomes


def test_a_trial_gets_its_sample_seed_threads_and_folder(program: str, tmp_path: Path) -> None:
    runner = make(program, tmp_path)
    assert runner.free == 1
    runner.submit(candidate(4, "well"))
    assert runner.free == 0 and [c.id for c in runner.running] == [4]
    outcome = collect_all(runner)[4]
    assert isinstance(outcome, Measured) and outcome.metrics["map"] == 0.5
    assert outcome.info["SMNAS_SEED"] == "7"
    assert outcome.info["SMNAS_THREADS"] == outcome.info["OMP_NUM_THREADS"] == "1"
    folder = tmp_path / "trials" / "4"
    assert json.loads((folder / "sample.json").read_text()) == {"do": "well", "n": 4}
    assert "trial says" in (folder / "log.txt").read_text()
    assert runner.free == 1


def test_failures_have_reasons_and_the_log_s_tail(program: str, tmp_path: Path) -> None:
    runner = make(program, tmp_path, workers=2)
    runner.submit(candidate(0, "crash"))
    runner.submit(candidate(1, "killed"))
    outcomes = collect_all(runner)
    for number, words in ((0, "exit status 3 without an outcome"), (1, "killed by SIGKILL")):
        outcome = outcomes[number]
        assert isinstance(outcome, Failed) and outcome.reason == "crash"
        assert words in outcome.detail and "trial says" in outcome.detail
        assert read_outcome(tmp_path / "trials" / str(number), candidate(number, "x")) is None


@pytest.mark.parametrize(("reason", "lines"), [("nan_loss", 2), ("over_latency", 1)])
def test_a_trial_s_own_failure_gets_the_log_s_tail(
    program: str, tmp_path: Path, reason: str, lines: int
) -> None:
    """But for one that says all by itself."""
    runner = make(program, tmp_path)
    runner.submit(Candidate(0, "structural", {"do": "fail", "reason": reason}))
    outcome = collect_all(runner)[0]
    assert isinstance(outcome, Failed) and outcome.reason == reason
    assert len(outcome.detail.splitlines()) == lines and outcome.detail.startswith("step 3")
    assert outcome.metrics == {"latency_ms": 2.0}


def test_a_trial_that_a_killed_search_left_behind_is_ended_first(
    program: str, tmp_path: Path
) -> None:
    left = make(program, tmp_path)
    left.submit(candidate(0, "sleep"))
    pid = tmp_path / "trials" / "0" / "pid"
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.01)
    orphan = int(pid.read_text())
    resumed = make(program, tmp_path)
    resumed.submit(candidate(0, "well"))
    assert isinstance(collect_all(resumed)[0], Measured)
    wait_for_end(orphan)
    assert isinstance(collect_all(left)[0], Failed)


def test_a_trial_over_its_time_is_ended(program: str, tmp_path: Path) -> None:
    runner = make(program, tmp_path, limit=3.0)
    runner.submit(candidate(0, "sleep"))
    outcome = collect_all(runner)[0]
    assert isinstance(outcome, Failed) and outcome.reason == "timeout"
    assert "longer than 3 s" in outcome.detail
    wait_for_end(int((tmp_path / "trials" / "0" / "pid").read_text()))


def test_cancel_kills_and_frees(program: str, tmp_path: Path) -> None:
    runner = make(program, tmp_path)
    runner.submit(candidate(0, "sleep"))
    pid = wait_for(tmp_path / "trials" / "0" / "pid")
    runner.cancel()
    wait_for_end(pid)
    assert runner.free == 1 and not runner.running
    assert not (tmp_path / "trials" / "0" / "outcome.json").exists()


def test_an_outcome_left_behind_is_taken_up_and_not_repeated(program: str, tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "0"
    folder.mkdir(parents=True)
    write_outcome(folder, candidate(0, "well"), Measured({"map": 0.125}))
    runner = make(program, tmp_path)
    runner.submit(candidate(0, "well"))
    assert collect_all(runner)[0] == Measured({"map": 0.125})
    assert not (folder / "log.txt").exists()


def test_another_sample_s_or_a_broken_outcome_is_not_taken(program: str, tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "0"
    folder.mkdir(parents=True)
    write_outcome(folder, candidate(0, "other"), Measured({"map": 0.125}))
    assert read_outcome(folder, candidate(0, "well")) is None
    (folder / "outcome.json").write_text("{")
    assert read_outcome(folder, candidate(0, "well")) is None
    runner = make(program, tmp_path)
    runner.submit(candidate(0, "well"))
    assert collect_all(runner)[0].metrics == {"map": 0.5}


def test_a_folder_that_cannot_be_written(program: str, tmp_path: Path) -> None:
    (tmp_path / "trials").write_text("a file")
    runner = make(program, tmp_path)
    with pytest.raises(RunError, match="cannot start a trial"):
        runner.submit(candidate(0, "well"))
    assert runner.free == 1


def test_workers_share_the_cores_and_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert local_workers(2) == [Worker(None, 4), Worker(None, 4)]
    assert local_workers(16)[0].threads == 1
    assert [w.gpu for w in local_workers(3, ["0", "5"])] == ["0", "5", "0"]
    assert module.trial_environment(Worker("5", 2), 0)["CUDA_VISIBLE_DEVICES"] == "5"


def test_trials_hear_of_the_library() -> None:
    assert module.trial_environment(Worker(), 0, "torchvision")["SMNAS_LIBRARY"] == "torchvision"
    assert "SMNAS_LIBRARY" not in module.trial_environment(Worker(), 0)


def test_visible_gpus_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert module.visible_gpus() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert module.visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def listing(*args: object, **kwargs: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess([], 0, "GPU 0: A (UUID: x)\nGPU 1: B (UUID: y)\n")

    monkeypatch.setattr(subprocess, "run", listing)
    assert module.visible_gpus() == ["0", "1"]

    def nothing(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", nothing)
    assert module.visible_gpus() == []


def wait_for(path: Path) -> int:
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return int(path.read_text())


def wait_for_end(pid: int) -> None:
    """Hangs, and so fails, if the process sleeps on for its minute: it must not take that long."""
    began = time.monotonic()
    while is_alive(pid):
        assert time.monotonic() - began < 30
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return status != "Z"


REPORTING = """
import json, os, sys, time
from pathlib import Path

folder = Path(os.environ["SMNAS_TRIAL_DIR"])
sample = json.loads(Path(os.environ["SMNAS_SAMPLE"]).read_text())
(folder / "pid").write_text(str(os.getpid()))
lines = [{"epoch": 0, "epochs": 2, "latency_ms": sample["latency"]}]
lines += [{"epoch": 1, "map": sample["map"] / 2}, {"epoch": 2, "map": sample["map"]}]
for line in lines:
    with (folder / "curve.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\\n")
    if line["epoch"] == sample["hangs"]:
        time.sleep(60)
metrics = {"latency_ms": sample["latency"], "map": sample["map"]}
outcome = {"state": "measured", "metrics": metrics, "info": {"curve": lines[1:]}}
(folder / "partial").write_text(json.dumps({"sample": sample, "outcome": outcome}))
(folder / "partial").replace(folder / "outcome.json")
"""
"""Reports a curve; hangs after an epoch, so that a test in which nobody stops it fails."""


@pytest.fixture
def reporting(tmp_path: Path) -> str:
    path = tmp_path / "reporting.py"
    path.write_text(textwrap.dedent(REPORTING))
    return f"exec {sys.executable} -S {path}"


def watched(reporting: str, tmp_path: Path, watch: Watch) -> EmbeddedRunner:
    return EmbeddedRunner(reporting, tmp_path, tmp_path / "trials", [Worker()], watch=watch)


def test_a_trial_is_ended_when_the_watch_says_so(reporting: str, tmp_path: Path) -> None:
    """It is shown every line once, in order; its verdict is the outcome, and survives a kill."""
    seen: list[list[int]] = []
    verdict = Stopped("early_stopped", "because", {"latency_ms": 3.0}, {"map": 0.1})

    def watch(candidate: Candidate, lines: Sequence[Line]) -> Stopped | None:
        seen.append([line["epoch"] for line in lines])
        return verdict if lines[-1]["epoch"] == 1 else None

    runner = watched(reporting, tmp_path, watch)
    one = Candidate(0, "structural", {"latency": 3.0, "map": 0.5, "hangs": 1})
    runner.submit(one)
    assert collect_all(runner) == {0: verdict}
    assert seen == [[0], [0, 1]] and runner.free == 1
    wait_for_end(int((tmp_path / "trials" / "0" / "pid").read_text()))
    assert read_outcome(tmp_path / "trials" / "0", one) == verdict
    resumed = watched(reporting, tmp_path, watch)
    resumed.submit(one)
    assert collect_all(resumed) == {0: verdict}


def test_what_a_killed_search_has_left_is_not_shown(reporting: str, tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "0"
    folder.mkdir(parents=True)
    (folder / "curve.jsonl").write_text('{"epoch": 7}\n')
    seen: list[int] = []

    def watch(candidate: Candidate, lines: Sequence[Line]) -> Stopped | None:
        seen.append(lines[-1]["epoch"])
        return Stopped("pruned", "", {}, {})

    runner = watched(reporting, tmp_path, watch)
    runner.submit(Candidate(0, "structural", {"latency": 3.0, "map": 0.5, "hangs": 0}))
    assert isinstance(collect_all(runner)[0], Stopped) and seen == [0]


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    trial = module._Running(candidate(0, "well"), Worker(), subprocess.Popen(["true"]), None)
    assert module._new_lines(trial, path) == []
    path.write_text('{"epoch": 0}\n{"epo')
    assert module._new_lines(trial, path) == [{"epoch": 0}]
    path.write_text('{"epoch": 0}\n{"epoch": 1}\n')
    assert module._new_lines(trial, path) == [{"epoch": 1}]
    assert module._new_lines(trial, path) == []
    trial.process.wait()


class _Listed:
    """Asks what it is given; enough of an optimiser for a study."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._candidates = [Candidate(k, "structural", s) for k, s in enumerate(samples)]
        self.told: dict[int, Outcome] = {}

    def ask(self) -> Candidate:
        return self._candidates.pop(0)

    def tell(self, candidate_id: int, outcome: Outcome) -> None:
        self.told[candidate_id] = outcome

    def replay(self, candidate: Candidate) -> None:
        assert self.ask() == candidate


def test_a_killed_search_with_stopped_trials_resumes_to_the_same_end(
    reporting: str, tmp_path: Path, toy_header: dict
) -> None:
    """Those that hang are stopped by what the journal holds by then; also after a resume."""
    toy_header["experiment"]["early_stopping"] = {"rungs": [1]}
    judge = Judge.of(toy_header)
    assert judge is not None
    samples = [{"latency": 10.0 + k, "map": 0.2 + 0.1 * k, "hangs": -1} for k in range(6)]
    bad = {"latency": 30.0, "map": 0.1, "hangs": 1}
    samples += [bad, {"latency": 17.0, "map": 0.8, "hangs": -1}, {**bad, "latency": 31.0}]

    def run(name: str, dies_after: int | None = None) -> dict[int, Outcome]:
        journal = Journal.open(tmp_path / name / FILE_NAME, toy_header)
        runner = EmbeddedRunner(
            reporting,
            tmp_path,
            tmp_path / name / "trials",
            [Worker()],
            watch=watch(judge, journal.path),
        )
        optimizer, ends = _Listed(samples), []

        def observe(progress: Progress) -> None:
            ends.append(progress.finished)
            if dies_after is not None and len([e for e in ends if e]) == dies_after:
                raise KeyboardInterrupt

        try:
            Study(optimizer, runner, journal, Limits(len(samples)), observe).run()
        except KeyboardInterrupt:
            runner.cancel()
        journal.close()
        return optimizer.told

    whole = run("whole")
    stopped = [k for k, outcome in whole.items() if isinstance(outcome, Stopped)]
    assert stopped == [6, 8] and len(whole) == len(samples)
    assert whole[6].metrics == {"latency_ms": 30.0}
    for dies_after in (6, 7):
        run(f"cut{dies_after}", dies_after)
        assert run(f"cut{dies_after}") == whole
    told = [event for event in read(tmp_path / "cut7").events if not isinstance(event, Asked)]
    assert {event.id: event.outcome for event in told} == whole
