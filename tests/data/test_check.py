"""Data sets with one flaw each: what is found, what a repair writes, and that nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smnas.data.check import KINDS, SLACK_PX, CheckReport, box_fault, check_data, clipped
from smnas.data.coco import CocoDataset
from smnas.data.files import DataFolder, load_annotations
from smnas.data.findings import Finding
from smnas.errors import DataError

Data = dict[str, Any]
Flaw = Callable[[Data, Path], None]


def sound(part: str) -> Data:
    """Two pictures of 40 x 30, three objects, two categories; ids unlike in the other part."""
    first = 1 if part == "train" else 101
    return {
        "images": [
            {"id": key, "file_name": f"{part}{key}.png", "width": 40, "height": 30}
            for key in (first, first + 1)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [2, 3, 10, 20],
                "area": 200,
                "iscrowd": 0,
            }
            for number, (image_id, category_id) in enumerate(
                [(first, 1), (first, 2), (first + 1, 1)], start=1
            )
        ],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "white"}],
    }


def write(root: Path, flaw: Flaw | None = None, part_with_flaw: str = "train") -> DataFolder:
    for shade, part in enumerate(("train", "val")):
        (root / "annotations").mkdir(exist_ok=True)
        (root / part).mkdir()
        data = sound(part)
        for number, image in enumerate(data["images"]):
            colour = (100 * shade, 50 * number, 0)
            Image.new("RGB", (40, 30), colour).save(root / part / image["file_name"])
        if flaw is not None and part == part_with_flaw:
            flaw(data, root)
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(data))
    return DataFolder.open(root)


def set_box(bbox: list[float]) -> Flaw:
    def flaw(data: Data, root: Path) -> None:
        data["annotations"][0]["bbox"] = bbox

    return flaw


def missing(data: Data, root: Path) -> None:
    (root / "train" / "train2.png").unlink()


def cut_short(data: Data, root: Path) -> None:
    file = root / "train" / "train2.png"
    Image.effect_noise((40, 30), 60).convert("RGB").save(file)
    file.write_bytes(file.read_bytes()[:-200])


def no_picture(data: Data, root: Path) -> None:
    (root / "train" / "train2.png").write_text("404 not found")


def wrong_size(data: Data, root: Path) -> None:
    data["images"][1]["width"] = 80


def no_size(data: Data, root: Path) -> None:
    del data["images"][1]["width"]


def unknown_picture(data: Data, root: Path) -> None:
    data["annotations"][2]["image_id"] = 77


def unknown_category(data: Data, root: Path) -> None:
    data["annotations"][2]["category_id"] = 77


def entry_twice(data: Data, root: Path) -> None:
    data["images"].append(dict(data["images"][1]))


def id_of_two_pictures(data: Data, root: Path) -> None:
    data["images"].append(data["images"][1] | {"file_name": "train1.png"})


def file_twice(data: Data, root: Path) -> None:
    """Picture 3 is picture 2 again: one object of its own, one that 2 has too."""
    data["images"].append(data["images"][1] | {"id": 3})
    data["annotations"] += [
        data["annotations"][2] | {"id": 4, "image_id": 3},
        data["annotations"][2] | {"id": 5, "image_id": 3, "category_id": 2},
    ]


def annotation_id_twice(data: Data, root: Path) -> None:
    data["annotations"][2]["id"] = 1


def category_id_twice(data: Data, root: Path) -> None:
    data["categories"].append({"id": 2, "name": "blue"})


def no_area(data: Data, root: Path) -> None:
    del data["annotations"][2]["area"]
    del data["annotations"][2]["iscrowd"]


def shared_with_val(data: Data, root: Path) -> None:
    # The same bytes under another name; val's pictures are written later, from the same colours.
    Image.new("RGB", (40, 30), (100, 50, 0)).save(root / "train" / "train2.png")


def no_objects_in_one(data: Data, root: Path) -> None:
    data["annotations"] = data["annotations"][:2]


def gap(data: Data, root: Path) -> None:
    data["categories"][1]["id"] = 4
    data["annotations"][1]["category_id"] = 4


def unused_category(data: Data, root: Path) -> None:
    data["annotations"][1]["category_id"] = 1


def without_objects(data: Data, root: Path) -> None:
    data["annotations"] = []


# flaw, kind, treatment, an example begins with, whether it stops smnas, pictures and objects left
FLAWS = [
    (missing, "missing picture", "dropped", "train2.png", True, (1, 2)),
    (cut_short, "unreadable picture", "dropped", "train2.png", True, (1, 2)),
    (no_picture, "unreadable picture", "dropped", "train2.png", True, (1, 2)),
    (wrong_size, "size differs from the file", "repaired", "train2.png (80x30", False, (2, 3)),
    (no_size, "size differs from the file", "repaired", "train2.png (Nonex30", False, (2, 3)),
    (unknown_picture, "object of an unknown picture", "dropped", "3 (picture 77", False, (2, 2)),
    (unknown_category, "object of an unknown category", "dropped", "3 (category", True, (2, 2)),
    (entry_twice, "picture listed twice", "repaired", "2 (train2.png)", True, (2, 3)),
    (file_twice, "file listed twice", "repaired", "train2.png (ids 2 and 3)", True, (2, 4)),
    (annotation_id_twice, "annotation id used twice", "repaired", "1 (now 3)", True, (2, 3)),
    (no_area, "no area or iscrowd", "repaired", "annotation 3", False, (2, 3)),
    (set_box([2, 3, 0, 9]), "box without area", "dropped", "train1.png", False, (2, 2)),
    (set_box([2, 3, -4, 9]), "box without area", "dropped", "train1.png", False, (2, 2)),
    (set_box([2, 3, float("nan"), 9]), "box with NaN or infinity", "dropped", "t", True, (2, 2)),
    (set_box([2, 3, 9, float("inf")]), "box with NaN or infinity", "dropped", "t", True, (2, 2)),
    (set_box([40, 3, 9, 9]), "box wholly outside", "dropped", "train1.png", False, (2, 2)),
    (set_box([-9, 3, 9, 9]), "box wholly outside", "dropped", "train1.png", False, (2, 2)),
    (set_box([30, 3, 20, 9]), "box partly outside", "repaired", "train1.png", False, (2, 3)),
    (shared_with_val, "picture of val in train", "dropped", "train2.png (in", True, (1, 2)),
    (no_objects_in_one, "picture without objects", "harmless", "train2.png", False, (2, 2)),
    (unused_category, "category without objects", "harmless", "white", False, (2, 3)),
]


def by_kind(report: CheckReport) -> dict[str, Finding]:
    return {finding.kind: finding for finding in report.findings}


def contents(root: Path) -> dict[str, bytes]:
    files = (file for file in root.rglob("*") if file.is_file())
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def test_a_sound_folder(tmp_path: Path) -> None:
    write(tmp_path)
    before = contents(tmp_path)
    report = check_data(tmp_path, repair=True)
    assert (report.findings, report.fatal, report.backups) == ((), False, {})
    assert report.pictures == {"train": 2, "val": 2}
    assert report.objects == {"train": 3, "val": 3}
    assert contents(tmp_path) == before
    assert str(report).endswith("usable")


@pytest.mark.parametrize(("flaw", "kind", "treatment", "example", "blocks", "left"), FLAWS)
def test_every_flaw_is_found_and_nothing_written(
    tmp_path: Path,
    flaw: Flaw,
    kind: str,
    treatment: str,
    example: str,
    blocks: bool,
    left: tuple[int, int],
) -> None:
    folder = write(tmp_path, flaw)
    before = contents(tmp_path)
    report = check_data(folder)
    finding = by_kind(report)[kind]
    assert (finding.part, finding.treatment, finding.count) == ("train", treatment, 1)
    assert finding.examples[0].startswith(example)
    assert report.fatal is blocks
    assert (report.pictures["train"], report.objects["train"]) == left
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("flaw", "kind", "treatment", "example", "blocks", "left"), FLAWS)
def test_a_repair_leaves_no_flaw_and_keeps_the_old_file(
    tmp_path: Path,
    flaw: Flaw,
    kind: str,
    treatment: str,
    example: str,
    blocks: bool,
    left: tuple[int, int],
) -> None:
    folder = write(tmp_path, flaw)
    file = folder.train.annotations
    old = file.read_bytes()
    report = check_data(folder, repair=True)
    assert not report.fatal
    if treatment == "harmless":
        assert (report.backups, file.read_bytes()) == ({}, old)
        return
    backup = file.with_name("instances_train.json.bak")
    assert report.backups == {file: backup}
    assert backup.read_bytes() == old
    again = check_data(folder)
    assert {finding.treatment for finding in again.findings} <= {"harmless"}
    assert (again.pictures["train"], again.objects["train"]) == left
    assert sum(len(example.boxes) for example in CocoDataset(folder.train)) == left[1]


@pytest.mark.parametrize(
    ("flaw", "kind", "part"),
    [
        (id_of_two_pictures, "picture id of two pictures", "train"),
        (category_id_twice, "category id of two categories", "train"),
        (without_objects, "no objects", "train"),
        (without_objects, "no objects", "val"),
        (gap, "categories differ from train", "val"),
    ],
)
def test_what_only_the_user_can_mend(tmp_path: Path, flaw: Flaw, kind: str, part: str) -> None:
    folder = write(tmp_path, flaw, part)
    before = contents(tmp_path)
    report = check_data(folder, repair=True)
    assert (by_kind(report)[kind].treatment, by_kind(report)[kind].part) == ("fatal", part)
    assert report.fatal
    assert contents(tmp_path) == before
    assert "by hand" in str(report)


def test_a_part_of_which_nothing_is_left(tmp_path: Path) -> None:
    folder = write(tmp_path)
    shutil.rmtree(folder.train.images)
    folder.train.images.mkdir()
    report = check_data(folder, repair=True)
    assert {"missing picture", "no pictures", "no objects"} <= by_kind(report).keys()
    assert (report.fatal, report.backups) == (True, {})


def test_a_gap_is_harmless(tmp_path: Path) -> None:
    report = check_data(DataFolder(write(tmp_path, gap).train))
    assert by_kind(report)["category id gap"].examples == ("none between 1 and 4",)
    assert by_kind(report)["category id gap"].treatment == "harmless"
    assert not report.fatal


def test_without_val(tmp_path: Path) -> None:
    folder = write(tmp_path)
    report = check_data(DataFolder(folder.train))
    assert by_kind(report)["no val part"].treatment == "harmless"
    assert report.pictures == {"train": 2}


def test_equal_names_of_different_pictures_are_no_leak(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert folder.val is not None
    data = load_annotations(folder.val.annotations)
    data["images"][0]["file_name"] = "train1.png"
    folder.val.annotations.write_text(json.dumps(data))
    (folder.val.images / "val101.png").rename(folder.val.images / "train1.png")
    assert check_data(folder).findings == ()


def test_merging_a_file_keeps_every_object_once(tmp_path: Path) -> None:
    folder = write(tmp_path, file_twice)
    check_data(folder, repair=True)
    data = load_annotations(folder.train.annotations)
    assert [image["id"] for image in data["images"]] == [1, 2]
    of_two = [(e["id"], e["category_id"]) for e in data["annotations"] if e["image_id"] == 2]
    assert of_two == [(3, 1), (5, 2)]


def test_a_clipped_box_in_full(tmp_path: Path) -> None:
    folder = write(tmp_path, set_box([30, -5, 20, 25]))
    check_data(folder, repair=True)
    entry = load_annotations(folder.train.annotations)["annotations"][0]
    assert (entry["bbox"], entry["area"]) == ([30, 0, 10, 20], 200)


def test_area_is_never_larger_than_the_clipped_box(tmp_path: Path) -> None:
    folder = write(tmp_path, set_box([30, 20, 20, 20]))
    check_data(folder, repair=True)
    assert load_annotations(folder.train.annotations)["annotations"][0]["area"] == 100


def test_a_second_repair_keeps_the_first_backup(tmp_path: Path) -> None:
    folder = write(tmp_path, no_area)
    first = folder.train.annotations.read_bytes()
    check_data(folder, repair=True)
    (folder.train.images / "train2.png").unlink()
    second = folder.train.annotations.read_bytes()
    report = check_data(folder, repair=True)
    annotations = folder.train.annotations.parent
    assert report.backups[folder.train.annotations].name == "instances_train.json.bak1"
    assert (annotations / "instances_train.json.bak").read_bytes() == first
    assert (annotations / "instances_train.json.bak1").read_bytes() == second
    assert DataFolder.open(tmp_path) == folder, "backups must not look like annotation files"


def test_other_keys_survive_a_repair(tmp_path: Path) -> None:
    def flaw(data: Data, root: Path) -> None:
        data["info"] = {"year": 2017}
        data["annotations"][1]["segmentation"] = [[1, 2, 3, 4, 5, 6]]
        no_area(data, root)

    folder = write(tmp_path, flaw)
    check_data(folder, repair=True)
    data = load_annotations(folder.train.annotations)
    assert data["info"] == {"year": 2017}
    assert data["annotations"][1]["segmentation"] == [[1, 2, 3, 4, 5, 6]]


def test_not_coco_is_an_error(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "annotations" / "instances_val.json").write_text("{}")
    with pytest.raises(DataError, match="'images'"):
        check_data(tmp_path)


def test_report_as_json_and_text(tmp_path: Path) -> None:
    folder = write(tmp_path, missing)
    report = check_data(folder)
    record = json.loads(json.dumps(report.to_json()))
    assert record["fatal"] is True
    assert record["findings"][0] == {
        "part": "train",
        "kind": "missing picture",
        "count": 1,
        "treatment": "dropped",
        "meaning": KINDS["missing picture"].meaning,
        "examples": ["train2.png"],
    }
    text = str(report)
    assert "train: 1 pictures, 2 objects" in text
    assert "train missing picture" in text and "      train2.png" in text
    assert text.splitlines()[-1].startswith("not usable as it is")


def test_text_shows_five_examples() -> None:
    finding = Finding("val", "missing picture", "dropped", "gone", tuple("abcdefg"))
    assert str(finding).splitlines()[1] == "      a, b, c, d, e and 2 more"


coordinates = st.floats(-100, 100)


@given(coordinates, coordinates, st.floats(1, 100), st.floats(1, 100))
def test_a_clipped_box_has_no_fault(x: float, y: float, w: float, h: float) -> None:
    fault = box_fault([x, y, w, h], 40, 30)
    if fault == "box partly outside":
        left, top, width, height = clipped([x, y, w, h], 40, 30)
        assert left >= 0 and top >= 0 and width > 0 and height > 0
        assert left + width <= 40 + 1e-9 and top + height <= 30 + 1e-9
    elif fault is None:
        assert x >= -SLACK_PX and y >= -SLACK_PX
        assert x + w <= 40 + SLACK_PX + 1e-9 and y + h <= 30 + SLACK_PX + 1e-9
    else:
        assert x >= 40 or y >= 30 or x + w <= 0 or y + h <= 0


@pytest.mark.parametrize(("bbox", "fault"), [([-0.5, 0, 41, 30], None), ([-0.6, 0, 9, 9], "part")])
def test_rounding_is_forgiven(bbox: list[float], fault: str | None) -> None:
    found = box_fault(bbox, 40, 30)
    assert found == (fault and "box partly outside")


def test_usable_and_yet_worth_a_repair(tmp_path: Path) -> None:
    assert str(check_data(write(tmp_path, no_area))).endswith(
        "usable; a repair would treat the findings as marked"
    )


def test_a_repair_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = write(tmp_path, no_area)
    before = contents(tmp_path)
    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(DataError, match="cannot write .*instances_train.json: No space left"):
        check_data(folder, repair=True)
    assert contents(tmp_path) == before
