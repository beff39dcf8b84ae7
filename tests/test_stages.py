from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from toy import WalkingSpace

from smnas.encoding import Encoding
from smnas.errors import RunError, SpaceExhausted
from smnas.journal import Journal, Trial, read, read_run
from smnas.objectives.vector import Objectives
from smnas.optimizer import Optimizer
from smnas.records import Candidate, Failed, Measured, Outcome
from smnas.stages import FLOOR, GroupOptimizer, choose_parents

REFERENCE = {"latency_ms": 10.0, "map": 0.0}


@pytest.fixture
def objectives() -> Objectives:
    return Objectives({"latency_ms": "minimize", "map": "maximize"}, REFERENCE)


def trials(points: Sequence[tuple[float, float]]) -> list[Trial]:
    return [
        Trial(
            Candidate(number, "structural", {"n": number}),
            Measured({"latency_ms": latency, "map": quality}),
            0.0,
            float(number),
        )
        for number, (latency, quality) in enumerate(points)
    ]


FRONT = [(1.0, 0.10), (2.0, 0.30), (3.0, 0.31), (4.0, 0.50), (6.0, 0.60), (8.0, 0.61)]


def chosen(points: Sequence[tuple[float, float]], groups: int, objectives: Objectives) -> list[int]:
    return [t.candidate.id for t in choose_parents(trials(points), objectives, groups)]


def test_one_of_each_group_along_latency_is_chosen(objectives: Objectives) -> None:
    """Exclusive hypervolumes of FRONT: (2 - 1) x .1 = .1, (3 - 2) x .2 = .2, (4 - 3) x .01 = .01,
    (6 - 4) x .19 = .38, (8 - 6) x .1 = .2, (10 - 8) x .01 = .02."""
    assert chosen(FRONT, 3, objectives) == [1, 3, 4]
    assert chosen(FRONT, 2, objectives) == [1, 3]
    assert chosen(FRONT, 1, objectives) == [3]
    assert chosen(FRONT, 6, objectives) == [0, 1, 2, 3, 4, 5]


def test_groups_are_of_the_front_only_and_never_more_than_it_has(objectives: Objectives) -> None:
    dominated = [(5.0, 0.2), (9.0, 0.6)]
    assert chosen([*dominated, *FRONT], 3, objectives) == [3, 5, 6]
    assert chosen(FRONT[:2], 3, objectives) == [0, 1]


def test_without_a_front_there_is_no_next_stage(objectives: Objectives) -> None:
    failed = Trial(Candidate(0, "structural", {"n": 0}), Failed("crash", "x"), 0.0, 1.0)
    with pytest.raises(RunError, match="wanted a front to start from, got no measured trial"):
        choose_parents([failed], objectives, 3)


EARLIER = trials([(5.0, 0.1), (7.0, 0.2)])


def grouped(objectives: Objectives) -> GroupOptimizer:
    members = {
        group: Optimizer(
            Encoding.of(WalkingSpace()),
            objectives,
            population=3,
            seed=group,
            stage="modular",
            ancestor={"x": group, "y": 0},
            group=group,
        )
        for group in (0, 1)
    }
    return GroupOptimizer(members, objectives, EARLIER, population=3)


def outcome(candidate: Candidate) -> Outcome:
    """Only group 1 finds anything better than what there is."""
    if candidate.group == 0:
        return Measured({"latency_ms": 9.0, "map": 0.1})
    return Measured({"latency_ms": 6.0 - candidate.id / 10, "map": 0.3 + candidate.id / 100})


def run(optimizer: GroupOptimizer, number: int) -> list[Candidate]:
    candidates = []
    for _ in range(number):
        candidate = optimizer.ask()
        assert candidate is not None
        optimizer.tell(candidate.id, outcome(candidate))
        candidates.append(candidate)
    return candidates


def test_ids_go_on_where_the_earlier_stage_ended(objectives: Objectives) -> None:
    assert [c.id for c in run(grouped(objectives), 10)] == list(range(2, 12))


def test_every_group_gets_its_first_population_before_anything_else(
    objectives: Objectives,
) -> None:
    first = run(grouped(objectives), 6)
    assert [c.origin for c in first] == ["control", "control"] + 4 * ["mutant"]
    assert [c.parents for c in first[:2]] == [(0,), (1,)]
    assert sorted((c.group, c.parents) for c in first[2:]) == 2 * [(0, (2,))] + 2 * [(1, (3,))]


def test_trials_go_where_hypervolume_is_gained(objectives: Objectives) -> None:
    optimizer = grouped(objectives)
    assert optimizer.shares() == {0: 0.5, 1: 0.5}
    candidates = run(optimizer, 24)
    assert optimizer.shares() == {0: FLOOR / 2, 1: 1 - FLOOR / 2}
    numbers = [sum(c.group == group for c in candidates) for group in (0, 1)]
    assert numbers == [6, 18]


def test_an_exhausted_group_leaves_its_trials_to_the_others(objectives: Objectives) -> None:
    optimizer = grouped(objectives)
    candidates = run(optimizer, 50)
    assert sorted(sum(c.group == group for c in candidates) for group in (0, 1)) == [25, 25]
    with pytest.raises(SpaceExhausted, match="all 2 groups are exhausted"):
        optimizer.ask()


@pytest.mark.parametrize("cut", [1, 5, 9, 17])
def test_replay_restores_groups_shares_and_lineage(cut: int, objectives: Objectives) -> None:
    whole, resumed = grouped(objectives), grouped(objectives)
    for candidate in run(whole, cut):
        resumed.replay(Candidate.from_json(candidate.to_json()))
        resumed.tell(candidate.id, outcome(candidate))
    assert resumed.shares() == whole.shares()
    assert run(resumed, 12) == run(whole, 12)


def test_a_candidate_of_no_group_is_refused(objectives: Objectives) -> None:
    with pytest.raises(RunError, match=r"wanted a group among \[0, 1\], got 5"):
        grouped(objectives).replay(Candidate(2, "modular", {"x": 0, "y": 0}, group=5))
    with pytest.raises(ValueError, match="never asked"):
        grouped(objectives).tell(2, Failed("crash", "x"))


def test_a_run_is_read_with_all_its_stages(tmp_path: Path, objectives: Objectives) -> None:
    for folder, ids in ((tmp_path, (0, 1)), (tmp_path / "modular", (2, 3))):
        journal = Journal.open(folder / "journal.jsonl", {"name": folder.name, "experiment": {}})
        for number in ids:
            journal.asked(Candidate(number, "s", {"n": number}))
        journal.close()
    whole = read_run(tmp_path)
    assert [t.candidate.id for t in whole.trials()] == [0, 1, 2, 3]
    assert whole.header == read(tmp_path).header
    assert [t.candidate.id for t in read_run(tmp_path / "modular").trials()] == [2, 3]
