"""Two stages in one run, through the command line, with trials that make their numbers up."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from whole_search import (
    asked,
    assert_refused,
    command,
    environment,
    outcomes,
    smnas,
    write_experiment,
)

from smnas.journal import read, read_run

SIZES = ["96x96", "128x128"]


def write_stages(folder: Path, **modular: object) -> list[Path]:
    arguments = {
        "stage": "modular",
        "space": "search_spaces.modular:ModularSpace",
        "space_args": {"input_sizes": SIZES, "base_widths": [16, 32], "blocks_range": [4, 6]},
        "baselines": {},
        "population": 3,
        "groups": 2,
        **modular,
    }
    return [
        write_experiment(folder, trials=10),
        write_experiment(folder, name="inside", trials=14, **arguments),
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    done = smnas("search", *write_stages(folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "structural stage" in done.stdout and "modular stage: the inside of" in done.stdout
    assert "complete: all trials are done" in done.stdout
    return folder / "runs" / "toy"


def test_each_stage_has_its_journal_and_its_trials(finished: Path) -> None:
    assert [len(read(folder).trials()) for folder in (finished, finished / "modular")] == [10, 14]
    assert len(list((finished / "modular" / "trials").iterdir())) == 14
    header = read(finished / "modular").header["experiment"]
    assert header["stage"] == "modular" and len(header["parents"]) == 2


def test_lineage_leads_from_every_detector_to_a_structure(finished: Path) -> None:
    trials = {t.candidate.id: t.candidate for t in read_run(finished).trials()}
    assert sorted(trials) == list(range(24))
    modular = [c for c in trials.values() if c.stage == "modular"]
    groups = {c.group for c in modular}
    structural_front = json.loads(smnas("front", finished, "--json", cwd=finished).stdout)
    assert len(groups) == 2 and structural_front
    for candidate in modular:
        ancestor = candidate
        while ancestor.stage == "modular":
            ancestor = trials[ancestor.parents[0]]
        assert ancestor.id == candidate.group and ancestor.stage == "structural"
        assert candidate.sample["input_size"] == ancestor.sample["input_size"]
    controls = [c for c in modular if c.origin == "control"]
    assert {c.group for c in controls} == groups and len(controls) == 2


def test_the_front_is_of_both_stages_and_says_where_a_detector_comes_from(finished: Path) -> None:
    done = smnas("front", finished, "--json", cwd=finished)
    rows = json.loads(done.stdout)
    values = [(row["latency_ms"], row["map"]) for row in rows]
    assert values == sorted(values) and [m for _, m in values] == sorted(m for _, m in values)
    for row in rows:
        assert (row["group"] is None) == (row["stage"] == "structural")
        assert row["generation"] >= 0 and isinstance(row["parents"], list)
    own = json.loads(smnas("front", finished / "modular", "--json", cwd=finished).stdout)
    assert {row["stage"] for row in own} == {"modular"}
    text = (finished / "front.csv").read_text()
    assert text == smnas("front", finished, "--csv", cwd=finished).stdout
    assert "group,generation,parents" in text.splitlines()[0]


def test_a_complete_run_runs_nothing(finished: Path) -> None:
    folder = finished.parents[1]
    before = (finished / "modular" / "journal.jsonl").read_bytes()
    done = smnas("search", folder / "toy.yml", folder / "inside.yml", cwd=folder)
    assert done.returncode == 0 and "complete: all trials are done" in done.stdout
    assert (finished / "modular" / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize("target", [2, 9])
def test_killed_in_the_second_stage_it_goes_on_there(
    finished: Path, tmp_path: Path, target: int
) -> None:
    configs = write_stages(tmp_path)
    mine = tmp_path / "runs" / "toy"
    process = subprocess.Popen(
        command("search", *configs),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while outcomes(mine / "modular") < target:
        assert process.poll() is None, "the search ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert smnas("search", *configs, cwd=tmp_path).returncode == 0
    for stage in ("", "modular"):
        assert asked(mine / stage) == asked(finished / stage)
        assert [t.outcome for t in read(mine / stage).trials()] == [
            t.outcome for t in read(finished / stage).trials()
        ]
    for folder in (mine / "modular" / "trials").iterdir():
        if (folder / "ran").exists():
            assert (folder / "ran").read_text() == "once\n"


def test_a_second_stage_can_be_added_to_a_finished_first(finished: Path, tmp_path: Path) -> None:
    configs = write_stages(tmp_path)
    assert smnas("search", configs[0], cwd=tmp_path).returncode == 0
    before = (tmp_path / "runs/toy/journal.jsonl").read_bytes()
    done = smnas("search", *configs, "--trials", 10, "--trials", 5, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/toy/journal.jsonl").read_bytes() == before
    assert asked(tmp_path / "runs/toy/modular") == asked(finished / "modular")[:5]


def test_a_first_stage_that_has_been_built_upon_is_closed(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    folder = finished.parents[1]
    done = smnas("search", folder / "toy.yml", "--run", run, "--trials", 11, cwd=folder)
    assert_refused(done, "a later stage started from a front of 10 trials")
    assert len(read(run).trials()) == 10


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({"stage": "structural"}, [], "stage: wanted another than the stage before"),
        (
            {"reference_point": {"latency_ms": 70}},
            [],
            "inside.yml: tuner.classArgs: objectives, reference_point: wanted those of",
        ),
        (
            {"space_args": {"structure": {"backbone": "resnet18"}}},
            [],
            "structure: wanted none in a later stage",
        ),
        (
            {
                "space": "search_spaces.structural:StructuralSpace",
                "space_args": {"input_sizes": SIZES},
            },
            [],
            "wanted a space with a method from_structural",
        ),
        ({"groups": 0}, [], "groups: wanted a whole number of at least 1, got 0"),
        ({}, 3 * ["--trials", 5], "--trials: wanted once, or once for each of 2 stages"),
    ],
)
def test_stages_that_do_not_fit_are_refused_before_anything_runs(
    tmp_path: Path, change: dict, words: list, message: str
) -> None:
    configs = write_stages(tmp_path, **change)
    assert_refused(smnas("search", *configs, *words, cwd=tmp_path), message)
    assert not (tmp_path / "runs" / "toy" / "journal.jsonl").exists()
