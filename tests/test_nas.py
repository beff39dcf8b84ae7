"""The strategy under NNI's own engines: the sequential one, and once its manager with trials."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.execution.event import FinalMetricEvent, TrainingEndEvent
from nni.nas.space import ExecutableModelSpace, ModelStatus, SimplifiedModelSpace
from toy import toy_outcome
from toy_nas import ToyModelSpace, toy_evaluator

from smnas import nas
from smnas.encoding import Encoding
from smnas.errors import ConfigError, JournalError, SpaceError, TrialFailure
from smnas.nas import DetectorEvaluator, ParetoStrategy
from smnas.objectives.vector import Objectives
from smnas.optimizer import Optimizer
from smnas.records import Failed, Measured, Sample

ROOT = Path(__file__).parents[1]


def started(objectives: Objectives, models: int, **options: Any) -> ParetoStrategy:
    """A strategy that has its space and an engine for so many models."""
    strategy = ParetoStrategy(objectives, **{"population": 6, "seed": 3, **options})
    engine = SequentialExecutionEngine(models, continue_on_failure=True)
    strategy.initialize(SimplifiedModelSpace.from_model(ToyModelSpace(), toy_evaluator()), engine)
    return strategy


def samples(strategy: ParetoStrategy) -> list[Sample]:
    return [dict(trial.candidate.sample) for trial in strategy.trials()]


def test_it_proposes_what_the_optimiser_proposes(objectives: Objectives) -> None:
    strategy = started(objectives, 20)
    strategy.run()
    optimizer = Optimizer(Encoding.of(ToyModelSpace()), objectives, population=6, seed=3)
    for sample in samples(strategy):
        candidate = optimizer.ask()
        assert candidate is not None and candidate.sample == sample
        crashes = sample["d0"] == 4
        optimizer.tell(
            candidate.id, Failed("crash", "too deep") if crashes else toy_outcome(sample)
        )
    assert len(samples(strategy)) == 20


def test_both_objectives_arrive_and_failures_stay_failures(objectives: Objectives) -> None:
    strategy = started(objectives, 20)
    strategy.run()
    for trial in strategy.trials():
        if trial.candidate.sample["d0"] == 4:
            assert isinstance(trial.outcome, Failed) and trial.outcome.reason == "crash"
        else:
            assert trial.outcome == toy_outcome(trial.candidate.sample)
    assert any(isinstance(trial.outcome, Failed) for trial in strategy.trials())
    best = strategy.front()
    assert best and [m.sample for m in strategy.list_models(limit=2)] == [
        dict(t.candidate.sample) for t in best[:2]
    ]
    assert len(list(strategy.list_models(sort=False))) == 20


def test_a_resumed_strategy_goes_on_as_if_never_stopped(
    objectives: Objectives, tmp_path: Path
) -> None:
    whole = started(objectives, 24)
    whole.run()
    first = started(objectives, 13)
    first.run()
    # as NNI keeps and loads a checkpoint
    torch.save(first.state_dict(), tmp_path / "state.torch")
    second = started(objectives, 11)
    second.load_state_dict(torch.load(tmp_path / "state.torch"))
    second.run()
    assert samples(second) == samples(whole)
    assert [t.outcome for t in second.trials()] == [t.outcome for t in whole.trials()]


def test_what_was_running_runs_again_and_nothing_finished_does(objectives: Objectives) -> None:
    first = started(objectives, 8)
    first.run()
    state = first.state_dict()
    assert state["events"].pop()["event"] == "outcome"
    second = started(objectives, 1)
    second.load_state_dict(state)
    second.run()
    assert [t.outcome for t in second.trials()] == [t.outcome for t in first.trials()]


def test_an_interrupted_model_stays_open(
    objectives: Objectives, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = started(objectives, 4)

    def interrupt(model: ExecutableModelSpace) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SimplifiedModelSpace, "execute", interrupt)
    with pytest.raises(KeyboardInterrupt):
        strategy.run()
    assert [t.outcome for t in strategy.trials()] == [None]


@pytest.mark.parametrize("state", [{}, {"events": [{"event": "?"}]}, {"events": [3]}])
def test_a_foreign_state_is_refused(objectives: Objectives, state: dict) -> None:
    with pytest.raises(JournalError, match="wanted a journal's events"):
        started(objectives, 1).load_state_dict(state)


def test_the_state_of_another_space_is_refused(objectives: Objectives) -> None:
    strategy = started(objectives, 1)
    strategy.run()
    state = strategy.state_dict()
    state["events"][0]["candidate"]["sample"] = {"x": 1}
    with pytest.raises(SpaceError):
        started(objectives, 1).load_state_dict(state)


def test_generations_and_exhaustion_end_well(objectives: Objectives) -> None:
    strategy = started(objectives, 13, generational=True, algorithm="nsga2")
    strategy.run()
    assert len(strategy.trials()) == 13


SAMPLES = [{"d0": i, "d1": 0, "d2": 0, "d3": 0, "kind": "a"} for i in range(3)]


class Exchanging(SequentialExecutionEngine):
    """Takes models, and lets a test say what NNI hears of them."""

    def submit_models(self, *models: ExecutableModelSpace) -> None:
        self._history += models

    def result(self, number: int) -> None:
        outcome = toy_outcome(self._history[number].sample or {})
        assert isinstance(outcome, Measured)
        self.dispatch_model_event(FinalMetricEvent(self._history[number], dict(outcome.metrics)))

    def end(self, number: int, status: ModelStatus) -> None:
        self.dispatch_model_event(TrainingEndEvent(self._history[number], status))


def test_ends_that_come_under_another_model_do_no_harm(objectives: Objectives) -> None:
    strategy = ParetoStrategy(
        objectives, population=2, baselines={str(i): s for i, s in enumerate(SAMPLES)}
    )
    engine = Exchanging()
    strategy.initialize(SimplifiedModelSpace.from_model(ToyModelSpace(), toy_evaluator()), engine)
    for _ in range(3):
        strategy._submit(strategy._next())

    def outcomes() -> list[str | None]:
        found = [trial.outcome for trial in strategy.trials()]
        return [None if o is None else o.to_json()["state"] for o in found]

    # models 0 and 1 run in each other's trials; model 1 crashes, and NNI says that 0 has failed
    engine.end(0, ModelStatus.Failed)
    assert outcomes() == [None, None, None]
    engine.result(0)
    engine.end(1, ModelStatus.Trained)
    assert outcomes() == ["measured", None, None]
    # model 1 may still be running in the trial of 2
    engine.result(2)
    engine.end(2, ModelStatus.Trained)
    assert outcomes() == ["measured", "failed", "measured"]


@pytest.mark.parametrize(
    "metric", ["words", {"map": 1.0, "latency_ms": 2.0}, {"default": "x"}, None]
)
def test_what_nni_could_not_keep_does_not_reach_it(objectives: Objectives, metric: Any) -> None:
    # NNI's own handling would raise in its listening thread and end it
    strategy = started(objectives, 1)
    model = strategy.model_space.freeze({"d0": 0, "d1": 0, "d2": 0, "d3": 0, "kind": "a"})
    strategy.engine.dispatch_model_event(FinalMetricEvent(model, metric))
    assert model.metrics.final is None


def test_the_evaluator_reports_what_the_trial_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Reporter:
        def __init__(self, sample: Sample) -> None:
            assert sample == Model.sample

        def epoch(self, record: dict[str, Any]) -> None:
            calls.append(record)

        def end(self, outcome: Any) -> None:
            calls.append(outcome)

    class Model:
        sample = {"head": "rcnn"}

    outcomes = [Measured({"map": 0.5, "latency_ms": 7.0}), Failed("nan_loss", "step 3")]

    def run_trial(settings: Any, sample: Sample, report: Any) -> Any:
        assert str(settings.data) == "digits" and sample == Model.sample
        report({"epoch": 1})
        return outcomes[0]

    monkeypatch.setattr(nas, "run_trial", run_trial)
    monkeypatch.setattr(nas, "NniReporter", Reporter)
    evaluator = DetectorEvaluator(
        {"space": "a.b:C", "data": "digits", "recipe": {"scale_jitter": [0.5, 1.0]}}
    )
    evaluator._execute(Model())
    assert calls == [{"epoch": 1}, outcomes.pop(0)]
    with pytest.raises(TrialFailure, match="nan_loss: step 3"):
        evaluator._execute(Model())


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        ({"space": "a.b:C"}, "wanted data, got none"),
        ({"space": "a.b:C", "data": "d", "recipes": {}}, "did you mean 'recipe'"),
        ({"space": "a.b:C", "data": "d", "recipe": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"space": "a.b:C", "data": "d", "search_split": 2}, "--search-split"),
    ],
)
def test_settings_of_the_evaluator_are_checked(trial: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DetectorEvaluator(trial)


PROGRAM = """
import json, sys
from nni.nas.experiment import NasExperiment
from nni.nas.experiment.config import NasExperimentConfig
from smnas.nas import ParetoStrategy
from smnas.objectives.vector import Objectives
from toy_nas import ToyModelSpace, toy_evaluator

objectives = Objectives(
    {"latency_ms": "minimize", "map": "maximize"}, {"latency_ms": 50.0, "map": 0.0}
)
baselines = {"crashes": {"d0": 4, "d1": 0, "d2": 0, "d3": 0, "kind": "a"}}
strategy = ParetoStrategy(objectives, population=2, baselines=baselines)
config = NasExperimentConfig("ts", "simplified", "local")
config.trial_concurrency = 2
config.max_trial_number = 2
config.experiment_working_directory = sys.argv[2]
experiment = NasExperiment(ToyModelSpace(), toy_evaluator(), strategy, config)
try:
    experiment.run(int(sys.argv[1]))
    print("RESULT", json.dumps(strategy.state_dict()["events"]))
    print("TOP", json.dumps(experiment.export_top_models(9, formatter="dict")))
finally:
    experiment.stop()
"""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def of_test(folder: Path) -> list[psutil.Process]:
    """Processes that an experiment in this folder left."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SMNAS_TEST_NAS") == str(folder):
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.slow
def test_a_nas_experiment_runs_to_its_end(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "SMNAS_TEST_NAS": str(tmp_path),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    try:
        for _ in range(4):  # NNI waits 3 s for its web server, which a busy machine may miss
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, str(free_port()), str(tmp_path / "experiments")],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stderr
        lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line[:1] in "RT")
        outcomes = {e["id"]: e["outcome"] for e in json.loads(lines["RESULT"]) if "id" in e}
        asked = {
            e["candidate"]["id"]: e["candidate"]["sample"]
            for e in json.loads(lines["RESULT"])
            if "candidate" in e
        }
        assert set(outcomes) == set(asked) == {0, 1}
        assert outcomes[0]["reason"] == "crash", outcomes[0]
        expected = toy_outcome(asked[1])
        assert isinstance(expected, Measured) and outcomes[1]["metrics"] == expected.metrics
        assert json.loads(lines["TOP"]) == [asked[1]]
        assert not of_test(tmp_path)
    finally:
        for process in of_test(tmp_path):
            process.kill()
