"""Generated scenes: the same bytes for the same arguments, and boxes that hold what they say."""

from __future__ import annotations

import hashlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from smnas.data.check import check_data
from smnas.data.digits import MAX_OVERLAP, _ink, _overlap, _paint, _sources, make_digits
from smnas.data.files import DataFolder, load_annotations
from smnas.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return make_digits(tmp_path_factory.mktemp("data") / "digits", train=40, val=10, size=(96, 80))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def boxes_of(part_file: Path) -> dict[int, list[tuple[int, int, int, int]]]:
    data = load_annotations(part_file)
    boxes: dict[int, list[tuple[int, int, int, int]]] = {i["id"]: [] for i in data["images"]}
    for entry in data["annotations"]:
        x, y, width, height = entry["bbox"]
        boxes[entry["image_id"]].append((x, y, x + width, y + height))
    return boxes


def test_what_is_made(folder: DataFolder) -> None:
    assert folder.val is not None
    train, val = load_annotations(folder.train.annotations), load_annotations(
        folder.val.annotations
    )
    assert (len(train["images"]), len(val["images"])) == (40, 10)
    assert [image["id"] for image in train["images"] + val["images"]] == list(range(1, 51))
    assert {(image["width"], image["height"]) for image in train["images"]} == {(96, 80)}
    assert [category["name"] for category in train["categories"]] == list("0123456789")
    assert train["categories"] == val["categories"]


def test_the_checker_finds_no_fault(folder: DataFolder) -> None:
    report = check_data(folder)
    kinds = {finding.kind for finding in report.findings}
    assert not report.fatal
    assert kinds <= {"category without objects", "picture without objects"}


def test_one_to_six_digits_apart_and_inside(folder: DataFolder) -> None:
    boxes = boxes_of(folder.train.annotations)
    assert {len(found) for found in boxes.values()} <= set(range(1, 7))
    assert len({len(found) for found in boxes.values()}) >= 4
    for found in boxes.values():
        for x0, y0, x1, y1 in found:
            assert 0 <= x0 < x1 <= 96 and 0 <= y0 < y1 <= 80
        for one, other in combinations(found, 2):
            assert _overlap(one, other) <= MAX_OVERLAP


def test_sides_are_as_documented(folder: DataFolder) -> None:
    # 13 to 33 pixels at a shorter side of 80; turning and rounding move a side by up to a fifth.
    sides = [
        max(x1 - x0, y1 - y0)
        for found in boxes_of(folder.train.annotations).values()
        for x0, y0, x1, y1 in found
    ]
    assert min(sides) >= 11 and max(sides) <= 40
    assert 18 < np.median(sides) < 25


@pytest.mark.parametrize("level", [0.0, 50.0, 110.0, 150.0])
def test_ink_stands_out_from_its_ground(level: float) -> None:
    # At least 110 lighter, less at most 30 when all three channels draw against it.
    for seed in range(50):
        scene = np.full((8, 8, 3), level)
        _paint(scene, np.ones((4, 4)), (2, 2, 6, 6), np.random.default_rng(seed))
        assert scene[2:6, 2:6].mean() - level >= 80
        assert (scene[:2] == level).all() and (scene[6:] == level).all()


def test_ink_is_cut_tight() -> None:
    digit = np.zeros((8, 8), dtype=np.uint8)
    digit[1:7, 3] = 255
    for seed in range(20):
        visible = _ink(digit, 30, np.random.default_rng(seed)) > 0.5
        assert visible[0].any() and visible[-1].any()
        assert visible[:, 0].any() and visible[:, -1].any()
        assert 24 <= max(visible.shape) <= 36


def test_same_arguments_same_bytes(folder: DataFolder, tmp_path: Path) -> None:
    make_digits(tmp_path / "again", train=40, val=10, size=(96, 80))
    assert digests(tmp_path / "again") == digests(folder.train.images.parent)


def test_more_pictures_begin_with_the_same(folder: DataFolder, tmp_path: Path) -> None:
    more = make_digits(tmp_path / "more", train=41, val=1, size=(96, 80))
    first, second = digests(folder.train.images), digests(more.train.images)
    assert len(second) == 41
    assert first.items() <= second.items()


def test_another_seed_another_picture(folder: DataFolder, tmp_path: Path) -> None:
    other = make_digits(tmp_path / "other", train=1, val=1, size=(96, 80), seed=1)
    name = "000001.jpg"
    assert (other.train.images / name).read_bytes() != (folder.train.images / name).read_bytes()


def test_no_digit_is_in_both_parts() -> None:
    parts = _sources(0)
    train, val = ({d.tobytes() for d in parts[name].digits} for name in ("train", "val"))
    assert (len(parts["train"].digits), len(parts["val"].digits)) == (1438, 359)
    assert train.isdisjoint(val)


def test_a_second_call_makes_nothing(folder: DataFolder) -> None:
    out = folder.train.images.parent
    stamps = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert make_digits(out, train=40, val=10, size=(96, 80)) == folder
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == stamps


@pytest.mark.parametrize("change", [{"train": 41}, {"size": (80, 96)}, {"seed": 1}])
def test_other_arguments_are_refused(folder: DataFolder, change: dict) -> None:
    out = folder.train.images.parent
    before = digests(out)
    with pytest.raises(DataError, match="got data made with"):
        make_digits(out, **({"train": 40, "val": 10, "size": (96, 80)} | change))
    assert digests(out) == before


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="got other files"):
        make_digits(tmp_path, train=1, val=1)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("change", [{"train": 0}, {"val": -1}, {"size": (192, 63)}, {"seed": -1}])
def test_numbers_out_of_range(tmp_path: Path, change: dict) -> None:
    with pytest.raises(DataError, match="wanted train and val from 1"):
        make_digits(tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()
