from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from toy import toy_outcome, toy_outcome_with_failures

from smnas import pareto
from smnas.journal import History, Told, read
from smnas.records import Failed, Measured, Outcome, Sample
from smnas.report import tables


def test_front_rows_are_the_front_with_names(toy_run: Callable[..., Path]) -> None:
    history = read(toy_run())
    rows = tables.front_rows(history)
    front = pareto.front(history.trials(), tables.objectives_of(history))
    assert [row["id"] for row in rows] == [t.candidate.id for t in front]
    flat = next(row for row in rows if row["baseline"])
    assert flat["baseline"] == "flat" and flat["origin"] == "baseline" and flat["latency_ms"] == 1.0
    assert [row["baseline"] for row in rows].count(None) == len(rows) - 1


def test_a_latency_bound_leaves_out_what_is_slower(toy_run: Callable[..., Path]) -> None:
    history = read(toy_run())
    bound = tables.front_rows(history)[1]["latency_ms"]
    assert [r["latency_ms"] <= bound for r in tables.front_rows(history, bound)] == [True, True]
    assert tables.front_rows(history, 0.5) == []


def test_trial_rows_hold_everything_measured(toy_run: Callable[..., Path]) -> None:
    history = read(toy_run(30, toy_outcome_with_failures))
    failed = [t for t in history.trials() if isinstance(t.outcome, Failed)]
    assert failed and len(tables.trial_rows(history)) == 30 - len(failed)


def test_csv_has_a_column_for_each_choice(toy_run: Callable[..., Path]) -> None:
    rows = tables.front_rows(read(toy_run()))
    parsed = list(csv.DictReader(io.StringIO(tables.to_csv(rows))))
    assert [float(p["latency_ms"]) for p in parsed] == [r["latency_ms"] for r in rows]
    assert [p["kind"] for p in parsed] == [r["sample"]["kind"] for r in rows]
    assert "sample" not in parsed[0]
    assert tables.to_csv([]) == ""


def test_the_table_shows_values_and_structure(toy_run: Callable[..., Path]) -> None:
    history = read(toy_run())
    rows = tables.front_rows(history)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.front_table(history, rows))
    text = console.export_text()
    assert "Pareto front of toy" in text and "d0=0 d1=0 d2=0 d3=0 kind=a  (flat)" in text
    assert f"{rows[-1]['map']:.3f}" in text


def test_the_table_says_how_short_the_training_was_and_how_far_to_trust_it(
    toy_run: Callable[..., Path],
) -> None:
    history = read(toy_run())
    assert tables.training_note(history) is None
    first, *others = history.events
    told = next(e for e in others if isinstance(e, Told) and isinstance(e.outcome, Measured))
    trained = Told(told.id, Measured(told.outcome.metrics, {"recipe": "2 epochs"}), told.time)
    events = (first, *(trained if event is told else event for event in others))
    assert (
        tables.training_note(History(history.header, events)) == "Trained from scratch: 2 epochs."
    )
    trusted = History({**history.header, "proxy_tau": 0.714}, events)
    assert tables.training_note(trusted) == (
        "Trained from scratch: 2 epochs.\n"
        "Kendall's tau between mAP after this and after long training: 0.71."
    )
    rows = tables.front_rows(trusted)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.front_table(trusted, rows))
    assert "long training: 0.71." in " ".join(console.export_text().split())


CARD = {
    "median_ms": 20.0, "iqr_ms": 0.5, "count": 50, "device": "GPU A", "threads": 1,
    "precision": "fp16", "batch": 8, "compiled": True, "includes": "forward pass", "gpu": None,
}  # fmt: skip
STATE = {
    "driver": "580.65", "sm_clock_mhz": 1410, "max_sm_clock_mhz": 1980, "memory_clock_mhz": None,
    "temperature_c": 61, "throttling": ["software power cap"],
}  # fmt: skip


def test_latencies_again_with_their_conditions_and_throughput() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    cards = [CARD, CARD | {"gpu": STATE}]
    console.print(tables.latency_table([3, 4], cards, [None, {"median_ms": 10.0}]))
    text = " ".join(console.export_text().split())
    assert "GPU A, fp16, batch 8, 1 CPU threads, compiled: forward pass" in text
    assert "400.0" in text and "2.00" in text
    assert "SM clock 1410 MHz (at most 1980); 61 °C; throttled: software power cap" in text


def test_the_note_on_a_gpu() -> None:
    assert tables.gpu_note([None]) is None
    quiet = {**STATE, "throttling": []}
    assert str(tables.gpu_note([quiet])).endswith("61 °C; not throttled")
    locked = {**STATE, "throttling": ["clocks set by the user"]}
    assert str(tables.gpu_note([locked])).endswith("; clocks set by the user; not throttled")
    silent = dict.fromkeys(STATE) | {"driver": "580.65"}
    assert tables.gpu_note([silent]) == "driver 580.65"


def test_what_noise_keeps_is_marked(toy_run: Callable[..., Path]) -> None:
    def noisy(sample: Sample) -> Outcome:
        measured = toy_outcome(sample)
        assert isinstance(measured, Measured)
        return Measured({**measured.metrics, "latency_iqr_ms": 6.0})

    history = read(toy_run(30, noisy))
    rows = tables.front_rows(history, noise_aware=True)
    sure = [row["id"] for row in rows if not row["within_noise"]]
    assert sure == [row["id"] for row in tables.front_rows(history)]
    first, *_ = [row["id"] for row in rows if row["within_noise"]]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.front_table(history, rows))
    text = console.export_text()
    assert f"~{first} " in text and "~ beaten by no more than the spread of latency." in text
