"""Pictures and boxes as tensors: exact pixels and boxes, torchvision's own resize as the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from smnas.data.coco import CocoDataset, Part, collate, fit_scale
from smnas.errors import DataError

SIZE = (40, 30)


def box(
    key: int, image_id: int, category_id: int, bbox: list[float], **more: Any
) -> dict[str, Any]:
    return {"id": key, "image_id": image_id, "category_id": category_id, "bbox": bbox} | more


def write(root: Path, annotations: list[dict[str, Any]], modes: tuple[str, ...] = ("RGB",)) -> Part:
    """A part with one 40 x 30 picture for each mode, ids 5, 6, …, and categories 3 and 7."""
    images = []
    for image_id, mode in enumerate(modes, start=5):
        name = f"{image_id}.tif"
        Image.new(mode, SIZE).save(root / name)
        images.append({"id": image_id, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
    categories = [{"id": 7, "name": "white"}, {"id": 3, "name": "red"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(data))
    return Part(root / "instances.json", root)


def test_categories_are_ordered_by_id(tmp_path: Path) -> None:
    dataset = CocoDataset(write(tmp_path, []))
    assert dataset.category_ids == [3, 7]
    assert dataset.categories == ["red", "white"]
    assert dataset.num_classes == 2


def test_boxes_and_labels(tmp_path: Path) -> None:
    part = write(tmp_path, [box(1, 5, 7, [1, 2, 10, 20]), box(2, 5, 3, [0.5, 0, 4, 3])])
    example = CocoDataset(part)[0]
    assert example.boxes.tolist() == [[1, 2, 11, 22], [0.5, 0, 4.5, 3]]
    assert example.labels.tolist() == [2, 1]
    assert (example.boxes.dtype, example.labels.dtype) == (torch.float32, torch.int64)
    assert (example.image_id, example.scale) == (5, 1.0)


def test_boxes_scale_with_the_picture(tmp_path: Path) -> None:
    part = write(tmp_path, [box(1, 5, 7, [1, 2, 10, 20])])
    example = CocoDataset(part, input_size=(80, 60))[0]
    assert example.scale == 2
    assert example.image.shape == (3, 60, 80)
    assert example.boxes.tolist() == [[2, 4, 22, 44]]


@pytest.mark.parametrize(
    "annotation",
    [
        box(1, 5, 7, [1, 2, 10, 20], iscrowd=1),
        box(1, 5, 7, [1, 2, 0, 20]),
        box(1, 5, 7, [1, 2, 10, -1]),
        box(1, 5, 7, [1, float("nan"), 10, 20]),
    ],
)
def test_what_is_no_target(tmp_path: Path, annotation: dict[str, Any]) -> None:
    dataset = CocoDataset(write(tmp_path, [annotation]))
    assert dataset[0].boxes.shape == (0, 4)
    assert dataset[0].labels.shape == (0,)
    assert len(dataset.coco.getAnnIds()) == 1, "the metric still has to see it"


def test_picture_without_objects(tmp_path: Path) -> None:
    example = CocoDataset(write(tmp_path, []))[0]
    assert (example.boxes.shape, example.boxes.dtype) == ((0, 4), torch.float32)


def test_area_and_iscrowd_are_filled_in_and_outlines_left_out(tmp_path: Path) -> None:
    part = write(tmp_path, [box(1, 5, 7, [1, 2, 10, 20], segmentation=[[1, 2, 11, 2, 11, 22]])])
    annotation = CocoDataset(part).coco.anns[1]
    assert (annotation["area"], annotation["iscrowd"]) == (200, 0)
    assert "segmentation" not in annotation


def test_a_given_area_stays(tmp_path: Path) -> None:
    part = write(tmp_path, [box(1, 5, 7, [1, 2, 10, 20], area=123.5)])
    assert CocoDataset(part).coco.anns[1]["area"] == 123.5


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "1", "P"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = CocoDataset(write(tmp_path, [], (mode,)))[0].image
    assert (image.shape, image.dtype) == ((3, 30, 40), torch.float32)


def test_pixels_are_rgb_from_0_to_1(tmp_path: Path) -> None:
    part = write(tmp_path, [])
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[4, 9] = 255, 51, 0
    Image.fromarray(pixels).save(tmp_path / "5.tif")
    image = CocoDataset(part)[0].image
    assert image[:, 4, 9].tolist() == pytest.approx([1, 0.2, 0])
    assert image.sum().item() == pytest.approx(1.2)


def test_orientation_tag_is_not_applied(tmp_path: Path) -> None:
    part = write(tmp_path, [])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(tmp_path / "5.tif", format="JPEG", exif=exif)
    assert CocoDataset(part)[0].image.shape == (3, 30, 40)


def test_subset_and_order(tmp_path: Path) -> None:
    part = write(tmp_path, [box(1, 6, 7, [0, 0, 4, 4])], ("RGB", "RGB", "RGB"))
    assert CocoDataset(part).image_ids == [5, 6, 7]
    dataset = CocoDataset(part, image_ids=[7, 6])
    assert (len(dataset), dataset[0].image_id, dataset[1].image_id) == (2, 7, 6)
    assert dataset[1].boxes.tolist() == [[0, 0, 4, 4]]


def test_view_shares_annotations_and_nothing_else(tmp_path: Path) -> None:
    dataset = CocoDataset(write(tmp_path, [], ("RGB", "RGB")), input_size=(40, 30))
    view = dataset.view([6], (20, 15))
    assert view.coco is dataset.coco
    assert view[0].image.shape == (3, 15, 20)
    assert (dataset[1].image.shape, dataset.image_ids) == ((3, 30, 40), [5, 6])


def test_unknown_ids(tmp_path: Path) -> None:
    part = write(tmp_path, [])
    with pytest.raises(DataError, match=r"got 1 others: \[99\]"):
        CocoDataset(part, image_ids=[5, 99])
    with pytest.raises(DataError, match="99"):
        CocoDataset(part).view([99], None)


def test_unknown_category(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a category of \[3, 7\], got 1 in object 4"):
        CocoDataset(write(tmp_path, [box(4, 5, 1, [0, 0, 4, 4])]))


def test_missing_picture_names_both_files(tmp_path: Path) -> None:
    part = write(tmp_path, [])
    (tmp_path / "5.tif").unlink()
    dataset = CocoDataset(part)
    assert dataset.missing_pictures() == [tmp_path / "5.tif"]
    with pytest.raises(DataError, match=r"5.tif, named by .*instances.json"):
        dataset[0]


def test_broken_picture(tmp_path: Path) -> None:
    part = write(tmp_path, [])
    (tmp_path / "5.tif").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot decode .*5.tif"):
        CocoDataset(part)[0]


def test_loading_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CocoDataset(write(tmp_path, []))
    assert capsys.readouterr().out == ""


def test_kept_pictures_are_not_decoded_again(tmp_path: Path) -> None:
    # Two pictures of 3 x 30 x 40 bytes; the budget holds one.
    part = write(tmp_path, [], ("RGB", "RGB"))
    dataset = CocoDataset(part, cache_mb=4000 / 2**20)
    before = [dataset[index] for index in range(2)]
    for name in ("5.tif", "6.tif"):
        (tmp_path / name).unlink()
    assert torch.equal(dataset[0].image, before[0].image)
    with pytest.raises(DataError):
        dataset[1]


def test_pixels_are_the_same_whether_kept_or_not(tmp_path: Path) -> None:
    part = write(tmp_path, [], ("RGB", "RGB"))
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "5.tif")
    kept = CocoDataset(part, input_size=(20, 15))
    decoded = CocoDataset(part, input_size=(20, 15), cache_mb=0)
    for _ in range(2):
        for index in range(2):
            assert torch.equal(kept[index].image, decoded[index].image)
    assert kept[0].image.std() > 0


def test_a_kept_picture_cannot_be_spoilt(tmp_path: Path) -> None:
    dataset = CocoDataset(write(tmp_path, []))
    dataset[0].image.fill_(1)
    assert dataset[0].image.sum() == 0


@pytest.mark.parametrize(
    ("size", "input_size", "scale"),
    [
        ((640, 480), None, 1.0),
        ((640, 480), (256, 192), 0.4),
        ((480, 640), (256, 192), 0.4),
        ((640, 480), (192, 192), 0.3),
        ((1000, 100), (200, 150), 0.2),
        ((100, 100), (300, 200), 2.0),
    ],
)
def test_fit_scale(size: tuple[int, int], input_size: tuple[int, int], scale: float) -> None:
    assert fit_scale(size, input_size) == pytest.approx(scale)


sides = st.integers(8, 80)


@given(sides, sides, st.integers(16, 64), st.integers(16, 64))
def test_the_detector_has_nothing_to_resize(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, wide: int, high: int
) -> None:
    root = tmp_path_factory.mktemp("pictures")
    part = write(root, [box(1, 5, 7, [1, 2, 3, 4])])
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "5.tif")
    example = CocoDataset(part, input_size=(wide, high))[0]
    judge = GeneralizedRCNNTransform(
        min(wide, high), max(wide, high), [0.0] * 3, [1.0] * 3, size_divisible=1
    )
    images, _ = judge([example.image])
    assert torch.equal(images.tensors[0], example.image)
    assert example.boxes[0].tolist() == pytest.approx(
        [value * fit_scale((width, height), (wide, high)) for value in (1, 2, 4, 6)]
    )


def test_collate(tmp_path: Path) -> None:
    part = write(tmp_path, [box(1, 5, 7, [1, 2, 10, 20])], ("RGB", "L"))
    Image.new("L", (12, 50)).save(tmp_path / "6.tif")
    dataset = CocoDataset(part)
    images, targets = collate([dataset[0], dataset[1]])
    assert [tuple(image.shape) for image in images] == [(3, 30, 40), (3, 50, 12)]
    assert [set(target) for target in targets] == [{"boxes", "labels", "image_id"}] * 2
    assert [target["image_id"].item() for target in targets] == [5, 6]
    assert targets[0]["boxes"].tolist() == [[1, 2, 11, 22]]
    assert targets[1]["labels"].tolist() == []
