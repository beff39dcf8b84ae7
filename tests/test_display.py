from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from smnas.display import SearchDisplay, Standing, describe_outcome
from smnas.journal import read
from smnas.objectives.vector import Objectives
from smnas.records import Candidate, Failed, Measured
from smnas.study import Limits, Progress

FIRST = Candidate(0, "structural", {"x": 1})


def test_standing_counts_and_estimates(objectives: Objectives) -> None:
    standing = Standing(objectives)
    standing.resume(_nothing(), Limits(6))
    assert standing.seconds_left(2, 2) is None
    standing.add(Measured({"latency_ms": 10.0, "map": 0.5}), 30.0)
    standing.add(Failed("crash", "boom"), 10.0)
    assert (standing.done, standing.failed) == (2, 1)
    assert standing.hypervolume == pytest.approx(40 * 0.5)
    assert standing.best == {"latency_ms": 10.0, "map": 0.5}
    # 20 s a trial, 4 to go of which 2 are half done, 2 at a time
    assert standing.seconds_left(2, 2) == 30.0
    assert "2 running" in standing.text(2, 2) and "about 30 s left" in standing.text(2, 2)


def test_a_resumed_search_paces_itself_by_what_it_runs_now(
    toy_run: Callable[..., Path], objectives: Objectives
) -> None:
    standing = Standing(objectives)
    standing.resume(read(toy_run(10)), Limits(12))
    assert standing.done == 10 and standing.seconds_left(1, 1) is None
    standing.add(Measured({"latency_ms": 10.0, "map": 0.5}), 8.0)
    assert standing.seconds_left(0, 1) == 8.0


@pytest.mark.parametrize("terminal", [False, True])
def test_every_outcome_is_shown(objectives: Objectives, terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=160, legacy_windows=False)
    with SearchDisplay(objectives, console) as display:
        display.started("structural", _nothing(), Limits(3))
        display(Progress(1, (FIRST,)))
        display(Progress(1, (), (0, Measured({"latency_ms": 12.5, "map": 0.25}))))
        display(Progress(2, (), (1, Failed("timeout", "longer than 5 s\nlog"))))
    text = out.getvalue()
    assert "trial 0 (0 s): latency_ms 12.5, map 0.25" in text
    assert "trial 1 (0 s): failed, timeout: longer than 5 s" in text
    assert "1 failed" in text and "best latency_ms 12.5, best map 0.25" in text
    if terminal:
        assert "2/3" in text and "running: none" in text
    else:
        assert text.startswith("structural stage\n[1/3] trial 0")


def test_resuming_is_said(
    toy_run: Callable[..., Path], objectives: Objectives, capsys: pytest.CaptureFixture
) -> None:
    display = SearchDisplay(objectives, Console(width=120))
    display.started("structural", read(toy_run(10)), Limits(12))
    assert "resuming: 10 trials are finished already" in capsys.readouterr().out


def test_describe_outcome_takes_one_line(objectives: Objectives) -> None:
    assert describe_outcome(Failed("crash", ""), objectives) == "failed, crash: "
    assert describe_outcome(Measured({"map": 0.123456}), objectives) == "map 0.1235"


def _nothing():  # type: ignore[no-untyped-def]
    from smnas.journal import History

    return History({"experiment": {}}, ())
