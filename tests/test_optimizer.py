"""The contract of every algorithm, across several generations, with failures, duplicates and a
resume."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from nni.mutable import Categorical, ExpressionConstraint, MutableList
from toy import TOY_SIZES, WalkingSpace, toy_outcome, toy_outcome_with_failures

from smnas import pareto, surrogate
from smnas.algorithms import ALGORITHMS
from smnas.encoding import Encoding
from smnas.errors import ConfigError, SpaceError, SpaceExhausted
from smnas.journal import Trial
from smnas.objectives.vector import Objectives
from smnas.operators import IndexMutation, LegalRepair
from smnas.optimizer import Optimizer
from smnas.records import Candidate, Failed, Measured, Outcome, Sample, Stopped
from smnas.stopping import Judge, Pruning

NAMES = [*ALGORITHMS, "random", "surrogate", "pymoo.algorithms.moo.nsga2:NSGA2"]
POPULATION = 8


@pytest.fixture(autouse=True)
def _short_inner_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """How well a surrogate searches is tested with it."""
    monkeypatch.setattr(surrogate, "INNER_GENERATIONS", 2)


def run(
    optimizer: Optimizer,
    trials: int,
    outcome: Callable[[Sample], Outcome] = toy_outcome_with_failures,
) -> list[Candidate]:
    """One worker: ask, measure, tell."""
    candidates = []
    for _ in range(trials):
        candidate = optimizer.ask()
        assert candidate is not None
        optimizer.tell(candidate.id, outcome(candidate.sample))
        candidates.append(candidate)
    return candidates


def fresh(
    name: str,
    encoding: Encoding,
    objectives: Objectives,
    seed: int = 1,
    generational: bool = False,
    baselines: Mapping[str, Sample] | None = None,
) -> Optimizer:
    # one quick model: what the choice between them is worth has tests of its own
    return Optimizer(
        encoding,
        objectives,
        algorithm=name,
        algorithm_args={"models": ["ridge"]} if name == "surrogate" else {},
        population=POPULATION,
        seed=seed,
        generational=generational,
        baselines=baselines,
    )


@pytest.mark.parametrize("generational", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_contract(
    name: str, generational: bool, encoding: Encoding, objectives: Objectives
) -> None:
    """Four populations of mixed choices under a rule, with failures: legal, never twice, ids in
    order, the same again for the same seed.
    """
    candidates, again, other = (
        run(fresh(name, encoding, objectives, seed, generational), 4 * POPULATION)
        for seed in (1, 1, 2)
    )
    assert [c.id for c in candidates] == list(range(4 * POPULATION))
    assert len({c.identity for c in candidates}) == len(candidates)
    assert all(encoding.is_legal(encoding.index(c.sample)) for c in candidates)
    assert candidates == again
    assert candidates != other
    born = "random" if name == "random" else "model" if name == "surrogate" else "mating"
    assert born in {c.origin for c in candidates}


@pytest.mark.parametrize("name", NAMES)
def test_a_resume_with_running_candidates_and_results_out_of_order(
    name: str, encoding: Encoding, objectives: Objectives
) -> None:
    """Three workers; the middle one of the running candidates always comes back first."""
    whole, cut = (fresh(name, encoding, objectives) for _ in range(2))
    events: list[Candidate | int] = []
    known: dict[int, Candidate] = {}
    for _ in range(3 * POPULATION):
        while len(whole.pending) < 3:
            asked = whole.ask()
            assert asked is not None
            events.append(asked)
            known[asked.id] = asked
        back = whole.pending[1]
        whole.tell(back, toy_outcome_with_failures(known[back].sample))
        events.append(back)
    for event in events:
        if isinstance(event, Candidate):
            cut.replay(event)
        else:
            cut.tell(event, toy_outcome_with_failures(known[event].sample))
    assert cut.pending == whole.pending
    assert run(cut, 4) == run(whole, 4)


@pytest.mark.parametrize("name", NAMES)
def test_three_objectives(name: str, encoding: Encoding) -> None:
    objectives = Objectives(
        {"latency_ms": "minimize", "map": "maximize", "params_m": "minimize"},
        {"latency_ms": 50, "map": 0, "params_m": 20},
    )

    def outcome(sample: Sample) -> Outcome:
        both = toy_outcome_with_failures(sample)
        if isinstance(both, Failed):
            return both
        return Measured({**both.metrics, "params_m": float(sample["d3"]) + 1})

    candidates = run(fresh(name, encoding, objectives), 3 * POPULATION, outcome)
    assert len({c.identity for c in candidates}) == 3 * POPULATION


def test_every_option_of_every_choice_is_proposed(
    encoding: Encoding, objectives: Objectives
) -> None:
    candidates = run(Optimizer(encoding, objectives, population=POPULATION), 200)
    for choice in encoding.choices:
        assert {c.sample[choice.label] for c in candidates} == set(choice.options)


def test_mating_beats_chance(encoding: Encoding, objectives: Objectives) -> None:
    def volume(name: str, seed: int) -> float:
        optimizer = Optimizer(
            encoding, objectives, algorithm=name, population=POPULATION, seed=seed
        )
        rows = [
            objectives.minimised(toy_outcome(c.sample).metrics)
            for c in run(optimizer, 100, toy_outcome)
        ]
        return pareto.hypervolume(np.array(rows), objectives.reference_point)

    gain = [volume("nsga2", seed) - volume("random", seed) for seed in range(10)]
    assert statistics.median(gain) > 0


@pytest.mark.parametrize("name", NAMES)
def test_results_in_any_order_make_the_same_next_generation(
    name: str, encoding: Encoding, objectives: Objectives
) -> None:
    def third_generation(order: Callable[[list], list]) -> list[Candidate | None]:
        optimizer = fresh(name, encoding, objectives, generational=True)
        for _ in range(2):
            out = [optimizer.ask() for _ in range(POPULATION)]
            assert name == "random" or optimizer.ask() is None  # the generation is out
            for candidate in order(out):
                optimizer.tell(candidate.id, toy_outcome_with_failures(candidate.sample))
        return [optimizer.ask() for _ in range(POPULATION)]

    assert third_generation(list) == third_generation(lambda cs: list(reversed(cs)))


def test_one_worker_and_many_make_the_same_generations(
    encoding: Encoding, objectives: Objectives
) -> None:
    """A generation ends when it is whole, not when nothing happens to be running."""
    one, many = (fresh("nsga2", encoding, objectives, generational=True) for _ in range(2))
    by_one = run(one, 3 * POPULATION)
    by_many = []
    for _ in range(3):
        out = [many.ask() for _ in range(POPULATION)]
        for candidate in out:
            assert candidate is not None
            many.tell(candidate.id, toy_outcome_with_failures(candidate.sample))
        by_many += out
    assert by_one == by_many


def test_a_worker_never_waits_in_steady_state(encoding: Encoding, objectives: Objectives) -> None:
    """Thirty asks before the first result, then results out of order, always one more ask."""
    optimizer = Optimizer(encoding, objectives, population=POPULATION)
    out = [optimizer.ask() for _ in range(30)]
    assert all(out) and optimizer.pending == list(range(30))
    identities = [c.identity for c in out if c]
    for candidate in reversed(out):
        assert candidate is not None
        optimizer.tell(candidate.id, toy_outcome(candidate.sample))
        another = optimizer.ask()
        assert another is not None
        identities.append(another.identity)
    assert len(set(identities)) == len(identities) == 60
    assert optimizer.pending == list(range(30, 60))
    assert len(optimizer.population_ids) == POPULATION


def test_failures_never_stay_among_the_parents_of_a_full_population(
    encoding: Encoding, objectives: Objectives
) -> None:
    optimizer = Optimizer(encoding, objectives, population=POPULATION, seed=3)
    candidates = run(optimizer, 60)
    deep = {c.id for c in candidates if c.sample["d0"] == 4}
    assert deep, "the test needs some failures"
    assert not deep & set(optimizer.population_ids)


def test_a_search_in_which_everything_fails_goes_on(
    encoding: Encoding, objectives: Objectives
) -> None:
    optimizer = Optimizer(encoding, objectives, population=4)
    assert len(run(optimizer, 30, lambda sample: Failed("crash", "always"))) == 30


def test_an_outcome_without_an_objective_counts_as_failed(
    encoding: Encoding, objectives: Objectives
) -> None:
    def outcome(sample: Sample) -> Outcome:
        return Measured({"latency_ms": 1.0}) if sample["kind"] == "a" else toy_outcome(sample)

    optimizer = Optimizer(encoding, objectives, population=POPULATION)
    candidates = run(optimizer, 60, outcome)
    without = {c.id for c in candidates if c.sample["kind"] == "a"}
    assert without and not without & set(optimizer.population_ids)


def test_baselines_come_first_and_once(encoding: Encoding, objectives: Objectives) -> None:
    flat = {"d0": 0, "d1": 0, "d2": 0, "d3": 0, "kind": "a"}
    baselines = {"flat": flat, "again": flat, "high": {**flat, "d3": 4}}
    optimizer = Optimizer(encoding, objectives, population=POPULATION, baselines=baselines)
    candidates = run(optimizer, 30)
    assert [c.origin for c in candidates[:3]] == ["baseline", "baseline", "random"]
    assert [dict(c.sample) for c in candidates[:2]] == [flat, {**flat, "d3": 4}]
    assert "mating" in {c.origin for c in candidates}


def test_the_whole_space_is_searched_and_then_it_says_so(objectives: Objectives) -> None:
    a, b = Categorical([0, 1, 2, 3], label="a"), Categorical(["x", "y", "z"], label="b")
    space = MutableList([a, b, ExpressionConstraint((a != 3) | (b == "x"), label="r")])
    optimizer = Optimizer(Encoding.of(space), objectives, population=4)
    candidates = []
    with pytest.raises(SpaceExhausted, match="all 10 legal samples"):
        while True:
            candidates += run(
                optimizer,
                1,
                lambda s: Measured({"latency_ms": float(s["a"]), "map": 0.1 * (s["b"] == "x")}),
            )
    assert len(candidates) == 10


@pytest.mark.parametrize("generational", [False, True])
@pytest.mark.parametrize("cut", [3, POPULATION, 25])
def test_replay_restores_the_optimiser_exactly(
    cut: int, generational: bool, encoding: Encoding, objectives: Objectives
) -> None:
    def fresh() -> Optimizer:
        return Optimizer(
            encoding, objectives, population=POPULATION, seed=5, generational=generational
        )

    whole = run(fresh(), 40)
    resumed = fresh()
    for candidate in whole[:cut]:
        resumed.replay(candidate)
        resumed.tell(candidate.id, toy_outcome_with_failures(candidate.sample))
    assert run(resumed, 40 - cut) == whole[cut:]


def test_replay_follows_the_journal_where_a_proposal_differs(
    encoding: Encoding, objectives: Objectives
) -> None:
    """As after an upgrade that changed what an algorithm draws: the journal's samples count."""
    recorded = run(Optimizer(encoding, objectives, population=POPULATION, seed=1), 20)
    other = Optimizer(encoding, objectives, population=POPULATION, seed=2)
    for candidate in recorded:
        other.replay(candidate)
        other.tell(candidate.id, toy_outcome(candidate.sample))
    following = run(other, 20)
    assert [c.id for c in following] == list(range(20, 40))
    assert not {c.identity for c in recorded} & {c.identity for c in following}


@pytest.mark.parametrize("generational", [False, True])
def test_children_know_their_parents_and_generation(
    generational: bool, encoding: Encoding, objectives: Objectives
) -> None:
    optimizer = Optimizer(
        encoding, objectives, population=POPULATION, generational=generational, seed=3
    )
    known = {c.id: c for c in run(optimizer, 5 * POPULATION)}
    children = [c for c in known.values() if c.origin == "mating"]
    assert len(children) > 2 * POPULATION
    for child in known.values():
        assert bool(child.parents) == (child.origin == "mating")
        assert all(parent < child.id for parent in child.parents)
        oldest = [known[parent].generation for parent in child.parents]
        assert child.generation == (1 + max(oldest) if oldest else 0)
    # not a mutant of just anything: uniform crossover and few mutations keep most of the parents
    kept = [
        any(known[p].sample[label] == option for p in child.parents)
        for child in children
        for label, option in child.sample.items()
    ]
    assert sum(kept) > 0.6 * len(kept)


def walking_outcome(sample: Sample) -> Outcome:
    return Measured({"latency_ms": 1.0 + float(sample["x"]), "map": float(sample["y"]) / 10})


def walking(objectives: Objectives, **settings: object) -> Optimizer:
    ancestor = {"x": 2, "y": 1}
    encoding = Encoding.of(WalkingSpace())
    return Optimizer(encoding, objectives, ancestor=ancestor, group=7, population=4, **settings)


def test_a_group_begins_with_its_control_and_mutants_of_it(objectives: Objectives) -> None:
    first = run(walking(objectives), 4, walking_outcome)
    assert [c.origin for c in first] == ["control", "mutant", "mutant", "mutant"]
    assert [dict(c.sample) for c in first] == [
        {"x": x, "y": y} for x, y in [(2, 1), (3, 1), (4, 1), (0, 2)]
    ]
    assert [c.parents for c in first] == [(7,), (0,), (0,), (0,)]
    assert [c.generation for c in first] == [0, 1, 1, 1]
    assert {c.group for c in first} == {7}


def test_the_space_s_own_operators_make_the_children(objectives: Objectives) -> None:
    candidates = run(walking(objectives), 12, walking_outcome)
    known = {c.id: c for c in candidates}
    for child in candidates[4:]:
        if child.origin == "mutant":
            continue
        mates = [known[parent] for parent in child.parents]
        space, rng = WalkingSpace(), np.random.default_rng()
        crossed = [
            a.sample if a is b else space.crossover(a.sample, b.sample, rng)
            for a, b in itertools.product(mates, mates)
        ]
        assert dict(child.sample) in [space.mutate(sample, rng) for sample in crossed]
    assert any(c.origin == "mating" for c in candidates)


def test_a_walk_from_the_ancestor_finds_the_whole_space_and_then_says_so(
    objectives: Objectives,
) -> None:
    optimizer = walking(objectives)
    assert len({c.identity for c in run(optimizer, 25, walking_outcome)}) == 25
    with pytest.raises(SpaceExhausted, match="all asked before"):
        optimizer.ask()


def test_a_group_s_replay_restores_it(objectives: Objectives) -> None:
    whole, cut = walking(objectives), walking(objectives)
    candidates = run(whole, 9, walking_outcome)
    for candidate in candidates:
        cut.replay(candidate)
        cut.tell(candidate.id, walking_outcome(candidate.sample))
    assert run(cut, 5, walking_outcome) == run(whole, 5, walking_outcome)


def test_an_ancestor_wants_a_space_that_can_mutate(
    encoding: Encoding, objectives: Objectives
) -> None:
    sample = {"d0": 0, "d1": 0, "d2": 0, "d3": 0, "kind": "a"}
    with pytest.raises(SpaceError, match="wanted one with a method mutate"):
        Optimizer(encoding, objectives, ancestor=sample)
    with pytest.raises(SpaceError, match="no choice named 'd0'"):
        Optimizer(Encoding.of(WalkingSpace()), objectives, ancestor=sample)


def test_telling_twice_or_unasked_is_our_mistake(
    encoding: Encoding, objectives: Objectives
) -> None:
    optimizer = Optimizer(encoding, objectives)
    candidate = optimizer.ask()
    assert candidate is not None
    optimizer.tell(candidate.id, toy_outcome(candidate.sample))
    with pytest.raises(ValueError, match="candidate 0 was told before"):
        optimizer.tell(0, toy_outcome(candidate.sample))
    with pytest.raises(ValueError, match="candidate 7 was never asked"):
        optimizer.tell(7, toy_outcome(candidate.sample))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "nsga22"}, "no algorithm named 'nsga22'; did you mean 'nsga2'"),
        ({"algorithm": "pymoo.nothing:X"}, "'pymoo.nothing:X' cannot be imported"),
        ({"algorithm": "pymoo.core.problem:Problem"}, "wanted a pymoo GeneticAlgorithm"),
        ({"algorithm_args": {"survial": 1}}, "no setting named 'survial'; did you mean 'survival'"),
        ({"algorithm": "random", "algorithm_args": {"x": 1}}, "algorithm_args of random"),
        ({"algorithm": "surrogate", "algorithm_args": {"model": []}}, "did you mean 'models'"),
        (
            {"algorithm": "surrogate", "algorithm_args": {"models": ["tres"]}},
            "did you mean 'trees'",
        ),
        ({"algorithm": "rvea", "algorithm_args": {"horison": 9}}, "did you mean 'horizon'"),
        ({"algorithm": "rvea", "algorithm_args": {"horizon": 0}}, "horizon: wanted at least 1"),
        ({"algorithm": "moead", "algorithm_args": {"n_neighbors": 1}}, "wanted at least 2, got 1"),
        ({"algorithm": "moed"}, "did you mean 'moead'"),
        ({"population": 1}, "population: wanted a whole number of at least 2, got 1"),
        ({"population": 4.0}, "population: wanted a whole number of at least 2, got 4.0"),
        ({"seed": -1}, "seed: wanted a whole number of at least 0, got -1"),
        ({"baselines": {"mine": {"d0": 1}}}, "baselines: mine: sample: choice 'd1' is missing"),
    ],
)
def test_wrong_settings_are_refused(
    arguments: dict, message: str, encoding: Encoding, objectives: Objectives
) -> None:
    with pytest.raises(ConfigError, match=message):
        Optimizer(encoding, objectives, **arguments)


def test_mutation_moves_ordinal_choices_to_neighbours_only(encoding: Encoding) -> None:
    before = np.array([list(i) for i in itertools.islice(encoding.legal(), 0, None, 3)])
    after = IndexMutation(encoding)._do(None, before, random_state=np.random.default_rng(0))
    step = np.abs(after - before)
    assert step[:, encoding.ordinal].max() == 1
    assert step[:, ~encoding.ordinal].max() == 2
    assert (after >= 0).all() and (after < encoding.n_options).all()
    # each of d choices changes with probability 1/d
    assert (step > 0).mean() == pytest.approx(1 / len(encoding.choices), abs=0.03)


def test_mutation_steps_over_long_ranges_are_small_and_large() -> None:
    encoding = Encoding.from_choices({"x": list(range(1001))})
    rng = np.random.default_rng(0)
    before = rng.integers(1001, size=(4000, 1))
    step = np.abs(IndexMutation(encoding)._do(None, before, random_state=rng) - before)
    assert step.min() >= 1 and 200 < step.max() <= 250
    # evenly on a logarithmic scale: a tenth-power of the largest step has half of its logarithm
    assert (step <= math.sqrt(250)).mean() == pytest.approx(0.5, abs=0.05)


def test_long_ranges_are_searched_to_the_last_step(objectives: Objectives) -> None:
    """Schaffer's problem: the front is everything between the two minima, a hundredth of the
    range.
    """
    encoding = Encoding.from_choices({f"x{i}": list(range(1001)) for i in range(3)})
    optimizer = Optimizer(encoding, objectives, population=16)

    def schaffer(sample: Sample) -> Outcome:
        x = np.array([float(value) for value in sample.values()])
        return Measured(
            {"latency_ms": float(((x - 700) ** 2).sum()), "map": -float(((x - 710) ** 2).sum())}
        )

    run(optimizer, 600, schaffer)
    found = np.array([optimizer._told[k][0] for k in optimizer.population_ids])
    assert (found >= 690).all() and (found <= 720).all()


def test_repair_changes_only_what_a_constraint_mentions(encoding: Encoding) -> None:
    illegal = encoding.index({"d0": 4, "d1": 1, "d2": 2, "d3": 3, "kind": "c"})
    rng = np.random.default_rng(0)
    for _ in range(20):
        mended = LegalRepair(encoding)._do(None, illegal[None], random_state=rng)[0]
        assert encoding.is_legal(mended)
        assert mended[1:4].tolist() == [1, 2, 3]


def test_a_thousand_results_keep_asking_cheap(encoding: Encoding, objectives: Objectives) -> None:
    """Counted in work, not in seconds: the population that is sorted does not grow."""
    wide = Encoding.from_choices({f"x{i}": list(range(8)) for i in range(8)})
    optimizer = Optimizer(wide, objectives, population=20)
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    run(
        optimizer,
        1000,
        lambda s: Measured({"latency_ms": float(sum(s.values())), "map": float(rng.random())}),
    )
    print(f"{time.perf_counter() - began:.2f} ms an ask and tell")
    assert len(optimizer.population_ids) == 20


LARGE = {"d0": 3, "d1": 3, "d2": 3, "d3": 3, "kind": "b"}
RIVAL = {"d0": 3, "d1": 3, "d2": 3, "d3": 2, "kind": "a"}


def wasteful(sample: Sample) -> dict[str, float]:
    """As the toy space, but 'b' is slower than everything else and worse than 'a'."""
    metrics = toy_outcome(sample).metrics
    slow = sample["kind"] == "b"
    return {"latency_ms": metrics["latency_ms"] + 30 * slow, "map": metrics["map"] - 0.2 * slow}


def judged(judge: Judge, trials: list[Trial], candidate: Candidate) -> Outcome:
    """What a runner does: latency first, and training only where the judge lets it."""
    metrics = wasteful(candidate.sample)
    line = {"epoch": 0, "epochs": 1, "latency_ms": metrics["latency_ms"]}
    deep = candidate.sample["d0"] == 4
    outcome = Failed("crash", "too deep", {}) if deep else Measured(metrics)
    verdict = judge.verdict(candidate, [line], trials)
    trials.append(Trial(candidate, verdict or outcome, 0.0, 1.0))
    return verdict or outcome


@pytest.mark.parametrize(
    ("name", "generational"), [*((name, False) for name in NAMES), ("nsga2", True)]
)
def test_contract_with_pruning(
    name: str, generational: bool, encoding: Encoding, objectives: Objectives
) -> None:
    """Legal, never twice, the same again after a resume in the middle; nothing of the front that
    would have been found is lost.
    """

    def make() -> Optimizer:
        known = {"large": LARGE, "rival": RIVAL}
        return fresh(name, encoding, objectives, 0, generational, known)

    judge = Judge(objectives, Pruning(0.0, pairs=0), None, TOY_SIZES)
    whole, cut = make(), make()
    trials: list[Trial] = []
    for _ in range(4 * POPULATION):
        candidate = whole.ask()
        assert candidate is not None
        whole.tell(candidate.id, judged(judge, trials, candidate))
    candidates = [t.candidate for t in trials]
    assert len({c.identity for c in candidates}) == len(candidates)
    assert all(encoding.is_legal(encoding.index(c.sample)) for c in candidates)
    middle = 3 * POPULATION + 3
    for one in trials[:middle]:
        assert one.outcome is not None
        cut.replay(one.candidate)
        cut.tell(one.candidate.id, one.outcome)
    again = list(trials[:middle])
    while len(again) < len(trials):
        candidate = cut.ask()
        assert candidate is not None
        cut.tell(candidate.id, judged(judge, again, candidate))
    assert again == trials
    stopped = {t.candidate.id for t in trials if isinstance(t.outcome, Stopped)}
    assert stopped and not stopped & set(_front(trials, objectives))
    untouched = [Trial(c, Measured(wasteful(c.sample)), 0, 1) for c in candidates]
    assert not stopped & set(_front(untouched, objectives))


def _front(trials: list[Trial], objectives: Objectives) -> list[int]:
    return [t.candidate.id for t in pareto.front(trials, objectives)]
