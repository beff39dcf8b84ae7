from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import nni
import pytest
from toy import toy_outcome, toy_space

from smnas import assembly, load_result, nni_runs
from smnas import tuner as module
from smnas.encoding import Encoding
from smnas.errors import ConfigError, JournalError, SpaceError
from smnas.journal import FILE_NAME, Asked, read
from smnas.objectives.vector import Objectives
from smnas.optimizer import Optimizer
from smnas.records import Candidate, Failed, Measured, Outcome, Stopped
from smnas.runner import write_outcome
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
    """Tuners over the toy space that have been given the search space and have no journal."""
    monkeypatch.setattr(
        assembly,
        "make_optimizer",
        lambda settings: Optimizer(encoding, objectives, population=settings.population),
    )
    # the toy space is no importable class
    monkeypatch.setattr(module, "with_library", lambda settings, where: settings)
    monkeypatch.setattr(module, "RESULT_SECONDS", 0)

    def tuner() -> ParetoTuner:
        made = ParetoTuner(**ARGS)
        made.update_search_space(encoding.nni_search_space())
        return made

    return tuner


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
    tuner.receive_trial_result(3, sample, value, trial_job_id="AbCdE", customized=False)
    tuner.trial_end(3, True)
    assert caplog.records
    assert re.search(r"result of trial AbCdE \(parameters 3\): " + words, caplog.text)
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
    make()
    other = encoding.nni_search_space() | {"kind": {"_type": "choice", "_value": ["a"]}}
    with pytest.raises(ConfigError, match=r"differs from the space in \['kind'\]"):
        ParetoTuner(**ARGS).update_search_space(other)


def test_the_search_space_cannot_change_later(
    make: Callable[[], ParetoTuner], caplog: pytest.LogCaptureFixture
) -> None:
    tuner = make()
    tuner.update_search_space({})
    assert "cannot change any more" in caplog.text
    run(tuner, 0, 10)


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


def test_without_a_space_it_needs_objectives_of_its_own() -> None:
    with pytest.raises(ConfigError, match="or objectives of your own .* got neither"):
        ParetoTuner(population=4)


# -- ends and results -----------------------------------------------------------------------------


def outcomes(tuner: ParetoTuner) -> dict[int, Outcome]:
    optimizer = tuner._optimizer
    assert optimizer is not None
    return {key: outcome for key, (_, outcome) in optimizer._told.items()}


def test_a_reported_failure_keeps_its_reason(make: Callable[[], ParetoTuner]) -> None:
    tuner = make()
    sample = tuner.generate_parameters(0)
    failure = Failed("over_latency", "81 ms, the bound is 80 ms", {"latency_ms": 81.0})
    tuner.receive_trial_result(0, sample, failure.to_json())
    tuner.trial_end(0, False)
    assert outcomes(tuner) == {0: failure}


def test_a_strange_failure_is_an_error(make: Callable[[], ParetoTuner]) -> None:
    tuner = make()
    tuner.receive_trial_result(0, tuner.generate_parameters(0), {"state": "failed", "reason": "x"})
    outcome = outcomes(tuner)[0]
    assert isinstance(outcome, Failed) and outcome.reason == "error"


def test_ends_that_come_under_each_others_id_fail_nobody(make: Callable[[], ParetoTuner]) -> None:
    """NNI's local service may swap the parameters of two trials that start together."""
    tuner = make()
    samples = [tuner.generate_parameters(number) for number in range(2)]
    tuner.receive_trial_result(1, samples[1], result(samples[1]))
    tuner.trial_end(0, True)
    assert set(outcomes(tuner)) == {1}
    tuner.receive_trial_result(0, samples[0], result(samples[0]))
    tuner.trial_end(1, True)
    assert all(isinstance(outcome, Measured) for outcome in outcomes(tuner).values())


def test_a_crash_among_swapped_trials_fails_the_one_that_crashed(
    make: Callable[[], ParetoTuner],
) -> None:
    tuner = make()
    samples = [tuner.generate_parameters(number) for number in range(2)]
    tuner.receive_trial_result(1, samples[1], result(samples[1]))
    tuner.trial_end(0, True)
    tuner.trial_end(1, False)
    failed, measured = (outcomes(tuner)[number] for number in (0, 1))
    assert isinstance(measured, Measured)
    assert isinstance(failed, Failed) and failed.reason == "crash"


def test_a_crash_of_the_other_one_before_any_result_fails_nobody_yet(
    make: Callable[[], ParetoTuner],
) -> None:
    """Trial 0 runs the sample of 1, crashes first, and NNI says that 0 has failed."""
    tuner = make()
    samples = [tuner.generate_parameters(number) for number in range(2)]
    tuner.trial_end(0, False)
    assert outcomes(tuner) == {}
    tuner.receive_trial_result(0, samples[0], result(samples[0]))
    tuner.trial_end(1, True)
    measured, failed = (outcomes(tuner)[number] for number in (0, 1))
    assert isinstance(measured, Measured)
    assert isinstance(failed, Failed) and failed.reason == "crash"
    # that bad exit is accounted for: this trial ended well, and forgot to report
    tuner.generate_parameters(2)
    tuner.trial_end(2, True)
    lost = outcomes(tuner)[2]
    assert isinstance(lost, Failed) and lost.reason == "error"


def test_a_failure_that_a_trial_reported_accounts_for_its_exit_status(
    make: Callable[[], ParetoTuner],
) -> None:
    tuner = make()
    sample = tuner.generate_parameters(0)
    tuner.receive_trial_result(0, sample, Failed("nan_loss", "step 3").to_json())
    tuner.trial_end(0, False)
    tuner.generate_parameters(1)
    tuner.trial_end(1, True)
    lost = outcomes(tuner)[1]
    assert isinstance(lost, Failed) and lost.reason == "error"


# -- other search spaces --------------------------------------------------------------------------

ANY_SPACE = {
    "layers": {"_type": "randint", "_value": [1, 9]},
    "rate": {"_type": "loguniform", "_value": [1e-4, 1]},
    "kind": {"_type": "choice", "_value": ["a", "b"]},
}
ANY_ARGS = {
    "objectives": {"seconds": "minimize", "score": "maximize"},
    "reference_point": {"seconds": 10, "score": 0},
    "population": 10,
}


def test_any_search_space_and_any_trial_with_a_dict() -> None:
    """Small rates are best and cost nothing; more layers are better and slower."""
    tuner = ParetoTuner(**ANY_ARGS)
    tuner.update_search_space(ANY_SPACE)
    for number in range(150):
        sample = tuner.generate_parameters(number)
        miss = abs(math.log10(sample["rate"]) + 3)
        value = {"seconds": sample["layers"], "score": sample["layers"] - miss, "note": "any"}
        tuner.receive_trial_result(number, sample, value)
        tuner.trial_end(number, True)
    assert tuner._optimizer is not None
    last = tuner._optimizer.population_ids
    chosen = [tuner._candidates[number].sample["rate"] for number in last]
    assert all(5e-4 < float(rate) < 2e-3 for rate in chosen)


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(SpaceError, match="'x': .* nested choice"):
        ParetoTuner(**ANY_ARGS).update_search_space(
            {"x": {"_type": "choice", "_value": [{"_name": "a"}]}}
        )


def test_imported_results_of_another_space_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    tuner = ParetoTuner(**ANY_ARGS)
    tuner.update_search_space(ANY_SPACE)
    good = {"layers": 3, "rate": 1.0, "kind": "a"}
    value = {"seconds": 1, "score": 1}
    tuner.import_data(
        [
            {"parameter": {**good, **change}, "value": value}
            for change in ({}, {"rate": 7}, {"x": 1})
        ]
    )
    assert list(outcomes(tuner)) == [0]
    assert caplog.text.count("not a sample of this search space") == 2


def test_numbers_that_went_through_nnis_manager_are_known_again() -> None:
    tuner = ParetoTuner(**ANY_ARGS)
    tuner.update_search_space({"x": {"_type": "quniform", "_value": [0, 3, 1]}})
    sample = tuner.generate_parameters(0)
    assert isinstance(sample["x"], float)
    tuner.import_data([{"parameter": {"x": int(sample["x"])}, "value": {"seconds": 1, "score": 1}}])
    assert list(outcomes(tuner)) == [0]


# -- the journal ----------------------------------------------------------------------------------


@pytest.fixture
def nni_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NNI's folder of an experiment, and this process as its dispatcher."""
    kept = {"trialCommand": "x", "trialCodeDirectory": str(tmp_path), "trialConcurrency": 2}
    (tmp_path / "db").mkdir()
    with closing(sqlite3.connect(tmp_path / "db" / "nni.sqlite")) as database:
        database.execute("create table ExperimentProfile (params text, revision integer)")
        rows = [("{}", 1), (json.dumps(kept), 2)]
        database.executemany("insert into ExperimentProfile values (?, ?)", rows)
        database.commit()
    monkeypatch.setenv("NNI_LOG_DIRECTORY", str(tmp_path / "log"))
    monkeypatch.setattr(nni_runs, "end_with_manager", lambda: None)
    return tmp_path


def close(tuner: ParetoTuner) -> None:
    tuner._held.close()


def journal_samples(folder: Path) -> list[dict]:
    events = read(folder / "smnas" / FILE_NAME).events
    return [dict(event.candidate.sample) for event in events if isinstance(event, Asked)]


def test_an_nni_run_has_the_journal_of_an_embedded_one(
    make: Callable[[], ParetoTuner], nni_folder: Path, encoding: Encoding
) -> None:
    tuner = make()
    samples = run(tuner, 0, 20)
    history = read(nni_folder / "smnas")
    assert journal_samples(nni_folder) == samples
    assert not history.pending()
    assert history.header["experiment"]["trial_command"] == "x" and history.header["workers"] == 2
    assert history.header["space"] == json.loads(json.dumps(encoding.describe()))
    assert len(load_result(nni_folder / "smnas").pop) == 20
    close(tuner)


def test_a_resumed_tuner_goes_on_where_it_stood(
    make: Callable[[], ParetoTuner], nni_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NNI_LOG_DIRECTORY")
    wanted = run(make(), 0, 40)
    monkeypatch.setenv("NNI_LOG_DIRECTORY", str(nni_folder / "log"))
    first = make()
    samples = run(first, 0, 25)
    population = first._optimizer.population_ids  # type: ignore[union-attr]
    close(first)
    second = make()
    assert second._optimizer.population_ids == population  # type: ignore[union-attr]
    second.import_data([{"parameter": s, "value": result(s)} for s in samples])
    assert samples + run(second, 0, 15) == wanted
    close(second)


def test_pending_trials_are_taken_up_by_what_nni_knows_of_them(
    make: Callable[[], ParetoTuner], nni_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    samples = [first.generate_parameters(number) for number in range(5)]
    close(first)
    words = ["FAILED", "ADD_RESUMED", "USER_CANCELED", "SUCCEEDED"]
    known = list(zip(samples, words, strict=False))
    # of two trials of one sample the later counts
    monkeypatch.setattr(nni_runs, "trial_states", lambda: [(samples[0], "RUNNING"), *known])
    second = make()
    assert isinstance(outcomes(second)[0], Failed)
    # the cancelled one and the one that NNI never started come again
    assert [second.generate_parameters(number) for number in range(2)] == [samples[2], samples[4]]
    assert second.generate_parameters(2) not in samples
    # the two others report by themselves
    second.import_data([{"parameter": s, "value": result(s)} for s in (samples[1], samples[3])])
    assert set(outcomes(second)) == {0, 1, 3}
    close(second)


def test_another_experiments_journal_is_refused(
    make: Callable[[], ParetoTuner], nni_folder: Path, encoding: Encoding
) -> None:
    close(make())
    other = ParetoTuner(**{**ARGS, "seed": 1})
    with pytest.raises(JournalError, match="belongs to another experiment: seed"):
        other.update_search_space(encoding.nni_search_space())
    close(other)


STOPPED = Stopped("early_stopped", "because", {"latency_ms": 3.0}, {"map": 0.1})


def leave_verdict(nni_folder: Path, number: int, sample: dict) -> None:
    """As the assessor does."""
    folder = nni_runs.trial_folder(nni_folder / "smnas", number)
    folder.mkdir(parents=True)
    write_outcome(folder, Candidate(number, "structural", sample), STOPPED)


def test_what_the_assessor_stopped_is_no_failure(
    make: Callable[[], ParetoTuner], nni_folder: Path
) -> None:
    """However NNI says it: by the trial's own last word, by its end, or not at all yet."""
    tuner = make()
    samples = [tuner.generate_parameters(number) for number in range(4)]
    for number, sample in enumerate(samples[:3]):
        leave_verdict(nni_folder, number, sample)
    said = Failed("timeout", "NNI stopped the trial").to_json()
    tuner.receive_trial_result(0, samples[0], said)
    tuner.trial_end(0, False)
    tuner.trial_end(1, False)
    tuner.generate_parameters(4)
    assert outcomes(tuner) == {0: STOPPED, 1: STOPPED, 2: STOPPED}
    tuner.receive_trial_result(3, samples[3], said)
    assert isinstance(outcomes(tuner)[3], Failed)
    close(tuner)


def test_stopping_without_an_assessor_is_pointed_out(
    make: Callable[[], ParetoTuner],
    nni_folder: Path,
    encoding: Encoding,
    caplog: pytest.LogCaptureFixture,
) -> None:
    close(make())
    assert not caplog.records
    (nni_folder / "smnas" / FILE_NAME).unlink()
    tuner = ParetoTuner(**{**ARGS, "early_stopping": {"rungs": [1]}})
    tuner.update_search_space(encoding.nni_search_space())
    assert "wanted an assessor (smnas.assessor.ParetoAssessor), got none" in caplog.text
    close(tuner)


def test_a_resumed_tuner_takes_up_verdicts(
    make: Callable[[], ParetoTuner], nni_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    samples = [first.generate_parameters(number) for number in range(2)]
    leave_verdict(nni_folder, 0, samples[0])
    close(first)
    states = [(sample, "EARLY_STOPPED") for sample in samples]
    monkeypatch.setattr(nni_runs, "trial_states", lambda: states)
    second = make()
    assert outcomes(second) == {0: STOPPED}
    assert second.generate_parameters(0) == samples[1]
    close(second)
