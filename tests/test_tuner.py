from __future__ import annotations

import math
import re
from collections.abc import Callable

import nni
import pytest
from toy import toy_outcome, toy_space

from smnas import tuner as module
from smnas.encoding import Encoding
from smnas.errors import ConfigError
from smnas.objectives.vector import Objectives
from smnas.optimizer import Optimizer
from smnas.records import Measured
from smnas.tuner import ParetoTuner

ARGS = {"space": "a:B", "reference_point": {"latency_ms": 50}, "population": 8}


def result(sample: dict) -> dict[str, float]:
    outcome = toy_outcome(sample)
    assert isinstance(outcome, Measured)
    return {"default": outcome.metrics["map"], **outcome.metrics}


@pytest.fixture
def make(
    monkeypatch: pytest.MonkeyPatch, encoding: Encoding, objectives: Objectives
) -> Callable[[], ParetoTuner]:
    monkeypatch.setattr(
        module,
        "make_optimizer",
        lambda settings: Optimizer(encoding, objectives, population=settings.population),
    )
    return lambda: ParetoTuner(**ARGS)


def run(tuner: ParetoTuner, first: int, last: int) -> list[dict]:
    samples = []
    for number in range(first, last):
        samples.append(tuner.generate_parameters(number))
        tuner.receive_trial_result(number, samples[-1], result(samples[-1]))
        tuner.trial_end(number, True)
    return samples


def test_the_same_sequence_as_the_embedded_search(
    make: Callable[[], ParetoTuner], encoding: Encoding, objectives: Objectives
) -> None:
    optimizer, wanted = Optimizer(encoding, objectives, population=8), []
    for _ in range(40):
        candidate = optimizer.ask()
        assert candidate is not None
        wanted.append(dict(candidate.sample))
        optimizer.tell(candidate.id, toy_outcome(candidate.sample))
    assert run(make(), 0, 40) == wanted


def test_a_free_worker_never_waits(make: Callable[[], ParetoTuner]) -> None:
    assert len(make().generate_multiple_parameters(list(range(50)))) == 50


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.5, "wanted a dict with .*, got 0.5"),
        ({"default": 0.5, "map": 0.5}, r"wanted finite numbers for \['latency_ms'\], got \[None\]"),
        ({"map": math.nan, "latency_ms": 1.0}, r"wanted finite numbers for \['map'\], got \[nan\]"),
    ],
)
def test_a_wrong_result_is_a_failure_with_its_reason(
    make: Callable[[], ParetoTuner], caplog: pytest.LogCaptureFixture, value: object, words: str
) -> None:
    tuner = make()
    sample = tuner.generate_parameters(3)
    tuner.receive_trial_result(3, sample, value)
    tuner.trial_end(3, True)
    assert caplog.records
    assert re.search("result of parameters 3: " + words, caplog.text)
    run(tuner, 4, 20)


@pytest.mark.parametrize("success", [True, False])
def test_a_trial_without_a_result_is_a_failure(
    make: Callable[[], ParetoTuner], success: bool
) -> None:
    tuner = make()
    tuner.generate_parameters(0)
    tuner.trial_end(0, success)
    run(tuner, 1, 20)


def test_results_of_a_resumed_experiment_are_not_proposed_again(
    make: Callable[[], ParetoTuner],
) -> None:
    samples = run(make(), 0, 20)
    resumed = make()
    records = [{"parameter": s, "value": result(s)} for s in samples]
    resumed.import_data(records)
    resumed.import_data(records[:3])
    following = run(resumed, 20, 40)
    assert not [s for s in following if s in samples]


def test_an_exhausted_space_is_no_more_trials(make: Callable[[], ParetoTuner]) -> None:
    tuner = make()
    legal = len(Encoding.of(toy_space()).legal())
    for number in range(legal):
        tuner.generate_parameters(number)
    with pytest.raises(nni.NoMoreTrialError):
        tuner.generate_parameters(legal)


def test_the_search_space_file_has_to_fit(
    make: Callable[[], ParetoTuner], encoding: Encoding
) -> None:
    tuner = make()
    tuner.update_search_space(encoding.nni_search_space())
    other = encoding.nni_search_space() | {"kind": {"_type": "choice", "_value": ["a"]}}
    with pytest.raises(ConfigError, match=r"differs from the space in \['kind'\]"):
        tuner.update_search_space(other)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"sed": 1}, "classArgs: no setting named 'sed'; did you mean 'seed'"),
        ({"generational": True}, "wanted false under NNI"),
    ],
)
def test_wrong_class_args(args: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParetoTuner(**{**ARGS, **args})
