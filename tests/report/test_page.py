from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toy import toy_outcome_with_failures

from smnas import pareto
from smnas.errors import MixedDevicesError, RunError
from smnas.journal import FILE_NAME, Asked, Told, event_to_json, read
from smnas.records import Candidate, Measured
from smnas.report.page import embeddable, make_page, write_page
from smnas.report.tables import objectives_of


def content(page: str) -> dict[str, Any]:
    """The JSON in a page, found as a browser finds it: up to the first end of a script."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def copy(run: Path, to: Path, **header: Any) -> Path:
    """The same journal with another header, as another run."""
    first, *lines = (run / FILE_NAME).read_text().splitlines()
    to.mkdir()
    (to / FILE_NAME).write_text("\n".join([json.dumps(json.loads(first) | header), *lines, ""]))
    return to


def test_the_page_holds_the_run(toy_run: Callable[..., Path]) -> None:
    run = toy_run(30, toy_outcome_with_failures)
    history = read(run)
    found = content(make_page([run]))
    assert found["comparison"] is None and found["pictures"] == []
    assert [one["name"] for one in found["objectives"]] == ["latency_ms", "map"]
    (shown,) = found["runs"]
    kept = [t for t in history.trials() if isinstance(t.outcome, Measured)]
    assert [t["id"] for t in shown["trials"]] == [t.candidate.id for t in kept]
    best = pareto.front(kept, objectives_of(history))
    front = [t["id"] for t in shown["trials"] if t.get("front")]
    assert sorted(front) == sorted(t.candidate.id for t in best)
    place = pareto.knee(pareto.measured(best, objectives_of(history))[1])
    assert place is not None
    knees = [t["id"] for t in shown["trials"] if t.get("knee")]
    assert knees == [best[place].candidate.id]
    first = shown["trials"][0]
    assert dict(zip(shown["metrics"], first["metrics"], strict=True)) == {
        "latency_ms": 1.0, "map": 0.0,
    }  # fmt: skip
    assert dict(zip(shown["choices"], first["sample"], strict=True)) == kept[0].candidate.sample
    assert first["baseline"] == "flat" and "examples" not in first and "curve" not in first
    assert len(shown["growth"]["hypervolume"]) == 30
    (failed,) = shown["failures"]
    assert failed["reason"] == "crash" and len(failed["ids"]) == 30 - len(kept)


def test_nothing_is_fetched_and_nothing_is_left_to_fill(toy_run: Callable[..., Path]) -> None:
    page = make_page([toy_run(5)])
    assert "default-src 'none'" in page and not re.search(r"\{\{\w+\}\}", page)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    assert re.findall(r"https?://[^\"'\s]+", page) == ["http://www.w3.org/2000/svg"]


def test_names_cannot_break_out_of_the_data(toy_run: Callable[..., Path], tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script><!-- & {{script}} \u2028"
    run = copy(toy_run(5), tmp_path / "evil", name=name)
    page = make_page([run])
    assert content(page)["runs"][0]["name"] == name
    assert "<script>alert" not in page and "<title>smnas: &lt;/script&gt;" in page
    assert set("<>&\u2028") & set(embeddable({"name": name})) == set()


def test_a_trial_shows_its_training_latency_and_examples(toy_header: dict, tmp_path: Path) -> None:
    curve = [{"epoch": 1, "loss": 2.0, "map": 0.123456789}, {"epoch": 2, "loss": 1.0, "map": 0.2}]
    gpu = {
        "driver": "580.65", "sm_clock_mhz": 1410, "max_sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619, "temperature_c": 61, "throttling": [],
    }  # fmt: skip
    card = {"median_ms": 3.0, "iqr_ms": 0.1, "count": 9, "device": "cpu", "input_size": [96, 64]}
    card |= {"gpu": gpu}
    info = {"curve": curve, "latency": card, "recipe": "2 epochs", "device": "cpu"}
    events = [
        event
        for k in range(2)
        for event in (
            Asked(Candidate(k, "structural", {"kind": "a", "d0": k}), 0.0),
            Told(k, Measured({"latency_ms": 3.0 + k, "map": 0.2 + k / 10}, info), 1.0),
        )
    ]
    write_run(tmp_path / "run", toy_header, events)
    write_examples(tmp_path / "run", tmp_path, 1, [[0, 0, 32, 32, 1, 0.5]])
    found = content(make_page([tmp_path / "run"]))
    first, second = found["runs"][0]["trials"]
    assert first["curve"] == {"epoch": [1, 2], "loss": [2.0, 1.0], "map": [0.123457, 0.2]}
    assert first["card"] == second["card"] == 0
    assert first["gpu"].startswith("driver 580.65; SM clock 1410 MHz")
    assert found["runs"][0]["cards"] == [{"device": "cpu", "input_size": [96, 64]}]
    assert found["runs"][0]["recipes"] == ["2 epochs"] and found["device"] == "cpu"
    assert found["notes"] == ["Trained from scratch: 2 epochs."]
    assert "examples" not in first
    boxes = [[0, 0, 160, 160, 1, 50]]
    assert second["examples"] == [{"picture": k, "boxes": boxes} for k in range(4)]
    assert found["pictures"][0]["source"].startswith("data:image/jpeg;base64,")


def test_runs_side_by_side_are_compared_and_told_apart(
    toy_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = toy_run(20)
    other = copy(run, tmp_path / "again")
    found = content(make_page([run, other]))
    assert [one["name"] for one in found["runs"]] == ["run", "again"]
    assert found["comparison"]["coverage"] == [[1.0, 1.0], [1.0, 1.0]]
    named = content(make_page([run, copy(run, tmp_path / "third", name="other")]))
    assert [one["name"] for one in named["runs"]] == ["toy", "other"]
    twice = content(make_page([run, run]))
    assert [one["name"] for one in twice["runs"]] == ["run 1", "run 2"]


def test_devices_are_not_mixed(toy_header: dict, tmp_path: Path) -> None:
    runs = []
    for device in ("cpu", "gpu"):
        told = Told(0, Measured({"latency_ms": 1.0, "map": 0.1}, {"device": device}), 1.0)
        events = [Asked(Candidate(0, "structural", {"kind": "a"}), 0.0), told]
        runs.append(write_run(tmp_path / device, toy_header, events))
    with pytest.raises(MixedDevicesError, match="cpu, gpu"):
        make_page(runs)
    assert content(make_page(runs, mixed_devices=True))["device"] == "cpu, gpu"


def test_a_run_without_a_measured_trial_has_a_page(toy_run: Callable[..., Path]) -> None:
    found = content(make_page([toy_run(0)]))
    assert found["runs"][0]["trials"] == [] and found["runs"][0]["growth"]["hours"] == []


def test_a_page_that_cannot_be_written(toy_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="none/r.html: cannot be written"):
        write_page([toy_run(1)], tmp_path / "none" / "r.html")


def write_run(run: Path, header: dict, events: list[Asked | Told]) -> Path:
    run.mkdir()
    lines = [{"event": "header", "schema": 1, "time": 0.0, **header}, *map(event_to_json, events)]
    (run / FILE_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def write_examples(run: Path, data: Path, candidate: int, found: list[list[float]]) -> None:
    """Four pictures, in each of which the same was found."""
    pictures = []
    for k in range(4):
        file = data / f"{k}.png"
        if not file.exists():
            Image.effect_noise((64, 64), 80).save(file)
        truth = [[1, 1, 30, 30, 1]]
        pictures.append({"file": str(file), "width": 64, "height": 64, "truth": truth})
        pictures[-1]["found"] = found
    (run / "trials" / str(candidate)).mkdir(parents=True)
    record = json.dumps({"categories": ["digit"], "pictures": pictures})
    (run / "trials" / str(candidate) / "examples.json").write_text(record)


METRICS = (
    "params_m", "macs_g", "latency_ms", "latency_iqr_ms", "latency_count", "map", "ap50", "ap75",
    "ap_small", "ap_medium", "ap_large", "train_seconds", "peak_memory_mb",
)  # fmt: skip


def large_run(run: Path, data: Path, header: dict, trials: int) -> Path:
    """As large as a real one: whole metrics, curves of 12 epochs, 20 boxes in each picture."""
    structure = {
        "neck": "fpn", "neck_start": 2, "neck_end": 5, "neck_width": 256, "rpn": "rpn",
        "head": "cascade3", "input_size": "1333x800",
    }  # fmt: skip
    card = {"device": "some accelerator", "precision": "amp", "batch": 1, "input_size": [1333, 800]}
    events: list[Asked | Told] = []
    for k in range(trials):
        size = 1 + (k * 7919 % trials) / trials + k / 1e6
        quality = 0.6 * (size - 1) ** 0.5 * (0.6 + 0.4 * (k * 104729 % 97) / 97)
        values = dict.fromkeys(METRICS, size / 3) | {
            "latency_ms": 40 * size, "latency_iqr_ms": size / 3, "map": quality,
        }  # fmt: skip
        curve = [{"epoch": e, "loss": 2 / e / size, "map": quality * e / 12} for e in range(1, 13)]
        sample = {"backbone": "resnet101", **structure, "extra": k}
        candidate = Candidate(k, "structural", sample, "mating", (max(0, k - 1), max(0, k - 2)))
        info = {"curve": curve, "latency": card, "recipe": "12 epochs", "device": card["device"]}
        events += [Asked(candidate, 60.0 * k), Told(k, Measured(values, info), 60.0 * k + 50)]
    write_run(run, header, events)
    boxes = [[k, k + 1.5, k + 20.5, k + 22, 1, 0.05 + k / 25] for k in range(20)]
    for k in range(trials):
        write_examples(run, data, k, boxes)
    return run


def test_a_run_of_2000_trials_is_small(toy_header: dict, tmp_path: Path) -> None:
    header = {**toy_header, "space": {"choices": {"extra": list(range(2000))}}}
    run = large_run(tmp_path / "run", tmp_path, header, 2000)
    write_page([run], run / "report.html")
    assert len(content((run / "report.html").read_text())["runs"][0]["trials"]) == 2000
    assert (run / "report.html").stat().st_size < 15e6
