"""What the models make of results: where they look, what they say, when they say nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from toy import toy_outcome, toy_outcome_with_failures

from smnas import pareto, surrogate
from smnas.encoding import Encoding
from smnas.errors import ConfigError
from smnas.objectives.vector import Objectives
from smnas.optimizer import Optimizer
from smnas.records import Candidate, Failed, Measured, Outcome, Sample, identity
from smnas.regression import MODELS
from smnas.surrogate import Surrogate

RIDGE = {"models": ["ridge"]}


@pytest.fixture(autouse=True)
def _short_inner_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy space is small."""
    monkeypatch.setattr(surrogate, "INNER_GENERATIONS", 4)


def search(
    optimizer: Optimizer, trials: int, outcome: Callable[[Sample], Outcome] = toy_outcome
) -> list[Candidate]:
    candidates = []
    for _ in range(trials):
        candidate = optimizer.ask()
        assert candidate is not None
        optimizer.tell(candidate.id, outcome(candidate.sample))
        candidates.append(candidate)
    return candidates


def make(
    encoding: Encoding, objectives: Objectives, seed: int = 0, population: int = 10
) -> Optimizer:
    return Optimizer(
        encoding,
        objectives,
        algorithm="surrogate",
        algorithm_args=RIDGE,
        population=population,
        seed=seed,
    )


def part_of_the_true_volume(
    candidates: list[Candidate], encoding: Encoding, objectives: Objectives
) -> float:
    def rows(samples: list[Sample]) -> np.ndarray:
        return np.array([objectives.minimised(toy_outcome(s).metrics) for s in samples])

    reference = objectives.reference_point
    all_rows = rows([encoding.sample(index) for index in encoding.legal()])
    found = pareto.hypervolume(rows([c.sample for c in candidates]), reference)
    return found / pareto.hypervolume(all_rows[pareto.non_dominated(all_rows)], reference)


def test_it_finds_in_30_what_evolution_does_not(encoding: Encoding, objectives: Objectives) -> None:
    modelled, evolved = [], []
    for seed in range(2):
        optimizer = make(encoding, objectives, seed)
        own = search(optimizer, 30)
        modelled.append(part_of_the_true_volume(own, encoding, objectives))
        mated = search(Optimizer(encoding, objectives, population=10, seed=seed), 30)
        evolved.append(part_of_the_true_volume(mated, encoding, objectives))
    assert min(modelled) > max(0.93, max(evolved) + 0.03)


def test_candidates_say_what_the_models_knew(encoding: Encoding, objectives: Objectives) -> None:
    optimizer = make(encoding, objectives, population=20)
    candidates = search(optimizer, 26)
    assert [c.origin for c in candidates] == ["random"] * 20 + ["model"] * 6
    assert optimizer.surrogate is not None
    rounds = optimizer.surrogate.rounds
    assert [r.results for r in rounds] == [20, 24]
    assert all(set(r.tau) == set(objectives.names) and r.is_informed for r in rounds)
    assert rounds[0].models == {"latency_ms": "ridge", "map": "ridge"}
    assert dict(candidates[20].knowledge) == dict(rounds[0].tau) != dict(rounds[1].tau)
    assert Candidate.from_json(candidates[25].to_json()) == candidates[25]
    assert not candidates[0].knowledge and "knowledge" not in candidates[0].to_json()


def test_where_nothing_can_be_known_it_mates(encoding: Encoding, objectives: Objectives) -> None:
    """A map that has nothing to do with the sample."""
    noise = np.random.default_rng(4)

    def outcome(sample: Sample) -> Outcome:
        latency = toy_outcome(sample).metrics["latency_ms"]
        return Measured({"latency_ms": latency, "map": float(noise.random())})

    optimizer = make(encoding, objectives)
    candidates = search(optimizer, 20, outcome)
    assert "model" not in {c.origin for c in candidates}
    assert [c.origin for c in candidates].count("mating") == 10
    assert optimizer.surrogate is not None
    last = optimizer.surrogate.rounds[-1]
    assert not last.is_informed and last.tau["latency_ms"] > 0.8
    assert dict(candidates[-1].knowledge) == dict(last.tau) and not candidates[9].knowledge


def test_an_objective_that_is_always_the_same_is_not_modelled(
    encoding: Encoding, objectives: Objectives
) -> None:
    def outcome(sample: Sample) -> Outcome:
        return Measured({"latency_ms": 3.0, "map": toy_outcome(sample).metrics["map"]})

    assert "model" not in {c.origin for c in search(make(encoding, objectives), 14, outcome)}


def test_failures_teach_their_latency_and_are_avoided(
    encoding: Encoding, objectives: Objectives
) -> None:
    def outcome(sample: Sample) -> Outcome:
        both = toy_outcome(sample)
        latency = both.metrics["latency_ms"]
        if latency > 20:
            return Failed("over_latency", "too slow", {"latency_ms": latency})
        return both

    candidates = search(make(encoding, objectives), 40, outcome)
    failed = [isinstance(outcome(c.sample), Failed) for c in candidates]
    assert sum(failed[:10]) >= 4, "the test needs some failures"
    assert sum(failed[-20:]) <= 12


def told(encoding: Encoding, objectives: Objectives, number: int) -> tuple[Surrogate, set[str]]:
    models = Surrogate(encoding, objectives, population=10, seed=0, models=["ridge"])
    legal, seen = encoding.legal(), set()
    for index in legal[np.random.default_rng(0).permutation(len(legal))[:number]]:
        models.tell(index, toy_outcome_with_failures(encoding.sample(index)))
        seen.add(identity(encoding.sample(index)))
    return models, seen


def test_running_candidates_spread_the_next_ones(
    encoding: Encoding, objectives: Objectives
) -> None:
    models, seen = told(encoding, objectives, 30)
    running: list[np.ndarray] = []
    for _ in range(6):
        index = models.propose(running, seen, 30)
        assert index is not None
        running.append(index)
    # nothing else has changed, and no one of them was proposed twice
    assert len({tuple(index) for index in running}) == 6


def test_a_proposal_is_a_function_of_what_was_told(
    encoding: Encoding, objectives: Objectives
) -> None:
    (busy, seen), (idle, _) = (told(encoding, objectives, 30) for _ in range(2))
    for number in range(5):
        busy.propose([], seen, number)
    first, second = busy.propose([], seen, 9), idle.propose([], seen, 9)
    assert first is not None and second is not None and first.tolist() == second.tolist()


def test_a_resume_computes_no_proposal_again(
    encoding: Encoding, objectives: Objectives, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = search(make(encoding, objectives), 16)
    resumed = make(encoding, objectives)
    with monkeypatch.context() as patch:
        patch.setattr(Surrogate, "propose", lambda *_: pytest.fail("proposed in a replay"))
        for candidate in candidates:
            resumed.replay(candidate)
            resumed.tell(candidate.id, toy_outcome(candidate.sample))
    whole = search(make(encoding, objectives), 18)
    assert search(resumed, 2) == whole[16:]


def test_the_first_sample_fills_the_space(encoding: Encoding, objectives: Objectives) -> None:
    """Ten of it are farther from each other than ten random ones."""

    def nearest(name: str, seed: int) -> float:
        optimizer = Optimizer(encoding, objectives, algorithm=name, population=10, seed=seed)
        rows = [encoding.index(c.sample) for c in search(optimizer, 10)]
        return min(np.abs(a - b).sum() for i, a in enumerate(rows) for b in rows[:i])

    assert all(nearest("surrogate", seed) > nearest("random", seed) for seed in range(5))


def test_of_many_results_models_are_fitted_to_the_best_and_the_newest(
    encoding: Encoding, objectives: Objectives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surrogate, "MOST", 10)
    models, seen = told(encoding, objectives, 60)
    used = models._training().tolist()
    assert len(used) == 10 and used[-5:] == [55, 56, 57, 58, 59]
    good = [i for i in range(55) if not models._failed[i]]
    first = [good[i] for i in pareto.non_dominated(models._rows(good))]
    assert set(used[:5]) <= set(first) or set(first) <= set(used[:5])
    assert models.propose([], seen, 60) is not None


@pytest.mark.parametrize("models", [[], "gp"])
def test_models_are_a_list(encoding: Encoding, objectives: Objectives, models: object) -> None:
    with pytest.raises(ConfigError, match="models: wanted a list of at least one"):
        Surrogate(encoding, objectives, population=8, seed=0, models=models)
    assert len(MODELS) == 5
