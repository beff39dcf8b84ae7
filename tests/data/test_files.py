"""Finding, reading and writing the files of a data set; every message names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smnas.data.files import (
    DataFolder,
    Part,
    is_filled,
    load_annotations,
    new_folder,
    write_annotations,
)
from smnas.errors import DataError

COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}],
    "categories": [{"id": 1, "name": "cell"}],
}


def make_part(root: Path, name: str, text: str = json.dumps(COCO)) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / name).mkdir()
    (root / "annotations" / f"instances_{name}.json").write_text(text)


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("train2017", "val2017")])
def test_both_layouts_are_found(tmp_path: Path, train: str, val: str) -> None:
    make_part(tmp_path, train)
    make_part(tmp_path, val)
    annotations = tmp_path / "annotations"
    assert DataFolder.open(str(tmp_path)) == DataFolder(
        Part(annotations / f"instances_{train}.json", tmp_path / train),
        Part(annotations / f"instances_{val}.json", tmp_path / val),
    )


def test_val_may_be_missing(tmp_path: Path) -> None:
    make_part(tmp_path, "train")
    assert DataFolder.open(tmp_path).val is None


def test_folder_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"wanted a folder .* got nothing at .*/absent"):
        DataFolder.open(tmp_path / "absent")


def test_file_instead_of_folder(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match="got a file"):
        DataFolder.open(tmp_path / "data")


def test_no_annotations(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"wanted annotations/instances_train\*.json in .* got none"
    ):
        DataFolder.open(tmp_path)


def test_several_annotations(tmp_path: Path) -> None:
    make_part(tmp_path, "train2014")
    make_part(tmp_path, "train2017")
    with pytest.raises(DataError, match="instances_train2014.json, instances_train2017.json"):
        DataFolder.open(tmp_path)


def test_no_pictures(tmp_path: Path) -> None:
    make_part(tmp_path, "train")
    (tmp_path / "train").rmdir()
    with pytest.raises(DataError, match=r"in the folder .*/train, got none"):
        DataFolder.open(tmp_path)


def test_broken_val_is_found_when_opened(tmp_path: Path) -> None:
    make_part(tmp_path, "train")
    make_part(tmp_path, "val", "{")
    with pytest.raises(DataError, match="wanted JSON.*instances_val.json"):
        DataFolder.open(tmp_path)


def without(section: str, key: str) -> dict[str, Any]:
    entry = {name: value for name, value in COCO[section][0].items() if name != key}
    return COCO | {section: [entry]}


def with_value(section: str, key: str, value: Any) -> dict[str, Any]:
    return COCO | {section: [COCO[section][0] | {key: value}]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "wanted a JSON object, got a list"),
        ({}, "a list 'images', got none"),
        ({"images": [], "categories": []}, "a list 'annotations', got none"),
        (COCO | {"categories": {}}, "a list 'categories', got none"),
        (COCO | {"images": ["a.png"]}, r"wanted an object, got 'a.png' in images\[0\]"),
        (without("images", "file_name"), r"the key 'file_name', got none in images\[0\]"),
        (without("annotations", "bbox"), r"the key 'bbox', got none in annotations\[0\]"),
        (without("categories", "name"), r"the key 'name', got none in categories\[0\]"),
        (with_value("images", "id", "1"), "wanted 'id' as int, got '1'"),
        (with_value("annotations", "bbox", [0, 0, 4]), r"four numbers, got \[0, 0, 4\]"),
        (with_value("annotations", "bbox", [0, 0, 4, None]), "four numbers"),
    ],
)
def test_not_coco(tmp_path: Path, data: Any, message: str) -> None:
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=message) as caught:
        load_annotations(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[1,", b"\xff\xfe\x00", b"<html>"])
def test_not_json(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "instances.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match="wanted JSON"):
        load_annotations(file)


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read .*: Is a directory"):
        load_annotations(tmp_path)


def test_written_annotations_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    write_annotations(file, COCO)
    assert load_annotations(file) == COCO
    assert [entry.name for entry in tmp_path.iterdir()] == ["instances.json"]


def test_new_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out) as build:
        (build / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    assert list(out.parent.iterdir()) == [out]


def test_new_folder_vanishes_on_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out") as build:
        (build / "a").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_new_folder_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(DataError, match="cannot make the folder"), new_folder(tmp_path) as build:
        (build / "a").write_text("1")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_new_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot make the folder"), new_folder(
        tmp_path / "file/out"
    ):
        pass


def test_is_filled(tmp_path: Path) -> None:
    assert not is_filled(tmp_path / "absent")
    assert not is_filled(tmp_path)
    (tmp_path / "a").write_text("")
    assert is_filled(tmp_path)
    assert is_filled(tmp_path / "a")
