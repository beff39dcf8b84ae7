from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from smnas.errors import RunError
from smnas.journal import Trial
from smnas.records import Candidate, Measured
from smnas.report.pictures import Album, read_examples


def trial(number: int, info: dict | None = None) -> Trial:
    return Trial(Candidate(number, "structural", {}), Measured({}, info or {}), 0.0, 1.0)


def examples(file: Path) -> dict:
    picture = {
        "file": str(file),
        "width": 640,
        "height": 480,
        "truth": [[10.0, 20.0, 110.0, 220.0, 2]],
        "found": [[12.0, 20.0, 100.0, 200.0, 1, 0.876]],
    }
    return {"categories": ["cat", "dog"], "pictures": [picture]}


def test_boxes_are_scaled_with_the_picture_which_is_kept_once(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480), (200, 0, 0)).save(tmp_path / "a.png")
    album = Album()
    first, second = (album.add(examples(tmp_path / "a.png")) for _ in range(2))
    assert first == second == [{"picture": 0, "boxes": [[6, 10, 50, 100, 1, 88]]}]
    (kept,) = album.pictures
    assert kept["truth"] == [[5, 10, 55, 110, 2]] and kept["categories"] == ["cat", "dog"]
    head, _, data = kept["source"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (kept["width"], 240) == (320, 240)


def test_a_picture_that_is_gone_leaves_its_boxes(tmp_path: Path) -> None:
    album = Album()
    album.add(examples(tmp_path / "gone.png"))
    assert album.pictures[0]["source"] is None and album.pictures[0]["truth"]


@pytest.mark.parametrize("stage", ["", "modular"])
def test_examples_of_either_stage_are_found(tmp_path: Path, stage: str) -> None:
    folder = tmp_path / stage / "trials" / "7"
    folder.mkdir(parents=True)
    (folder / "examples.json").write_text(json.dumps(examples(tmp_path / "a.png")))
    assert read_examples(tmp_path, trial(7)) == examples(tmp_path / "a.png")
    assert read_examples(tmp_path, trial(8)) is None


def test_examples_of_a_trial_under_nni_are_found(tmp_path: Path) -> None:
    run, folder = tmp_path / "smnas", tmp_path / "trials" / "Abc"
    folder.mkdir(parents=True)
    (folder / "examples.json").write_text(json.dumps(examples(tmp_path / "a.png")))
    assert read_examples(run, trial(7, {"nni_trial": "Abc"})) == examples(tmp_path / "a.png")
    assert read_examples(run, trial(7, {"nni_trial": "Xyz"})) is None


def test_a_corrupt_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "trials" / "1").mkdir(parents=True)
    (tmp_path / "trials" / "1" / "examples.json").write_text("{")
    with pytest.raises(RunError, match="1/examples.json: wanted example detections"):
        read_examples(tmp_path, trial(1))
