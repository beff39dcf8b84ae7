from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from toy import toy_outcome_with_failures

import smnas
from smnas import pareto
from smnas.errors import MissingLibraryError, RunError
from smnas.journal import Asked, History, Told, read
from smnas.records import Candidate, Failed, Measured
from smnas.report.frame import save_frame, to_frame
from smnas.report.tables import objectives_of


def test_every_candidate_is_a_row(toy_run: Callable[..., Path]) -> None:
    run = toy_run(30, toy_outcome_with_failures)
    history, frame = read(run), smnas.load_frame(run)
    trials = history.trials()
    assert list(frame["id"]) == list(range(30))
    failed = [t.candidate.id for t in trials if isinstance(t.outcome, Failed)]
    assert failed and list(frame.loc[frame["state"] == "failed", "id"]) == failed
    assert set(frame["reason"].dropna()) == {"crash"} and frame["map"].isna().sum() == len(failed)
    best = pareto.front(trials, objectives_of(history))
    assert set(frame.loc[frame["front"], "id"]) == {t.candidate.id for t in best}
    measured = frame[frame["state"] == "measured"]
    assert [dict(t.outcome.metrics) for t in trials if isinstance(t.outcome, Measured)] == (
        measured[["latency_ms", "map"]].to_dict("records")
    )
    assert list(frame["kind"]) == [t.candidate.sample["kind"] for t in trials]
    assert frame["baseline"].dropna().to_dict() == {0: "flat"}


def two_stages(toy_header: dict) -> History:
    child = Candidate(1, "modular", {"depth": 2, "size": 64}, "mutant", (0,), 1, 0)
    events = (
        Asked(Candidate(0, "structural", {"kind": "a", "size": "auto"}), 0.0),
        Told(0, Measured({"latency_ms": 1.0, "map": 0.5}), 1.0),
        Asked(child, 2.0),
    )
    return History(toy_header, events)


def test_what_a_candidate_has_not_is_missing(toy_header: dict) -> None:
    frame = to_frame(two_stages(toy_header))
    assert list(frame["state"]) == ["measured", "running"] and frame["told"].isna()[1]
    assert frame["group"].isna()[0] and frame["group"][1] == 0
    assert frame["parents"][1] == "0" and frame["depth"].dtype == "Int64"
    assert frame["depth"].isna()[0] and frame["kind"].isna()[1]
    assert list(frame["size"]) == ["auto", "64"], "one column, one type"


def test_csv_and_parquet_hold_the_frame(toy_header: dict, tmp_path: Path) -> None:
    frame = to_frame(two_stages(toy_header))
    save_frame(frame, tmp_path / "t.csv")
    parsed = pd.read_csv(tmp_path / "t.csv")
    assert list(parsed.columns) == list(frame.columns) and parsed["map"][0] == 0.5
    pytest.importorskip("pyarrow", reason="Parquet wants pyarrow: pip install 'smnas[frame]'")
    save_frame(frame, tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), frame)


def test_refusals(toy_header: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = to_frame(two_stages(toy_header))
    with pytest.raises(RunError, match="wanted a file .csv or .parquet, got .*t.xlsx"):
        save_frame(frame, tmp_path / "t.xlsx")
    with pytest.raises(RunError, match="cannot be written"):
        save_frame(frame, tmp_path / "none" / "t.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'smnas\[frame\]'"):
        save_frame(frame, tmp_path / "t.parquet")
