from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from smnas.data.coco import CocoDataset, DataFolder
from smnas.data.digits import make_digits
from smnas.quiet import QuietDevice
from smnas.training.examples import find_examples


class Fixed(nn.Module):
    """Finds the same in every picture: 30 sure boxes, one unsure, one that is not finite."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training
        boxes = torch.arange(32.0)[:, None] + torch.tensor([0.0, 0.0, 10.0, 20.0])
        scores = torch.linspace(0.1, 0.9, 32)
        scores[0], boxes[31, 0] = 0.05, torch.inf
        labels = torch.full((32,), 3)
        return [{"boxes": boxes, "labels": labels, "scores": scores} for _ in images]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digits(folder, train=10, val=1, size=(96, 96))
    return CocoDataset(DataFolder.open(folder).train)


def find(dataset: CocoDataset) -> dict:
    cpu = torch.device("cpu")
    model = Fixed().train()
    found = find_examples(model, dataset, device=cpu, quiet=QuietDevice("cpu"))
    assert model.training
    return found


def test_the_surest_boxes_of_a_few_pictures_in_pixels_of_the_file(data: CocoDataset) -> None:
    found = find(data.view(data.image_ids, (48, 48)))
    assert found["categories"] == data.categories
    # every third of ten
    files = [Path(picture["file"]).name for picture in found["pictures"]]
    assert files == [data.coco.imgs[key]["file_name"] for key in data.image_ids[::3]]
    picture = found["pictures"][0]
    assert Path(picture["file"]).is_file() and picture["width"] == picture["height"] == 96
    assert len(picture["found"]) == 20
    # box 30 of 48 pixels is twice as far in 96
    assert picture["found"][0] == [60.0, 60.0, 80.0, 100.0, 3, 0.874]
    scores = [box[5] for box in picture["found"]]
    assert scores == sorted(scores, reverse=True)
    first, *_ = data.coco.imgToAnns[data.image_ids[0]]
    left, top, width, height = first["bbox"]
    corners = [left, top, left + width, top + height]
    assert picture["truth"][0][:4] == pytest.approx(corners, abs=0.06)
    assert data.category_ids[picture["truth"][0][4] - 1] == first["category_id"]


def test_fewer_pictures_than_wanted(data: CocoDataset) -> None:
    assert len(find(data.view(data.image_ids[:3], None))["pictures"]) == 3
    assert find(data.view([], None))["pictures"] == []
