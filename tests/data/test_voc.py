"""Pascal VOC folders written here, one flaw each; the real one at the end where it is at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from smnas.data.check import check_data
from smnas.data.files import DataFolder, load_annotations
from smnas.data.findings import Finding
from smnas.data.voc import ImportReport, import_voc
from smnas.errors import DataError

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"


def thing(name: str, *corners: Any, difficult: int = 0) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    bndbox = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{bndbox}</bndbox></object>"
    )


def picture(root: Path, stem: str, *things: str, said: tuple[int, int] | None = (40, 30)) -> None:
    """A 40 x 30 picture with its XML."""
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{stem}.jpg")
    size = f"<size><width>{said[0]}</width><height>{said[1]}</height></size>" if said else ""
    xml = f"<annotation><filename>{stem}.jpg</filename>{size}{''.join(things)}</annotation>"
    (root / "Annotations" / f"{stem}.xml").write_text(xml)


def lists(root: Path, **stems: str) -> None:
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for part, names in stems.items():
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names.split()) + "\n")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three sound pictures: a in train, b in val, c in test."""
    root = tmp_path / "voc"
    picture(root, "a", thing("white", 1, 1, 40, 30), thing("red", 11, 6, 20, 15))
    picture(root, "b", thing("red", 2, 3, 4, 5))
    picture(root, "c")
    lists(root, train="a", val="b", test="c")
    return root


def findings(report: ImportReport) -> dict[tuple[str, str], Finding]:
    return {(finding.part, finding.kind): finding for finding in report.findings}


def train_boxes(out: Path) -> list[list[float]]:
    data = load_annotations(out / "annotations" / "instances_train.json")
    return [entry["bbox"] for entry in data["annotations"]]


def test_a_sound_folder(voc: Path, tmp_path: Path) -> None:
    report = import_voc(voc, tmp_path / "out")
    assert report.findings == ()
    assert report.lists == "ImageSets/Main"
    assert report.categories == ("red", "white")
    assert report.pictures == {"train": 1, "val": 1, "test": 1}
    assert report.objects == {"train": 2, "val": 1, "test": 0}


def test_the_annotation_file_in_full(voc: Path, tmp_path: Path) -> None:
    import_voc(voc, tmp_path / "out")
    assert load_annotations(tmp_path / "out/annotations/instances_train.json") == {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
        "annotations": [
            # xmin and ymin count from 1, xmax and ymax are included: the whole picture.
            {
                "id": 1,
                "image_id": 1,
                "category_id": 2,
                "bbox": [0, 0, 40, 30],
                "area": 1200,
                "iscrowd": 0,
                "ignore": 0,
            },
            {
                "id": 2,
                "image_id": 1,
                "category_id": 1,
                "bbox": [10, 5, 10, 10],
                "area": 100,
                "iscrowd": 0,
                "ignore": 0,
            },
        ],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "white"}],
    }


def test_ids_are_unique_over_the_parts(voc: Path, tmp_path: Path) -> None:
    import_voc(voc, tmp_path / "out")
    ids = [
        image["id"]
        for part in ("train", "val", "test")
        for image in load_annotations(tmp_path / f"out/annotations/instances_{part}.json")["images"]
    ]
    assert ids == [1, 2, 3]


def test_the_result_opens_and_pictures_are_links(voc: Path, tmp_path: Path) -> None:
    import_voc(voc, tmp_path / "out")
    folder = DataFolder.open(tmp_path / "out")
    assert os.path.samefile(folder.train.images / "a.jpg", voc / "JPEGImages" / "a.jpg")


def test_copies_where_links_are_impossible(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    import_voc(voc, tmp_path / "out")
    copy = tmp_path / "out" / "train" / "a.jpg"
    assert copy.read_bytes() == (voc / "JPEGImages" / "a.jpg").read_bytes()
    assert not os.path.samefile(copy, voc / "JPEGImages" / "a.jpg")


@pytest.mark.parametrize(
    ("corners", "kind"),
    [
        ((5, 5, 5, 9), "box without area"),
        ((5, 9, 9, 5), "box without area"),
        ((41, 5, 60, 9), "box wholly outside"),
        (("nan", 5, 9, 9), "box with NaN or infinity"),
        (("", 5, 9, 9), "malformed object"),
        (("left", 5, 9, 9), "malformed object"),
    ],
)
def test_dropped_boxes_are_named(
    voc: Path, tmp_path: Path, corners: tuple[Any, ...], kind: str
) -> None:
    picture(voc, "a", thing("red", 11, 6, 20, 15), thing("red", *corners))
    report = import_voc(voc, tmp_path / "out")
    finding = findings(report)["train", kind]
    assert (finding.treatment, finding.count) == ("dropped", 1)
    assert finding.examples[0].startswith("a.xml object 2")
    assert train_boxes(tmp_path / "out") == [[10, 5, 10, 10]]


def test_an_object_without_a_name(voc: Path, tmp_path: Path) -> None:
    picture(voc, "a", thing(" ", 11, 6, 20, 15))
    report = import_voc(voc, tmp_path / "out")
    assert findings(report)["train", "malformed object"].examples == ("a.xml object 1",)
    assert report.categories == ("red",)


def test_a_box_that_leaves_the_picture_is_clipped(voc: Path, tmp_path: Path) -> None:
    picture(voc, "a", thing("red", -3, 6, 20, 35))
    report = import_voc(voc, tmp_path / "out")
    finding = findings(report)["train", "box partly outside"]
    assert finding.treatment == "repaired"
    assert finding.examples == ("a.xml object 1 red [-3.0, 6.0, 20.0, 35.0]",)
    assert train_boxes(tmp_path / "out") == [[0, 5, 20, 25]]


def test_parts_of_an_object_are_not_its_box(voc: Path, tmp_path: Path) -> None:
    nested = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    picture(voc, "a", thing("red", 11, 6, 20, 15).replace("</object>", nested))
    assert import_voc(voc, tmp_path / "out").findings == ()
    assert train_boxes(tmp_path / "out") == [[10, 5, 10, 10]]


def test_difficult_objects_stay_ordinary(voc: Path, tmp_path: Path) -> None:
    picture(voc, "a", thing("red", 11, 6, 20, 15, difficult=1))
    report = import_voc(voc, tmp_path / "out")
    assert findings(report)["train", "difficult object"].treatment == "harmless"
    data = load_annotations(tmp_path / "out/annotations/instances_train.json")
    assert [(entry["iscrowd"], entry["ignore"]) for entry in data["annotations"]] == [(0, 1)]


@pytest.mark.parametrize("said", [(0, 0), (30, 40), None])
def test_the_size_is_the_pictures_own(voc: Path, tmp_path: Path, said: Any) -> None:
    picture(voc, "a", said=said)
    report = import_voc(voc, tmp_path / "out")
    assert findings(report)["train", "size differs from the file"].treatment == "repaired"
    image = load_annotations(tmp_path / "out/annotations/instances_train.json")["images"][0]
    assert (image["width"], image["height"]) == (40, 30)


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda voc: (voc / "JPEGImages/d.jpg").unlink(), "missing picture"),
        (lambda voc: (voc / "JPEGImages/d.jpg").write_bytes(b"GIF?"), "unreadable picture"),
        (lambda voc: (voc / "Annotations/d.xml").unlink(), "missing annotation"),
        (lambda voc: (voc / "Annotations/d.xml").write_text("<a><b>"), "malformed annotation"),
    ],
)
def test_dropped_pictures_are_named(voc: Path, tmp_path: Path, spoil: Any, kind: str) -> None:
    picture(voc, "d", thing("blue", 11, 6, 20, 15))
    lists(voc, train="a d")
    spoil(voc)
    report = import_voc(voc, tmp_path / "out")
    finding = findings(report)["train", kind]
    assert (finding.treatment, finding.count) == ("dropped", 1)
    assert finding.examples[0].startswith("d")
    assert report.pictures["train"] == 1
    assert report.categories == ("red", "white")


def test_a_renamed_picture_is_found_by_the_xml(voc: Path, tmp_path: Path) -> None:
    (voc / "Annotations" / "a.xml").rename(voc / "Annotations" / "other.xml")
    lists(voc, train="other")
    assert import_voc(voc, tmp_path / "out").findings == ()
    assert (tmp_path / "out" / "train" / "a.jpg").is_file()


def test_a_name_in_two_lists_stays_out_of_train(voc: Path, tmp_path: Path) -> None:
    lists(voc, train="a b", val="b c", test="c")
    report = import_voc(voc, tmp_path / "out")
    found = findings(report)
    assert found["train", "in two lists"].examples == ("b",)
    assert found["val", "in two lists"].examples == ("c",)
    assert report.pictures == {"train": 1, "val": 1, "test": 1}


def test_names_in_no_list_are_reported(voc: Path, tmp_path: Path) -> None:
    picture(voc, "d")
    report = import_voc(voc, tmp_path / "out")
    assert findings(report)["-", "in no list"].examples == ("d",)
    assert sum(report.pictures.values()) == 3


def test_lists_of_one_class_have_a_second_column(voc: Path, tmp_path: Path) -> None:
    (voc / "ImageSets" / "Main" / "train.txt").write_text("a  1\n\n")
    assert import_voc(voc, tmp_path / "out").pictures["train"] == 1


def test_without_lists_the_names_are_split(voc: Path, tmp_path: Path) -> None:
    for number in range(97):
        picture(voc, f"p{number}")
    (voc / "ImageSets" / "Main" / "train.txt").unlink()
    report = import_voc(voc, tmp_path / "out")
    assert report.lists == "no lists of train and val, so split 80%/20% by name"
    # 99 names at 1/5: standard deviation 4; three of them.
    assert abs(report.pictures["val"] - 20) < 12
    assert report.pictures["train"] + report.pictures["val"] == 99
    assert report.pictures["test"] == 1


def test_a_second_import_changes_nothing(voc: Path, tmp_path: Path) -> None:
    picture(voc, "a", thing("red", 5, 5, 5, 9))
    first = import_voc(voc, tmp_path / "out")
    stamp = (tmp_path / "out/annotations/instances_train.json").stat().st_mtime_ns
    second = import_voc(voc, tmp_path / "out")
    assert (tmp_path / "out/annotations/instances_train.json").stat().st_mtime_ns == stamp
    assert second.earlier and not first.earlier
    assert second.to_json() == first.to_json()
    assert "was done before" in str(second)


def test_two_imports_are_equal(voc: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        import_voc(voc, tmp_path / name)
    for part in ("train", "val", "test"):
        one, two = (tmp_path / n / f"annotations/instances_{part}.json" for n in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_other_files_are_not_overwritten(voc: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="got other files"):
        import_voc(voc, out)
    assert [file.name for file in out.iterdir()] == ["thesis.txt"]


def test_the_import_of_another_source_is_not_overwritten(voc: Path, tmp_path: Path) -> None:
    import_voc(voc, tmp_path / "out")
    with pytest.raises(DataError, match="got the import of .*/voc in"):
        import_voc(tmp_path / "elsewhere", tmp_path / "out")


def test_no_voc_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wanted the folders Annotations and JPEGImages"):
        import_voc(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_to_train_on(voc: Path, tmp_path: Path) -> None:
    (voc / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DataError, match="wanted pictures to train on"):
        import_voc(voc, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_text_and_json_name_what_was_dropped(voc: Path, tmp_path: Path) -> None:
    picture(voc, "a", *[thing("red", 5, 5, 5, 9)] * 7)
    report = import_voc(voc, tmp_path / "out")
    assert "a.xml object 5 red [5.0, 5.0, 5.0, 9.0] and 2 more" in str(report)
    kept = json.loads((tmp_path / "out" / "import.json").read_text())
    assert len(kept["findings"][0]["examples"]) == kept["findings"][0]["count"] == 7


@pytest.mark.skipif(not BCCD.exists(), reason=f"no blood cell pictures at {BCCD.name}")
def test_bccd(tmp_path: Path) -> None:
    report = import_voc(BCCD, tmp_path / "bccd")
    assert report.pictures == {"train": 205, "val": 87, "test": 72}
    # 4155 + 372 + 361 objects, less the two without area.
    assert sum(report.objects.values()) == 4886
    assert report.categories == ("Platelets", "RBC", "WBC")
    dropped = [example for finding in report.findings for example in finding.examples]
    assert [example.split(".")[0] for example in dropped] == [
        "BloodImage_00343",
        "BloodImage_00338",
    ]
    check = check_data(tmp_path / "bccd")
    assert (check.findings, check.fatal) == ((), False)
