from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import TOY_SIZES

from smnas import pareto
from smnas.errors import ConfigError
from smnas.journal import FILE_NAME, Journal, Trial
from smnas.objectives.vector import Objectives
from smnas.records import Candidate, Failed, Measured, Outcome, Sample, Stopped
from smnas.stopping import (
    EarlyStopping,
    Judge,
    Pruning,
    early_stopping_from,
    no_larger,
    predict,
    pruning_from,
    watch,
)

FLAT = {"d0": 1, "d1": 1, "d2": 1, "d3": 1, "kind": "a"}
DEEP = {**FLAT, "d0": 3, "d3": 2}


def trial(number: int, sample: Sample, outcome: Outcome, stage: str = "structural") -> Trial:
    return Trial(Candidate(number, stage, sample), outcome, 0.0, 1.0)


def measured(
    number: int, latency: float, quality: float, sample: Sample = FLAT, curve: Sequence[float] = ()
) -> Trial:
    lines = [{"epoch": k + 1, "map": value} for k, value in enumerate(curve)]
    metrics = {"latency_ms": latency, "map": quality}
    return trial(number, sample, Measured(metrics, {"curve": lines}))


def before(latency: float, epochs: int = 4) -> dict[str, Any]:
    return {"epoch": 0, "epochs": epochs, "latency_ms": latency, "params_m": 1.0}


def after(epoch: int, quality: float) -> dict[str, Any]:
    return {"epoch": epoch, "loss": 1.0, "map": quality}


# -- sizes ----------------------------------------------------------------------------------------


def test_no_larger_wants_every_choice_to_be_no_larger() -> None:
    assert no_larger(FLAT, DEEP, TOY_SIZES) and not no_larger(DEEP, FLAT, TOY_SIZES)
    assert no_larger(FLAT, FLAT, TOY_SIZES)
    assert not no_larger({**FLAT, "d1": 2}, DEEP, TOY_SIZES)


def test_what_does_not_compare_has_to_be_equal() -> None:
    assert not no_larger({**FLAT, "kind": "b"}, DEEP, TOY_SIZES)
    assert not no_larger(FLAT, DEEP, {})
    assert not no_larger(FLAT, {**DEEP, "more": 1}, TOY_SIZES)


def test_options_compare_along_any_list() -> None:
    chains = {"body": [("r18", "r50", "r101"), ("r50", "x50")]}
    smaller = [
        (a, b)
        for a, b in itertools.permutations(("r18", "r50", "r101", "x50"), 2)
        if no_larger({"body": a}, {"body": b}, chains)
    ]
    assert smaller == [("r18", "r50"), ("r18", "r101"), ("r50", "r101"), ("r50", "x50")]


# -- pruning --------------------------------------------------------------------------------------


def prune(
    objectives: Objectives, trials: Sequence[Trial], latency: float = 20.0, margin: float = 0.02
) -> Stopped | None:
    judge = Judge(objectives, Pruning(margin, pairs=0), None, TOY_SIZES)
    return judge.verdict(Candidate(9, "structural", FLAT), [before(latency)], trials)


LARGER = measured(3, 40.0, 0.30, DEEP)
RIVAL = measured(5, 20.0, 0.32, {**FLAT, "kind": "c"})


def test_a_candidate_that_cannot_beat_a_rival_is_pruned_and_both_are_named(
    objectives: Objectives,
) -> None:
    verdict = prune(objectives, [LARGER, RIVAL])
    assert verdict is not None and verdict.reason == "pruned"
    assert verdict.metrics == {"latency_ms": 20.0, "params_m": 1.0}
    assert verdict.estimate == {"map": pytest.approx(0.32)}
    assert verdict.detail == (
        "map 0.32 at best: no larger than 3, which has 0.3, and 5 has 0.32 and is no worse in"
        " latency_ms"
    )


@pytest.mark.parametrize(
    ("trials", "latency", "margin"),
    [
        ([LARGER, RIVAL], 19.9, 0.02),  # faster than the rival
        ([LARGER, RIVAL], 20.0, 0.021),  # may be better than the rival
        ([measured(3, 40.0, 0.30, {**DEEP, "kind": "b"}), RIVAL], 20.0, 0.02),  # does not compare
        ([measured(3, 40.0, 0.30, {**FLAT, "d0": 0}), RIVAL], 20.0, 0.02),  # not larger
        ([trial(3, DEEP, Failed("crash", "")), RIVAL], 20.0, 0.02),
        ([LARGER], 20.0, 0.02),
        ([LARGER], 50.0, 0.02),  # the larger network is no rival of its own bound
        ([RIVAL], 20.0, 0.02),
        ([], 20.0, 0.02),
    ],
)
def test_what_might_be_on_the_front_is_not_pruned(
    objectives: Objectives, trials: Sequence[Trial], latency: float, margin: float
) -> None:
    assert prune(objectives, trials, latency, margin) is None


def test_the_tightest_of_several_bounds_counts(objectives: Objectives) -> None:
    better = measured(4, 45.0, 0.6, {**DEEP, "d1": 4})
    verdict = prune(objectives, [better, LARGER, RIVAL])
    assert verdict is not None and "no larger than 3," in verdict.detail


def test_what_trained_networks_show_goes_before_the_margin(objectives: Objectives) -> None:
    """A network that is smaller than 3 and better by .05, and no fewer pairs than are wanted."""
    broken = measured(6, 60.0, 0.35, {**DEEP, "d3": 1})
    better = measured(7, 20.0, 0.345, {**FLAT, "kind": "c"})
    best = measured(8, 20.0, 0.355, {**FLAT, "kind": "c"})

    def judged(trials: Sequence[Trial], pairs: int) -> Stopped | None:
        judge = Judge(objectives, Pruning(0.02, pairs), None, TOY_SIZES)
        return judge.verdict(Candidate(9, "structural", FLAT), [before(20.0)], trials)

    assert judged([LARGER, broken, better], 1) is None
    verdict = judged([LARGER, broken, best], 1)
    assert verdict is not None and "map 0.35 at best" in verdict.detail
    assert judged([LARGER, broken, best], 2) is None
    assert judged([LARGER, best], 1) is None


def test_what_is_known_before_training_has_to_be_no_worse_altogether() -> None:
    objectives = Objectives(
        {"latency_ms": "minimize", "params_m": "minimize", "map": "maximize"},
        {"latency_ms": 50.0, "params_m": 9.0, "map": 0.0},
    )

    def with_parameters(one: Trial, millions: float) -> Trial:
        assert isinstance(one.outcome, Measured)
        metrics = {**one.outcome.metrics, "params_m": millions}
        return trial(one.candidate.id, one.candidate.sample, Measured(metrics))

    larger = with_parameters(LARGER, 2.0)
    assert prune(objectives, [larger, with_parameters(RIVAL, 1.0)]) is not None
    assert prune(objectives, [larger, with_parameters(RIVAL, 1.1)]) is None


def test_without_one_objective_that_training_decides_nothing_is_stopped() -> None:
    objectives = Objectives(
        {"latency_ms": "minimize", "map": "maximize", "ap50": "maximize"},
        {"latency_ms": 50.0, "map": 0.0, "ap50": 0.0},
    )
    assert prune(objectives, [LARGER, RIVAL]) is None


def analytic_table(seed: int) -> dict[tuple[int, ...], tuple[float, float]]:
    """Cost and quality of 243 networks: larger is better, but for noise below the margin."""
    rng = np.random.default_rng(seed)
    table = {}
    for index in itertools.product(range(3), repeat=5):
        size = np.array(index) @ [1.0, 0.8, 0.6, 1.2, 0.4]
        quality = 0.5 * (1 - math.exp(-0.5 * size)) + 0.03 * (index[0] * index[3] > 0)
        cost = 5 + np.array(index) @ [3.0, 5.0, 2.0, 4.0, 1.0] + 0.3 * rng.random()
        table[index] = (cost, quality + rng.normal(0, 0.005))
    return table


@pytest.mark.parametrize("seed", range(5))
def test_true_front_members_are_hardly_ever_pruned(seed: int) -> None:
    """In random order, each network is judged by those that were trained before it."""
    directions = {"cost": "minimize", "map": "maximize"}
    objectives = Objectives(directions, {"cost": 50.0, "map": 0.0})
    table = analytic_table(seed)
    rows = np.array([[cost, -quality] for cost, quality in table.values()])
    front = {list(table)[i] for i in pareto.non_dominated(rows)}
    sizes = {f"x{k}": [(0, 1, 2)] for k in range(5)}
    judge = Judge(objectives, Pruning(0.02), None, sizes)
    trained: list[Trial] = []
    pruned = []
    for number, i in enumerate(np.random.default_rng(seed).permutation(len(table))):
        index = list(table)[i]
        cost, quality = table[index]
        sample = {f"x{k}": option for k, option in enumerate(index)}
        candidate = Candidate(number, "structural", sample)
        if judge.verdict(candidate, [{"epoch": 0, "epochs": 1, "cost": cost}], trained):
            pruned.append(index)
        else:
            trained.append(trial(number, sample, Measured({"cost": cost, "map": quality})))
    assert len(front & set(pruned)) <= 0.02 * len(front)
    assert len(pruned) > 0.15 * len(table)


# -- early stopping -------------------------------------------------------------------------------


def finished(number: int, latency: float, quality: float) -> Trial:
    """Its first epochs had a fifth and a half of it; exactly, so that prediction is certain."""
    curve = [0.2 * quality, 0.5 * quality, 0.8 * quality, quality]
    return measured(number, latency, quality, {**FLAT, "d1": number % 5}, curve)


DONE = [finished(k, 10.0 + k, 0.2 + 0.1 * k) for k in range(7)]


def stop(
    objectives: Objectives,
    lines: Sequence[Mapping[str, Any]],
    trials: Sequence[Trial] = DONE,
    confidence: float = 0.9,
) -> Stopped | None:
    judge = Judge(objectives, None, EarlyStopping((1, 2), confidence))
    return judge.verdict(Candidate(9, "structural", DEEP), lines, trials)


def test_a_trial_that_will_be_dominated_is_stopped_at_a_rung(objectives: Objectives) -> None:
    lines = [before(13.5), after(1, 0.08)]  # will have 0.4; 3 has 0.5 at 13 ms
    verdict = stop(objectives, lines)
    assert verdict is not None and verdict.reason == "early_stopped"
    assert verdict.metrics == {"latency_ms": 13.5, "params_m": 1.0}
    assert verdict.estimate == {"map": pytest.approx(0.4)}
    assert verdict.info == {"curve": [after(1, 0.08)], "epochs": 4}
    assert verdict.detail.startswith("after 1 of 4 epochs map 0.08, at the end 0.4 +-")
    assert "; 3 has 0.5 and is no worse in latency_ms: dominated with" in verdict.detail


@pytest.mark.parametrize(
    "lines",
    [
        [before(13.5), after(1, 0.12)],  # will have 0.6, more than 3
        [before(12.9), after(1, 0.09)],  # will have 0.45, faster than 3 and better than 2
        [before(9.0), after(1, 0.0)],  # faster than all
        [before(13.5)],
        [before(13.5), after(1, 0.08), after(2, 0.3)],  # will have 0.6 by now
        [before(13.5), after(1, 0.08), after(2, 0.3), after(3, 0.0)],  # no rung
        [before(13.5, epochs=1), after(1, 0.08)],  # at its end
        [before(13.5, epochs=8), after(1, 0.08)],  # curves of another length do not compare
        [after(1, 0.08)],
    ],
)
def test_other_trials_go_on(objectives: Objectives, lines: list) -> None:
    assert stop(objectives, lines) is None


def test_nothing_is_stopped_by_few_curves_or_those_of_another_stage(
    objectives: Objectives,
) -> None:
    lines = [before(60.0), after(1, 0.0)]
    assert stop(objectives, lines, DONE[:6]) is not None
    assert stop(objectives, lines, DONE[:5]) is None
    others = [
        Trial(Candidate(t.candidate.id, "other", t.candidate.sample), t.outcome, 0.0, 1.0)
        for t in DONE
    ]
    assert stop(objectives, lines, others) is None
    # but they are rivals all the same
    assert stop(objectives, lines, [*DONE[:6], *others]) is not None


def test_stopped_and_failed_trials_are_neither_rivals_nor_curves(objectives: Objectives) -> None:
    ended = [
        trial(20, DEEP, Failed("crash", "", {"latency_ms": 1.0})),
        trial(21, DEEP, Stopped("pruned", "", {"latency_ms": 1.0}, {"map": 0.9})),
    ]
    assert stop(objectives, [before(13.5), after(1, 0.12)], [*DONE, *ended]) is None


def test_a_prediction_is_least_squares_with_its_interval() -> None:
    """At the mean of the rung's values: the mean of the ends, and s sqrt(1 + 1/n)."""
    pairs = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0], [3.0, 7.4]])
    mean, scale, freedom = predict(pairs, 1.5)
    slope = 2.12  # sum of (x - 1.5) (y - 4.1) / 5
    residuals = pairs[:, 1] - 4.1 - slope * (pairs[:, 0] - 1.5)
    assert mean == pytest.approx(4.1) and freedom == 2
    assert scale == pytest.approx(math.sqrt((residuals**2).sum() / 2 * 1.25))
    assert predict(pairs, 10.0)[1] > 2 * scale
    assert predict(np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]), 7.0)[0] == pytest.approx(2.0)


def test_trials_are_stopped_wrongly_no_more_often_than_confidence_says(
    objectives: Objectives,
) -> None:
    """Ends scatter around a line; one in ten that are stopped may have been better."""
    rng = np.random.default_rng(0)
    stopped = wrong = 0
    for _ in range(400):
        rungs = rng.uniform(0, 0.3, 9)
        ends = 0.2 + rungs + rng.normal(0, 0.05, 9)
        trials = [
            measured(k, 10.0, end, FLAT, [rung, 0, 0, end])
            for k, (rung, end) in enumerate(zip(rungs[:-1], ends[:-1], strict=True))
        ]
        if stop(objectives, [before(10.0), after(1, float(rungs[-1]))], trials):
            stopped += 1
            wrong += ends[-1] > max(ends[:-1])
    assert stopped > 150 and wrong <= 0.1 * stopped


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"margn": 0.1}, "a.yml: pruning: no setting named 'margn'; did you mean 'margin'"),
        ({"margin": -0.1}, "a.yml: pruning: margin: wanted a number of at least 0, got -0.1"),
        ({"pairs": 1.5}, "a.yml: pruning: pairs: wanted a whole number of at least 0, got 1.5"),
        ({"margin": True}, "margin: wanted a number of at least 0, got True"),
    ],
)
def test_wrong_pruning(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pruning_from(values, "a.yml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "a.yml: early_stopping: wanted rungs: [epochs], got none"),
        ({"rungs": [1], "rung": 2}, "no setting named 'rung'; did you mean 'rungs'"),
        ({"rungs": [2, 1]}, "rungs: wanted whole numbers of at least 1, ascending, got (2, 1)"),
        ({"rungs": []}, "rungs: wanted whole numbers of at least 1, ascending, got ()"),
        ({"rungs": 2}, "rungs: wanted whole numbers of at least 1, ascending, got 2"),
        ({"rungs": [0.5]}, "ascending, got (0.5,)"),
        ({"rungs": [1], "confidence": 1}, "confidence: wanted a number in (0.5, 1), got 1"),
        ({"rungs": [1, 4]}, "rungs: wanted epochs before the last of 4, got 4"),
    ],
)
def test_wrong_early_stopping(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        early_stopping_from(values, "a.yml", 4)
    assert message in str(caught.value)


def test_settings_that_are_left_out() -> None:
    assert pruning_from(None, "") is None and early_stopping_from(None, "") is None
    assert pruning_from({}, "") == Pruning(0.02)
    assert early_stopping_from({"rungs": [1, 5]}, "") == EarlyStopping((1, 5), 0.95)


def test_a_header_says_what_its_judge_does(toy_header: dict) -> None:
    assert Judge.of(toy_header) is None
    toy_header["experiment"]["early_stopping"] = {"rungs": [2]}
    judge = Judge.of(toy_header)
    assert judge is not None and not judge.is_due([before(1.0)])
    assert judge.is_due([before(1.0), after(1, 0.1), after(2, 0.1)])
    toy_header["experiment"]["pruning"] = {}
    with pytest.raises(ConfigError, match="wanted a search space that says what is larger"):
        Judge.of(toy_header)
    toy_header["space"]["monotone"] = TOY_SIZES
    judge = Judge.of(toy_header)
    assert judge is not None and judge.is_due([before(1.0)])


def test_a_watch_judges_by_what_the_journal_holds_by_then(
    toy_header: dict, objectives: Objectives, tmp_path: Path
) -> None:
    toy_header["experiment"]["pruning"] = {"margin": 0.02, "pairs": 0}
    toy_header["space"]["monotone"] = TOY_SIZES
    judge = Judge.of(toy_header)
    assert judge is not None
    journal = Journal.open(tmp_path / FILE_NAME, toy_header)
    own = Candidate(9, "structural", FLAT)
    decide = watch(judge, journal.path, earlier=[RIVAL])
    assert decide(own, [before(20.0)]) is None
    journal.asked(LARGER.candidate)
    assert LARGER.outcome is not None
    journal.told(LARGER.candidate.id, LARGER.outcome)
    assert decide(own, [before(20.0)]) == prune(objectives, [LARGER, RIVAL])
    journal.close()
