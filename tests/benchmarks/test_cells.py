"""Cells are measured once each, however many at a time, and a rerun goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

Cell = dict[str, Any]


@pytest.fixture
def measure_cells() -> Callable[..., list[Cell]]:
    return import_module("common").measure_cells


@pytest.mark.parametrize("jobs", [1, 3])
def test_each_cell_is_measured_once(
    measure_cells: Callable[..., list[Cell]], tmp_path: Path, jobs: int
) -> None:
    asked: list[int] = []

    def measure(cell: Cell) -> Cell:
        asked.append(cell["n"])
        return {"square": cell["n"] ** 2}

    work, cells = tmp_path / "cells.jsonl", [{"n": n} for n in range(5)]
    rows = measure_cells(work, cells[:3], measure, jobs)
    assert rows == [{"n": n, "square": n**2} for n in range(3)]
    # killed in the middle of a line
    with work.open("a") as file:
        file.write('{"cell": {"n": 3}, "res')
    rows = measure_cells(work, cells, measure, jobs)
    assert [row["square"] for row in rows] == [0, 1, 4, 9, 16] and sorted(asked) == list(range(5))
    assert len([json.loads(line) for line in work.read_text().splitlines()]) == 5


def test_a_failure_ends_it_and_keeps_what_was_measured(
    measure_cells: Callable[..., list[Cell]], tmp_path: Path
) -> None:
    def measure(cell: Cell) -> Cell:
        if cell["n"] == 1:
            raise ValueError("one")
        return {}

    with pytest.raises(ValueError, match="one"):
        measure_cells(tmp_path / "cells.jsonl", [{"n": 0}, {"n": 1}, {"n": 2}], measure)
    assert (tmp_path / "cells.jsonl").read_text().count("\n") == 1
