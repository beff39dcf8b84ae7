from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from smnas.cli import app
from smnas.errors import RunError


def report(*words: object) -> list[str]:
    """What the command says it wrote."""
    done = CliRunner().invoke(app, ["report", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout.split()


def test_the_page_lies_in_the_run_unless_told_otherwise(
    toy_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = toy_run(5)
    assert report(run) == [str(run / "report.html")]
    assert "<title>smnas: toy</title>" in (run / "report.html").read_text()
    assert report(run / "journal.jsonl", "-o", tmp_path / "a.html") == [str(tmp_path / "a.html")]
    assert (tmp_path / "a.html").read_text() == (run / "report.html").read_text()


def test_figures_and_table_come_with_it(toy_run: Callable[..., Path], tmp_path: Path) -> None:
    run = toy_run(5)
    written = report(run, "--plots", tmp_path / "figures", "--table", tmp_path / "t.csv")
    assert [Path(path).name for path in written[:2]] == ["report.html", "effects.png"]
    assert len(written) == 10 and all(Path(path).is_file() for path in written)


def test_figures_are_of_one_run(toy_run: Callable[..., Path], tmp_path: Path) -> None:
    run = toy_run(2)
    with pytest.raises(RunError, match="--plots and --table want one RUN, got 2"):
        CliRunner().invoke(
            app, ["report", str(run), str(run), "--plots", str(tmp_path)], catch_exceptions=False
        )
    assert not (run / "report.html").exists()
