"""Runs whose trials were measured on two devices, A (even ids) and B (odd ones)."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from toy import toy_outcome

from smnas import cli, load_result
from smnas.errors import MixedDevicesError, RunError
from smnas.journal import FILE_NAME, read
from smnas.records import Measured, Outcome, Sample, Stopped
from smnas.report.devices import measured_devices, open_run
from smnas.report.frame import load_frame
from smnas.report.overview import budget
from smnas.report.tables import front_rows, front_table
from smnas.timings import Timing, append_timings

A, B = "Graphics A 3000", "Graphics B 2000"


@pytest.fixture
def mixed(toy_run: Callable[..., Path]) -> Path:
    asked = []

    def outcome(sample: Sample) -> Outcome:
        # the run fixture calls it twice a trial, once for the journal and once for the optimiser
        if sample not in asked:
            asked.append(sample)
        measured = toy_outcome(sample)
        assert isinstance(measured, Measured)
        device = B if asked.index(sample) % 2 else A
        return Measured(measured.metrics, {"device": device})

    return toy_run(20, outcome)


def timing(number: int, device: str, ms: float) -> Timing:
    metrics = {"latency_ms": ms, "latency_iqr_ms": 0.5, "latency_count": 7}
    return Timing(number, device, 0.0, metrics, {"median_ms": ms})


def latencies(run: Path, device: str | None) -> dict[int, float]:
    trials = open_run(run, device).trials()
    return {
        t.candidate.id: t.outcome.metrics["latency_ms"]
        for t in trials
        if isinstance(t.outcome, Measured)
    }


def test_two_devices_in_one_front_are_refused(mixed: Path) -> None:
    with pytest.raises(MixedDevicesError) as error:
        open_run(mixed)
    for words in (f"{A} (10)", f"{B} (10)", f"smnas latency {mixed} --all", "--mixed-devices"):
        assert words in str(error.value)
    with pytest.raises(MixedDevicesError):
        load_result(mixed)


def test_unless_asked_for(mixed: Path) -> None:
    assert open_run(mixed, mixed_devices=True) == read(mixed)
    assert len(load_result(mixed, mixed_devices=True).pop) == 20


def test_one_device_is_no_mixture(toy_run: Callable[..., Path]) -> None:
    run = toy_run(12)
    assert open_run(run) == read(run)
    assert list(measured_devices(read(run)).values()) == [12]


def test_costs_do_not_depend_on_the_device(mixed: Path) -> None:
    path = mixed / FILE_NAME
    path.write_text(path.read_text().replace('"latency_ms":"minimize"', '"macs_g":"minimize"', 1))
    assert open_run(mixed) == read(mixed)


def test_a_device_brings_its_own_trials_and_what_was_timed_again_on_it(mixed: Path) -> None:
    own = {
        t.candidate.id: t.outcome.metrics["latency_ms"]
        for t in read(mixed).trials()
        if isinstance(t.outcome, Measured)
    }
    assert latencies(mixed, A) == {i: ms for i, ms in own.items() if i % 2 == 0}
    append_timings(mixed, [timing(1, A, 123.0), timing(2, A, 45.0)])
    expected = {i: ms for i, ms in own.items() if i % 2 == 0} | {1: 123.0, 2: 45.0}
    assert latencies(mixed, A) == expected
    assert latencies(mixed, B) == {i: ms for i, ms in own.items() if i % 2}
    again = {t.candidate.id: t.outcome for t in open_run(mixed, A).trials()}
    assert isinstance(again[1], Measured)
    assert again[1].info == {"device": A, "latency": {"median_ms": 123.0}}
    assert again[1].metrics["latency_iqr_ms"] == 0.5
    assert len(load_result(mixed, device=A).pop) == len(expected)


def test_a_third_device_has_only_what_was_timed_on_it(mixed: Path) -> None:
    append_timings(mixed, [timing(3, "Pocket C", 300.0), timing(4, "Pocket C", 400.0)])
    assert latencies(mixed, "pocket") == {3: 300.0, 4: 400.0}
    view = open_run(mixed, "pocket c")
    rows = front_rows(view)
    assert {row["id"] for row in rows} <= {3, 4} and rows[0]["latency_ms"] == 300.0
    # the others did not fail and do not run: nobody has timed them there
    rest = [t.outcome for t in view.trials() if t.candidate.id not in (3, 4)]
    assert len(rest) == 18
    assert all(isinstance(one, Stopped) and one.reason == "untimed" for one in rest)
    assert all("map" in one.metrics and "latency_ms" not in one.metrics for one in rest)
    (spent,) = budget(view)
    assert (spent.asked, spent.measured, spent.failed, spent.stopped) == (20, 2, 0, 18)
    console = Console(width=200, file=io.StringIO())
    console.print(front_table(view, rows))
    assert "Of 20 detectors 18 were not timed on this device." in console.file.getvalue()


def test_what_was_timed_again_in_turns_wins_over_the_trials_own(
    toy_run: Callable[..., Path],
) -> None:
    def outcome(sample: Sample) -> Outcome:
        measured = toy_outcome(sample)
        assert isinstance(measured, Measured)
        return Measured(measured.metrics, {"device": A})

    run = toy_run(12, outcome)
    own = latencies(run, A)
    append_timings(run, [timing(3, A, 300.0), timing(4, f"{A} [batch 8]", 1.0)])
    assert latencies(run, None) == own | {3: 300.0}
    frame = load_frame(run)
    assert frame.set_index("id")["latency_ms"].to_dict() == own | {3: 300.0}
    column = frame.set_index("id")[f"latency_ms@{A} [batch 8]"].dropna()
    assert column.to_dict() == {4: 1.0}
    assert load_result(run).F.shape[1] == 2


@pytest.mark.parametrize("name", ["Graphics", "Graphics D", ""])
def test_a_device_that_is_not_one_of_them(mixed: Path, name: str) -> None:
    with pytest.raises(RunError, match=f"wanted one with measured latencies .{A}, {B}."):
        open_run(mixed, name)


def test_the_whole_name_wins_over_longer_ones(mixed: Path) -> None:
    append_timings(mixed, [timing(3, A + " Ti", 300.0)])
    assert len(latencies(mixed, A)) == 10
    assert latencies(mixed, A + " ti") == {3: 300.0}


def test_other_conditions_are_found_by_their_brackets_only(mixed: Path) -> None:
    keys = [f"{A} [batch 8]", f"{A} [batch 8, fp16]", f"{A} [compiled]"]
    append_timings(mixed, [timing(1, key, 100.0 + k) for k, key in enumerate(keys)])
    assert len(latencies(mixed, "Graphics A")) == 10
    assert latencies(mixed, "[batch 8]") == {1: 100.0}
    assert latencies(mixed, "a 3000 [batch 8, f") == {1: 101.0}
    assert latencies(mixed, "[compiled]") == {1: 102.0}
    assert measured_devices(open_run(mixed, "[compiled]")) == {keys[2]: 1}
    for wrong in ("[batch", "batch 8", "compiled"):
        with pytest.raises(RunError, match="wanted one with measured latencies"):
            open_run(mixed, wrong)


def test_front_on_the_command_line(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["smnas", "front", str(mixed), *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    status, out, err = run()
    assert (status, out) == (2, "") and err.count("\n") == 1 and "--mixed-devices" in err
    assert run("--mixed-devices", "--csv")[0] == 0
    status, out, _ = run("--device", "graphics b", "--csv")
    assert status == 0 and all(int(line.split(",")[0]) % 2 for line in out.splitlines()[1:])
