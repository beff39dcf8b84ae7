"""A run as a pymoo result; of one stage see `tests/test_search.py`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from pymoo.visualization.scatter import Scatter

from smnas import load_result
from smnas.journal import FILE_NAME, Asked, Told, event_to_json
from smnas.records import Candidate, Measured
from smnas.report.result import ABSENT


def write(path: Path, header: dict, candidate: Candidate, latency: float, quality: float) -> None:
    events = [
        Asked(candidate, candidate.id),
        Told(candidate.id, Measured({"latency_ms": latency, "map": quality}), candidate.id + 1.0),
    ]
    start = {"event": "header", "schema": 1, "time": float(candidate.id), **header}
    path.mkdir(parents=True, exist_ok=True)
    lines = [start, *map(event_to_json, events)]
    (path / FILE_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_stages_with_other_choices_are_one_result(tmp_path: Path, toy_header: dict) -> None:
    first = {**toy_header, "space": {"choices": {"kind": ["a", "b"], "size": [4, 8]}}}
    second = {**toy_header, "space": {"choices": {"depth": [1, 2, 3], "size": [6, 8]}}}
    parent = Candidate(0, "structural", {"kind": "b", "size": 8})
    child = Candidate(1, "modular", {"depth": 3, "size": 6}, "mutant", (0,), 1, 0)
    write(tmp_path, first, parent, 20.0, 0.5)
    write(tmp_path / "modular", second, child, 10.0, 0.4)
    result = load_result(tmp_path)
    assert result.data["choices"] == {
        "kind": ("a", "b", ABSENT),
        "size": (4, 6, 8, ABSENT),
        "depth": (1, 2, 3, ABSENT),
    }
    assert result.X.tolist() == [[1, 2, 3], [2, 1, 2]]
    assert result.F.tolist() == [[20.0, -0.5], [10.0, -0.4]]
    Scatter().add(result.F).save(str(tmp_path / "scatter.png"))
    assert np.count_nonzero([i.get("id") for i in result.pop]) == 1
