from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from nni.assessor import AssessResult
from toy import TOY_SIZES, toy_space

from smnas.assessor import ParetoAssessor
from smnas.encoding import Encoding
from smnas.errors import ConfigError, RunError
from smnas.journal import FILE_NAME, Journal
from smnas.records import Candidate, Measured, Stopped
from smnas.runner import read_outcome

FLAT = {"d0": 1, "d1": 1, "d2": 1, "d3": 1, "kind": "a"}
OWN = Candidate(9, "structural", FLAT)


@pytest.fixture
def run(toy_header: dict, tmp_path: Path) -> Callable[..., Path]:
    """A run folder with six finished trials and one that is running."""

    def make(**settings: object) -> Path:
        toy_header["experiment"] |= settings
        toy_header["space"] = {**Encoding.of(toy_space()).describe(), "monotone": TOY_SIZES}
        folder = tmp_path / "smnas"
        journal = Journal.open(folder / FILE_NAME, toy_header)
        for k in range(6):
            quality = 0.2 + 0.1 * k
            curve = [{"epoch": 1, "map": quality / 4}, {"epoch": 2, "map": quality}]
            # larger ones are better, and the last one compares with none
            sample = {**FLAT, "d0": 4, "d1": k % 5, "kind": "b" if k == 5 else "a"}
            candidate = Candidate(k, "structural", sample)
            journal.asked(candidate)
            metrics = {"latency_ms": 10.0 + k, "map": quality}
            journal.told(k, Measured(metrics, {"curve": curve}))
        journal.asked(OWN)
        journal.close()
        return folder

    return make


def before(latency: float) -> dict:
    """As it comes through NNI, which makes integers of whole numbers."""
    return {
        "default": 0,
        "epoch": 0,
        "epochs": 2,
        "latency_ms": latency,
        "sample": {**FLAT, "d0": 1.0},
    }


def test_a_dominated_trial_is_bad_and_leaves_its_verdict(run: Callable[..., Path]) -> None:
    folder = run(early_stopping={"rungs": [1]})
    assessor = ParetoAssessor(folder)
    lines = [before(12), {"default": 0.05, "epoch": 1, "map": 0.05}]
    assert assessor.assess_trial("AbC", lines[:1]) is AssessResult.Good
    assert read_outcome(folder / "trials" / "9", OWN) is None
    assert assessor.assess_trial("AbC", lines) is AssessResult.Bad
    verdict = read_outcome(folder / "trials" / "9", OWN)
    assert isinstance(verdict, Stopped) and verdict.reason == "early_stopped"
    assert verdict.metrics == {"latency_ms": 12} and verdict.estimate["map"] == pytest.approx(0.2)


def test_a_trial_that_may_reach_the_front_is_good(run: Callable[..., Path]) -> None:
    assessor = ParetoAssessor(run(early_stopping={"rungs": [1]}))
    lines = [before(12), {"default": 0.15, "epoch": 1, "map": 0.15}]
    assert assessor.assess_trial("AbC", lines) is AssessResult.Good


def test_a_trial_is_pruned_before_training(run: Callable[..., Path]) -> None:
    folder = run(pruning={"margin": 0.05, "pairs": 0})
    # no larger than candidate 1, which has 0.3; candidate 2 has 0.4 at 12 ms
    assert ParetoAssessor(folder).assess_trial("AbC", [before(12)]) is AssessResult.Bad
    verdict = read_outcome(folder / "trials" / "9", OWN)
    assert isinstance(verdict, Stopped) and verdict.reason == "pruned"


def test_what_a_trial_reported_before_it_was_started_again_does_not_count(
    run: Callable[..., Path],
) -> None:
    assessor = ParetoAssessor(run(early_stopping={"rungs": [1]}))
    first = [before(12), {"default": 0.05, "epoch": 1, "map": 0.05}]
    second = [before(12), {"default": 0.15, "epoch": 1, "map": 0.15}]
    assert assessor.assess_trial("AbC", first + second) is AssessResult.Good


def test_trials_of_other_programs_and_unknown_samples_go_on(run: Callable[..., Path]) -> None:
    assessor = ParetoAssessor(run(early_stopping={"rungs": [1]}))
    assert assessor.assess_trial("AbC", [0.5, {"default": 0.5}]) is AssessResult.Good
    other = {**before(12), "sample": {**FLAT, "kind": "b"}}
    lines = [other, {"default": 0.0, "epoch": 1, "map": 0.0}]
    assert assessor.assess_trial("AbC", lines) is AssessResult.Good


def test_an_experiment_that_wants_nothing_stopped_wants_no_assessor(
    run: Callable[..., Path],
) -> None:
    with pytest.raises(ConfigError, match="wanted pruning or early_stopping in tuner.classArgs"):
        ParetoAssessor(run()).assess_trial("AbC", [before(12)])


def test_outside_nni_there_is_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NNI_LOG_DIRECTORY", raising=False)
    with pytest.raises(RunError, match="wanted an experiment of nnictl, found none"):
        ParetoAssessor().assess_trial("AbC", [before(12)])


def test_the_run_is_that_of_the_dispatcher(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(pruning={"margin": 0.05, "pairs": 0})
    monkeypatch.setenv("NNI_LOG_DIRECTORY", str(folder.parent / "log"))
    assert ParetoAssessor().assess_trial("AbC", [before(12)]) is AssessResult.Bad
