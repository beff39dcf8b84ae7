"""Turns, conditions and records of repeated latency, on the smallest detector."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from toy import toy_outcome

from smnas import cli, pareto, retime
from smnas.errors import ConfigError, RunError
from smnas.journal import FILE_NAME, Journal, read
from smnas.objectives.latency import Latency, device_name
from smnas.records import Candidate, Measured, Outcome, Sample
from smnas.report import tables
from smnas.report.devices import open_run
from smnas.report.tables import objectives_of
from smnas.retime import Conditions, Subject
from smnas.timings import read_timings

CPU = torch.device("cpu")
SPACE = "search_spaces.structural:StructuralSpace"
SAMPLE = {
    "backbone": "mobilenet_v2",
    "neck": "fpn",
    "neck_start": 3,
    "neck_end": 5,
    "neck_width": 64,
    "rpn": "rpn",
    "head": "rcnn",
    "input_size": "96x96",
}
SPACE_ARGS = {"input_sizes": ["96x96"], "head_width": 64}
OLD = {"median_ms": 4.0, "precision": "fp32", "threads": 1, "channels_last": False}


class Part(nn.Module):
    """Stands for a detector."""

    input_size = "64x32"

    def forward(self, images: list[torch.Tensor]) -> list[dict]:
        return [{} for _ in images]


class Space:
    """Notes what is frozen, with the random number that its weights would start from."""

    def __init__(self, log: list[Any]) -> None:
        self._log = log

    def freeze(self, sample: Sample) -> nn.Module:
        self._log.append((sample["x"], torch.rand(1).item()))  # the global generator, as weights do
        return Part()


def subject(log: list[Any], x: int, **options: Any) -> Subject:
    return Subject(lambda: Space(log), {"x": x}, **options)  # type: ignore[arg-type, return-value]


def test_detectors_take_turns_and_start_from_their_trials_weights() -> None:
    log: list[Any] = []
    seen: list[int] = []
    subjects = [subject(log, 1, seed=5), subject(log, 2, seed=6)]
    found = retime.retime(subjects, Conditions(CPU), 3, lambda: seen.append(1))
    assert [x for x, _ in log] == [1, 2, 1, 2, 1, 2] and len(seen) == 6
    assert len({value for x, value in log if x == 1}) == 1
    first = torch.rand(1, generator=torch.Generator().manual_seed(5)).item()
    assert log[0][1] == first
    for latency in found:
        assert latency.count == len(latency.times_ms) == 3 * retime.CALLS
        assert latency.input_size == (64, 32) and latency.threads == 1
        assert min(latency.times_ms) <= latency.median_ms <= max(latency.times_ms)


@pytest.mark.parametrize(
    ("before", "conditions", "expected"),
    [
        (None, Conditions(CPU), ("fp32", 1)),
        (OLD | {"threads": 2}, Conditions(CPU), ("fp32", 2)),
        (OLD | {"precision": "amp"}, Conditions(CPU), ("amp", 1)),
        # the trial ran on a GPU: its precision says nothing about a CPU
        (OLD | {"precision": "amp", "channels_last": True}, Conditions(CPU), ("fp32", 1)),
        (OLD | {"threads": 2}, Conditions(CPU, "amp", 1), ("amp", 1)),
    ],
)
def test_conditions_are_those_of_the_trials_unless_told(
    monkeypatch: pytest.MonkeyPatch, before: Any, conditions: Conditions, expected: tuple[str, int]
) -> None:
    asked: list[dict] = []

    def measure(model: nn.Module, size: tuple[int, int], **options: Any) -> Latency:
        asked.append(options)
        return Latency(2.0, 0.0, 2, 1, "cpu", 1, "fp32", False, size, times_ms=(1.0, 3.0))

    monkeypatch.setattr(retime, "measure_latency", measure)
    (found,) = retime.retime([subject([], 1, before=before)], conditions, rounds=2)
    assert [(o["precision"], o["threads"]) for o in asked] == [expected] * 2
    assert (found.median_ms, found.count, found.warmup) == (2.0, 4, 2)


def test_the_front_is_timed_or_everything(toy_run: Callable[..., Path]) -> None:
    history = read(toy_run(20))
    front = pareto.front(history.trials(), objectives_of(history))
    assert {t.candidate.id for t in retime.trials_to_time(history, front_only=True)} == {
        t.candidate.id for t in front
    }
    assert [t.candidate.id for t in retime.trials_to_time(history)] == list(range(20))


def test_with_two_devices_each_has_its_front(toy_run: Callable[..., Path]) -> None:
    def outcome(sample: Sample) -> Outcome:
        measured = toy_outcome(sample)
        assert isinstance(measured, Measured)
        # device B is four times slower, so none of its detectors is on a mixed front
        slow = sample["kind"] == "b"
        factor, device = (4.0, "B") if slow else (1.0, "A")
        metrics = {**measured.metrics, "latency_ms": factor * measured.metrics["latency_ms"]}
        return Measured(metrics, {"device": device})

    history = read(toy_run(30, outcome))
    timed = retime.trials_to_time(history, front_only=True)
    expected = []
    for device in ("A", "B"):
        own = [t for t in history.trials() if t.outcome.info["device"] == device]
        expected += [t.candidate.id for t in pareto.front(own, objectives_of(history))]
    assert [t.candidate.id for t in timed] == sorted(expected)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as a structural search writes it: two measured, tiny detectors."""
    folder = tmp_path / "run"
    header = {
        "name": "tiny",
        "experiment": {
            "space": SPACE,
            "space_args": SPACE_ARGS,
            "seed": 3,
            "objectives": {"latency_ms": "minimize", "map": "maximize"},
            "reference_point": {"latency_ms": 100, "map": 0},
            "baselines": {},
            "population": 2,
        },
        "space": {"choices": {name: [option] for name, option in SAMPLE.items()}},
    }
    journal = Journal.open(folder / FILE_NAME, header)
    for number, (width, latency, quality) in enumerate([(64, 4.0, 0.3), (128, 9.0, 0.4)]):
        journal.asked(Candidate(number, "structural", {**SAMPLE, "neck_width": width}))
        info = {"latency": OLD | {"median_ms": latency}, "device": "Old", "num_classes": 10}
        journal.told(number, Measured({"latency_ms": latency, "map": quality}, info))
    journal.close()
    return folder


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["smnas", *words])
    monkeypatch.setenv("COLUMNS", "150")
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def test_a_run_is_timed_on_the_command_line_and_its_front_follows(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = (run / FILE_NAME).read_bytes()
    options = ("--device", "cpu", "--rounds", "1")
    status, out, err = command(monkeypatch, capsys, "latency", str(run), "--all", *options)
    assert status == 0, err
    assert "before ms" in out and "4.00" in out and "9.00" in out
    assert (run / FILE_NAME).read_bytes() == journal
    ((device, found),) = read_timings(run).items()
    assert set(found) == {0, 1} and found[0].latency["threads"] == 1
    status, out, _ = command(monkeypatch, capsys, "front", str(run), "--device", device, "--json")
    rows = {row["id"]: row["latency_ms"] for row in json.loads(out)}
    assert status == 0 and rows == {i: found[i].metrics["latency_ms"] for i in rows}
    # without a device the latencies of the run's own device count
    out = command(monkeypatch, capsys, "front", str(run), "--json")[1]
    assert [row["latency_ms"] for row in json.loads(out)] == [4.0, 9.0]


def test_a_run_that_is_named_by_its_journal_keeps_its_timings(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (str(run / FILE_NAME), "--front", "--device", "cpu", "--rounds", "1")
    status, _, err = command(monkeypatch, capsys, "latency", *words)
    assert status == 0, err
    ((_, found),) = read_timings(run).items()
    assert set(found) == {0, 1}


def test_one_detector_is_timed_and_not_recorded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--device", "cpu", "--rounds", "1")
    status, out, _ = command(monkeypatch, capsys, "latency", f"{run}#1", *options)
    assert status == 0 and "9.00" in out and "4.00" not in out
    assert not read_timings(run)
    sample = tmp_path / "sample.json"
    sample.write_text(json.dumps(SAMPLE | {"input_size": "512x512"}))
    monkeypatch.setattr(retime, "CALLS", 5)
    status, out, err = command(
        monkeypatch, capsys, "latency", SPACE, str(sample), "--classes", "3", *options
    )
    assert status == 0, err
    assert "before ms" in out


def card(**changes: Any) -> Latency:
    values = {"precision": "fp32", "threads": 1, "channels_last": False, **changes}
    return Latency(2.0, 0.0, 2, 1, "cpu", input_size=(64, 32), times_ms=(1.0, 3.0), **values)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (OLD, card(), ""),
        (None, card(), ""),
        (OLD, card(batch=8), "batch 8"),
        (OLD | {"threads": 2}, card(threads=4, compiled=True), "compiled, 4 CPU threads"),
        (OLD, card(precision="fp16", channels_last=True, batch=2), "batch 2, fp16"),
        # a GPU's usual precision, for a run of a CPU
        (OLD, card(precision="amp", channels_last=True), ""),
        (OLD | {"precision": "fp32", "channels_last": True}, card(channels_last=True), ""),
    ],
)
def test_what_differs_from_the_runs_conditions_is_said(
    before: Any, now: Latency, expected: str
) -> None:
    of_the_run = subject([], 1, id=7, before=before)
    assert retime.unusual(of_the_run, now) == expected
    (timing,) = retime.timings([of_the_run], [now])
    assert timing.device == (f"cpu [{expected}]" if expected else "cpu") and timing.id == 7


def test_batches_are_timed_on_the_command_line_and_kept_apart(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retime, "CALLS", 5)
    options = ("--device", "cpu", "--rounds", "1", "--batch", "2", "--all")
    status, out, err = command(monkeypatch, capsys, "latency", str(run), *options)
    assert status == 0, err
    assert "batch 2" in out and "images/s" in out
    ((key, found),) = read_timings(run).items()
    assert key.endswith("[batch 2]") and found[0].latency["batch"] == 2
    out = command(monkeypatch, capsys, "front", str(run), "--device", "[batch 2]", "--csv")[1]
    assert len(out.splitlines()) > 1
    status, _, err = command(monkeypatch, capsys, "front", str(run), "--device", "batch 2")
    assert status == 2 and "wanted one with measured latencies" in err


@pytest.fixture
def toy_run_here(toy_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 30 trials that says it ran on this processor; whatever is timed again takes 50 ms
    more if its number is even."""

    def outcome(sample: Sample) -> Outcome:
        measured = toy_outcome(sample)
        assert isinstance(measured, Measured)
        return Measured(measured.metrics, {"device": device_name(CPU), "num_classes": 1})

    run = toy_run(30, outcome)
    own = {t.candidate.id: t.outcome.metrics["latency_ms"] for t in read(run).trials()}

    def again(subjects: Any, conditions: Conditions, rounds: int, observe: Any) -> list[Latency]:
        found = []
        for one in subjects:
            observe()
            latency = own[one.id] + 50 * (one.id % 2 == 0)
            found.append(replace(card(), median_ms=latency, device=device_name(CPU)))
        return found

    monkeypatch.setattr(retime, "retime", again)
    return run


def test_the_front_is_timed_until_all_of_it_was_timed(toy_run_here: Path) -> None:
    before = read(toy_run_here)
    objectives = objectives_of(before)
    first = {t.candidate.id for t in pareto.front(before.trials(), objectives)}
    assert any(i % 2 == 0 for i in first)
    seen: list[int] = []
    device = retime.remeasure_front(toy_run_here, observe=lambda: seen.append(1))
    assert device == device_name(CPU)
    timed = read_timings(toy_run_here)[device]
    assert first <= set(timed) and len(seen) == len(timed)
    now = open_run(toy_run_here, device)
    front = {t.candidate.id for t in pareto.front(now.trials(), objectives)}
    assert front <= set(timed) and front != first
    # all is known by now
    assert retime.remeasure_front(toy_run_here, observe=lambda: seen.append(1)) == device
    assert len(seen) == len(timed)


def test_a_front_of_another_machine_is_not_timed(toy_run: Callable[..., Path]) -> None:
    run = toy_run(10)
    assert retime.remeasure_front(run) is None and read_timings(run) == {}


def test_the_end_of_a_search_shows_the_front_that_was_timed_again(
    toy_run_here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smnas.report.plots.save_plots", lambda history, run: [])
    cli._show_end(toy_run_here, "trials", Console(width=200), noise_aware=True)
    out = capsys.readouterr().out
    rows = tables.front_rows(open_run(toy_run_here, device_name(CPU)), noise_aware=True)
    written = list(csv.DictReader((toy_run_here / "front.csv").open()))
    assert [int(line["id"]) for line in written] == [row["id"] for row in rows]
    assert [float(line["latency_ms"]) for line in written] == [row["latency_ms"] for row in rows]
    assert "within_noise" in written[0] and "Pareto front of toy" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{run}",), "wanted RUN#ID, RUN --all, RUN --front, or SPACE SAMPLE.json"),
        (("{run}", "--all", "--front"), "wanted --all or --front, got both"),
        (("{run}#x",), "wanted RUN#ID"),
        (("{run}#9",), "wanted a measured candidate of the run, got id 9"),
        (("{run}", "sample.json", "--all"), "got '"),
        (("nowhere", "--all"), "no journal"),
        ((SPACE, "nowhere.json"), "wanted a JSON file"),
    ],
)
def test_wrong_words_are_one_line(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    given = [word.format(run=run) for word in words]
    status, _, err = command(monkeypatch, capsys, "latency", "--device", "cpu", *given)
    assert status == 2 and message in err and err.count("\n") == 1


def test_the_number_of_classes_must_be_known(run: Path) -> None:
    path = run / FILE_NAME
    path.write_text(path.read_text().replace(',"num_classes":10', ""))
    history = read(run)
    trials = retime.trials_to_time(history)
    with pytest.raises(ConfigError, match="--classes"):
        retime.run_subjects(history, trials, None)
    assert len(retime.run_subjects(history, trials, 10)) == 2
    with pytest.raises(RunError):
        retime.find_trial(history, 7)
