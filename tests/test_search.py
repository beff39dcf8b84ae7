"""Whole searches through the command line, with trials that make their numbers up in a moment."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from whole_search import (
    BASELINE,
    asked,
    assert_refused,
    command,
    environment,
    outcomes,
    smnas,
    write_experiment,
)

from smnas import load_result
from smnas.journal import read
from smnas.records import Failed


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One uninterrupted search with one worker: its run folder and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = smnas("search", write_experiment(folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "toy", done.stdout


def test_a_search_ends_with_a_front(finished: tuple[Path, str]) -> None:
    run, printed = finished
    assert "complete: all trials are done" in printed and "Pareto front of toy" in printed
    assert "[20/20]" in printed and "hypervolume" in printed
    for name in ("front.csv", "front.png", "hypervolume.png", "journal.jsonl"):
        assert (run / name).stat().st_size > 0
    trials = read(run).trials()
    assert len(trials) == 20 and trials[0].candidate.sample == BASELINE
    failed = [t for t in trials if isinstance(t.outcome, Failed)]
    assert isinstance(failed[0].outcome, Failed)
    assert "this detector cannot be trained" in failed[0].outcome.detail


def test_front_prints_table_json_and_csv(finished: tuple[Path, str]) -> None:
    run, _ = finished
    rows = json.loads(smnas("front", run, "--json", cwd=run).stdout)
    values = [(row["latency_ms"], row["map"]) for row in rows]
    assert values == sorted(values) and [m for _, m in values] == sorted(m for _, m in values)
    text = smnas("front", run, "--csv", cwd=run).stdout
    assert text == (run / "front.csv").read_text()
    assert (
        text.splitlines()[0].endswith("rpn,head,input_size")
        and len(text.splitlines()) == len(rows) + 1
    )
    bound = values[1][0] if len(values) > 1 else values[0][0]
    under = json.loads(smnas("front", run, "--json", "--under-ms", bound, cwd=run).stdout)
    assert [r["id"] for r in under] == [r["id"] for r in rows if r["latency_ms"] <= bound]
    assert f"backbone={rows[0]['sample']['backbone']}" in smnas("front", run, cwd=run).stdout


def test_a_complete_run_says_so_and_runs_nothing(finished: tuple[Path, str]) -> None:
    run, _ = finished
    before = (run / "journal.jsonl").read_bytes()
    done = smnas("search", run.parents[1] / "toy.yml", cwd=run.parents[1])
    assert done.returncode == 0 and "complete: all trials are done" in done.stdout
    assert "20 trials are finished already" in done.stdout
    assert (run / "journal.jsonl").read_bytes() == before


def test_load_result_is_a_pymoo_result(finished: tuple[Path, str]) -> None:
    from pymoo.indicators.hv import HV
    from pymoo.visualization.scatter import Scatter

    run, _ = finished
    result = load_result(run)
    rows = json.loads(smnas("front", run, "--json", cwd=run).stdout)
    wanted = sorted([r["latency_ms"], -r["map"]] for r in rows)
    assert sorted(result.F.tolist()) == wanted
    assert result.X.shape == (len(rows), 8)
    measured = [t for t in read(run).trials() if not isinstance(t.outcome, Failed)]
    assert len(result.pop) == len(measured)
    volumes = [HV(ref_point=[60.0, 0.0])(a.opt.get("F")) for a in result.history]
    assert volumes == sorted(volumes) and volumes[-1] > 0
    assert result.history[-1].evaluator.n_eval == 20
    Scatter().add(result.F).add(result.pop.get("F")).do()


def test_same_seed_same_samples_other_seed_others(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    run, _ = finished
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        assert smnas("search", write_experiment(folder, seed=seed), cwd=folder).returncode == 0
    assert asked(tmp_path / "0/runs/toy") == asked(run)
    assert asked(tmp_path / "1/runs/toy") != asked(run)


def test_kill_9_again_and_again_changes_nothing(finished: tuple[Path, str], tmp_path: Path) -> None:
    """Killed three times: the same samples and outcomes, and no trial ran to its end twice."""
    run, _ = finished
    config = write_experiment(tmp_path)
    mine = tmp_path / "runs" / "toy"
    for target in (3, 9, 14):
        process = subprocess.Popen(
            command("search", config),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while outcomes(mine) < target:
            assert process.poll() is None, "the search ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    # and a line torn by the last kill
    with (mine / "journal.jsonl").open("ab") as file:
        file.write(b'{"event":"outcome","id":')
    done = smnas("search", config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert asked(mine) == asked(run)
    assert [t.outcome for t in read(mine).trials()] == [t.outcome for t in read(run).trials()]
    for folder in (mine / "trials").iterdir():
        if (folder / "ran").exists():
            assert (folder / "ran").read_text() == "once\n"


def test_interrupt_stops_cleanly_and_says_how_to_resume(tmp_path: Path) -> None:
    config = write_experiment(tmp_path, seconds=0.2)
    process = subprocess.Popen(
        command("search", config, "--workers", "2", "--trials", "1000"),
        cwd=tmp_path,
        # a test run in the background of a shell hands down that interrupts are ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while outcomes(tmp_path / "runs/toy") < 2:
        assert process.poll() is None
        time.sleep(0.01)
    second = smnas("search", config, cwd=tmp_path)
    assert second.returncode == 2 and "another search is running in it" in second.stderr
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip().startswith(
        "smnas: stopped; nothing finished is lost; resume with: smnas search"
    )
    history = read(tmp_path / "runs/toy")
    assert history.pending(), "what was running is still asked"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "belongs to another experiment: seed: it has 0, this one has 5"),
        (
            {"objectives": {"map": "maximize"}, "reference_point": {}},
            "belongs to another experiment: objectives",
        ),
        (
            {"space_args": {"input_sizes": ["96x96", "128x128", "160x160"]}},
            "another experiment: space_args",
        ),
    ],
)
def test_another_experiment_s_run_folder_is_refused(
    finished: tuple[Path, str], tmp_path: Path, change: dict, message: str
) -> None:
    run, _ = finished
    before = (run / "journal.jsonl").read_bytes()
    done = smnas("search", write_experiment(tmp_path, **change), "--run", run, cwd=tmp_path)
    assert_refused(done, message)
    assert (run / "journal.jsonl").read_bytes() == before


def test_a_run_goes_on_with_its_own_library_only(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    """The name in the journal is exchanged, so that this needs no second library."""
    experiment = write_experiment(tmp_path)
    (tmp_path / "run").mkdir()
    journal = tmp_path / "run" / "journal.jsonl"
    first, *rest = (finished[0] / "journal.jsonl").read_text().splitlines(keepends=True)
    header = json.loads(first)
    library = header["experiment"]["library"]
    assert header["library"] == {
        "name": library,
        "version": header["machine"]["versions"][library],
    }
    other = {"torchvision": "detectron2", "detectron2": "torchvision"}[library]
    header["experiment"]["library"] = other
    journal.write_text(json.dumps(header) + "\n" + "".join(rest))
    done = smnas("search", experiment, "--run", "run", "--library", library, cwd=tmp_path)
    wanted = f"belongs to another experiment: library: it has '{other}', this one has '{library}'"
    assert_refused(done, wanted)
    del header["experiment"]["library"]  # as before there was a choice
    journal.write_text(json.dumps(header) + "\n" + "".join(rest))
    done = smnas("search", experiment, "--run", "run", "--library", "torchvision", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"library": "detectron3"}, "library: wanted one of ['auto', 'torchvision', 'detectron2']"),
        (
            {"library": "auto", "space_args": {"library": "auto"}},
            "library: wanted it here or in space_args, got both",
        ),
        ({"space": "search_spaces.structural:Nothing"}, "has no 'Nothing'"),
        ({"space": "nowhere:X"}, "cannot import nowhere"),
        (
            {"space_args": {"input_size": ["96x96"]}},
            "no argument 'input_size'; did you mean 'input_sizes'",
        ),
        ({"space_args": {"input_sizes": ["96"]}}, "wanted WIDTHxHEIGHT"),
        ({"algorithm": "nsga22"}, "no algorithm named 'nsga22'; did you mean 'nsga2'"),
        ({"algorithm_args": {"x": 1}}, "algorithm_args of nsga2: no setting named 'x'"),
        ({"population": 0}, "population: wanted a whole number of at least 2, got 0"),
        ({"baselines": {"b": {"backbone": "vgg"}}}, "baselines: b: sample: choice 'backbone'"),
    ],
)
def test_wrong_settings_get_one_line_and_status_2(
    tmp_path: Path, change: dict, message: str
) -> None:
    done = smnas("search", write_experiment(tmp_path, **change), cwd=tmp_path)
    assert_refused(done, message)
    assert not (tmp_path / "runs" / "toy" / "journal.jsonl").exists()


def test_a_space_beside_the_experiment_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "home_made_space.py").write_text(
        "from search_spaces.structural import StructuralSpace\n"
        "class Mine(StructuralSpace):\n"
        "    'A space of my own.'\n"
    )
    path = write_experiment(tmp_path, space="home_made_space:Mine")
    done = smnas("search", path, "--trials", 2, cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "elsewhere/runs/toy"
    assert read(run).header["experiment"]["space"] == "home_made_space:Mine"
    assert read(run).header["device"] and len(read(run).trials()) == 2
    described = smnas("describe", path, cwd=tmp_path / "elsewhere")
    assert "4,032 combinations" in described.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search"], "Missing argument 'CONFIG'"),
        (["search", "none.yml"], "experiment file none.yml: No such file"),
        (["search", "toy.yml", "--trials", "0"], "Invalid value for '--trials'"),
        (["search", "toy.yml", "--hours", "-1"], "wanted a number above 0, got -1"),
        (["search", "toy.yml", "--worker", "1"], "No such option: --worker"),
        (["search", "toy.yml", "--run", "/proc/smnas"], "cannot be written"),
        (["front", "nowhere"], "no journal at nowhere"),
        (["describe", "nonsense"], "wanted package.module:Class, got 'nonsense'"),
        (["nonsense"], "No such command 'nonsense'"),
        (["data", "check", "nowhere"], "nowhere"),
        (["trial", "toy.yml", "--data", "nowhere"], "wanted --sample FILE"),
        (["trial", "toy.yml", "--data", "nowhere", "--sample", "sample.json"], "nowhere"),
        (["trial", "toy.yml", "--data", "x", "--sample", "none.json"], "wanted a JSON file"),
        (
            ["trial", "toy.yml", "--data", "x", "--precision", "fp8"],
            "wanted fp32 or amp, got 'fp8'",
        ),
        (["trial", "toy.yml", "--data", "x", "--epochs", "0"], "Invalid value for '--epochs'"),
    ],
)
def test_wrong_words_get_one_line_and_status_2(
    tmp_path: Path, words: list[str], message: str
) -> None:
    write_experiment(tmp_path)
    (tmp_path / "sample.json").write_text(json.dumps(BASELINE))
    assert_refused(smnas(*words, cwd=tmp_path), message)


def test_a_trial_command_that_cannot_start_is_found_before_the_search(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["trialCommand"] = "smnas trial toy.yml --data no/such/folder"
    path.write_text(yaml.safe_dump(content))
    done = smnas("search", path, cwd=tmp_path)
    assert_refused(done, "trialCommand: ")
    assert "no/such/folder" in done.stderr
    assert not (tmp_path / "runs/toy/journal.jsonl").exists()


def test_a_corrupt_journal_is_reported_and_left_alone(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    run, _ = finished
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    config = write_experiment(tmp_path)
    mine = tmp_path / "runs/toy"
    mine.mkdir(parents=True)
    damaged = b"".join([*lines[:3], b"garbage\n", *lines[4:]])
    (mine / "journal.jsonl").write_bytes(damaged)
    for words in (["search", config], ["front", mine]):
        assert_refused(smnas(*words, cwd=tmp_path), "journal.jsonl:4: wanted a JSON line")
    assert (mine / "journal.jsonl").read_bytes() == damaged
