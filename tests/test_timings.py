from __future__ import annotations

from pathlib import Path

import pytest

from smnas.errors import JournalError, RunError
from smnas.timings import Timing, append_timings, device_key, read_timings


def timing(number: int, device: str, ms: float) -> Timing:
    return Timing(number, device, 1.5, {"latency_ms": ms}, {"median_ms": ms, "threads": 1})


def test_the_last_timing_of_a_candidate_counts(tmp_path: Path) -> None:
    assert read_timings(tmp_path) == {}
    append_timings(tmp_path, [timing(0, "GPU A", 5.0), timing(1, "GPU A", 6.0)])
    written = append_timings(tmp_path, [timing(1, "GPU A", 7.0), timing(1, "CPU (x, y)", 70.0)])
    assert [path.name for path in written] == ["gpu-a.jsonl", "cpu-x-y.jsonl"]
    assert read_timings(tmp_path) == {
        "GPU A": {0: timing(0, "GPU A", 5.0), 1: timing(1, "GPU A", 7.0)},
        "CPU (x, y)": {1: timing(1, "CPU (x, y)", 70.0)},
    }
    assert len((tmp_path / "latency" / "gpu-a.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("line", ["{", "[]", '{"id": 1}', '{"nonsense": 1}'])
def test_a_line_that_is_no_timing_is_named(tmp_path: Path, line: str) -> None:
    (path,) = append_timings(tmp_path, [timing(0, "GPU A", 5.0)])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(JournalError, match=r"gpu-a\.jsonl:2: wanted a timing"):
        read_timings(tmp_path)


def test_a_run_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "latency").write_text("a file is in the way")
    with pytest.raises(RunError, match="cannot be written"):
        append_timings(tmp_path, [timing(0, "GPU A", 5.0)])


def test_other_conditions_are_kept_apart(tmp_path: Path) -> None:
    assert device_key("GPU A") == "GPU A"
    key = device_key("GPU A", "batch 8, fp16")
    written = append_timings(tmp_path, [timing(0, "GPU A", 5.0), timing(0, key, 20.0)])
    assert [path.name for path in written] == ["gpu-a.jsonl", "gpu-a-batch-8-fp16.jsonl"]
    found = read_timings(tmp_path)
    assert {name: one[0].metrics["latency_ms"] for name, one in found.items()} == {
        "GPU A": 5.0,
        "GPU A [batch 8, fp16]": 20.0,
    }
