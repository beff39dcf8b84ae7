"""Pictures with boxes, and COCO results that pycocotools reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from found_detectors import IDS, keep_weights, write_digits, write_run
from PIL import Image
from pycocotools.coco import COCO
from torch import nn
from whole_search import assert_refused, smnas

from smnas.deploy.predict import find_pictures, numbered, predict
from smnas.errors import DataError

CPU = torch.device("cpu")


class Finder(nn.Module):
    """Finds one box in the middle of each picture, surely, and one that is not sure."""

    input_size = "64x48"

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert [image.shape for image in images] == [(3, 48, 64)]
        boxes = torch.tensor([[16.0, 12.0, 48.0, 36.0], [0.0, 0.0, 8.0, 8.0]])
        labels, scores = torch.tensor([2, 1]), torch.tensor([0.9, 0.2])
        return [{"boxes": boxes, "labels": labels, "scores": scores} for _ in images]


def test_boxes_are_in_pixels_of_the_file(tmp_path: Path) -> None:
    """Pictures of 128x96 are seen at half their size; two have one name."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (128, 96), "white").save(tmp_path / folder / "one.jpg")
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    pictures = find_pictures([tmp_path / "a" / "one.jpg", tmp_path / "b"])
    out = tmp_path / "out"
    found = predict(Finder(), pictures, numbered(2), out, device=CPU)
    assert [(r["image_id"], r["category_id"]) for r in found] == [(1, 2), (1, 1), (2, 2), (2, 1)]
    assert found[0]["bbox"] == [32, 24, 64, 48] and found[0]["score"] == pytest.approx(0.9)
    truth = COCO(str(out / "pictures.json"))
    assert len(truth.loadRes(str(out / "results.json")).anns) == 4
    assert sorted(path.name for path in out.glob("*.png")) == ["one-2.png", "one.png"]
    drawn = np.asarray(Image.open(out / "one.png"))
    assert drawn.shape == (96, 128, 3)
    assert (drawn[50, 32] != 255).any()  # the left edge of the sure box
    assert (drawn[10, 16] == 255).all()  # the other one is not drawn


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_text("no picture")
    with pytest.raises(DataError, match="cannot decode .*one.png, to look at"):
        predict(Finder(), [tmp_path / "one.png"], numbered(2), tmp_path / "out", device=CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="pictures: wanted files ending in .jpg.* got none in .*ty"):
        find_pictures([tmp_path / "empty"])


def test_no_picture_is_overwritten(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.png", "a.jpg", "a-2.jpg", "b/a.png")]
    (tmp_path / "b").mkdir()
    for file in files:
        Image.new("RGB", (128, 96), "white").save(file)
    before = files[0].read_bytes()
    with pytest.raises(DataError, match="wanted a folder without the pictures, got .* with a.png"):
        predict(Finder(), files, numbered(2), tmp_path, device=CPU)
    assert files[0].read_bytes() == before and not (tmp_path / "results.json").exists()
    predict(Finder(), files, numbered(2), tmp_path / "out", device=CPU)
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert names == {"a.png", "a-2.png", "a-2-2.png", "a-3.png"}


def test_the_command_line(tmp_path: Path) -> None:
    run, data = write_run(tmp_path / "run"), write_digits(tmp_path / "data", train=1, val=2)
    keep_weights(run, "retinanet")
    target = f"run#{IDS['retinanet']}"
    done = smnas("predict", target, data / "val", "-o", "out", "--score", 0.1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results and len(list((tmp_path / "out").glob("*.png"))) == 2
    assert done.stdout.startswith(f"{len(results)} detections in 2 pictures: ")
    assert_refused(smnas("predict", target, "no.jpg", "-o", "out", cwd=tmp_path), "no such file")
