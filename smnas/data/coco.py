"""COCO-format data as tensors: `CocoDataset`, which training and evaluation read.

The torch side of `smnas.data.files`, whose `DataFolder`, `Part` and `load_annotations` can be had
from here too. Knows nothing of detectors: must not import them, NNI or pymoo.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms

from smnas.data.files import PICTURE_ERRORS
from smnas.data.files import DataFolder as DataFolder
from smnas.data.files import Part as Part
from smnas.data.files import load_annotations as load_annotations
from smnas.errors import DataError

__all__ = [
    "CocoDataset",
    "DataFolder",
    "Example",
    "Part",
    "collate",
    "fit_scale",
    "fitted",
    "load_annotations",
    "read_picture",
]

_MIB = 2**20


@dataclass(frozen=True, eq=False)
class Example:
    """One picture with its objects, at the size that the detector sees.

    Args:
        image: float32 `3 x H x W`, RGB, 0 to 1.
        boxes: float32 `n x 4`, (x0, y0, x1, y1) in pixels of `image`; `0 x 4` without objects.
        labels: int64 `n`, 1 to C; k stands for `CocoDataset.category_ids[k - 1]`.
        image_id: COCO id.
        scale: pixels of `image` per pixel of the file; `boxes / scale` are in pixels of the file.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_id: int
    scale: float


class CocoDataset(Dataset[Example]):
    """The pictures of one part, or some of them, resized for one input size.

    Pictures are taken as stored: an EXIF orientation is not applied, because boxes in COCO files
    refer to the stored pixels. Whatever the colour mode, they become RGB. Crowds and boxes without
    area are no training targets; `coco` keeps them, because the COCO metric wants crowds.

    Pictures are resized as torchvision's `GeneralizedRCNNTransform` would, keeping the aspect, so
    that a detector built for the same size has nothing left to do. Sides are rounded to pixels, so
    a box may be off by up to half a pixel at the far end of the side that does not set the scale.

    Args:
        part: where annotations and pictures lie.
        image_ids: the pictures to use, in this order; None: all, by ascending id.
        input_size: (width, height) in pixels; its shorter side bounds the shorter side of a picture
            whichever way that is turned. None: the size of the file.
        cache_mb: MiB of decoded pictures to keep in memory; what does not fit is decoded each time.
            Every view and every worker process of a loader keeps its own.

    Raises:
        DataError: the annotation file is not COCO, an id in `image_ids` is not in it, or an object
            names a category that is not.
    """

    def __init__(
        self,
        part: Part,
        *,
        image_ids: Sequence[int] | None = None,
        input_size: tuple[int, int] | None = None,
        cache_mb: float = 2048,
    ) -> None:
        self.part = part
        self.cache_mb = cache_mb
        self.coco = _index(load_annotations(part.annotations))
        self.category_ids = sorted(self.coco.cats)
        self.categories = [self.coco.cats[key]["name"] for key in self.category_ids]
        self._labels = {key: label for label, key in enumerate(self.category_ids, start=1)}
        self._check_categories()
        self._show(sorted(self.coco.imgs) if image_ids is None else image_ids, input_size)

    def view(self, image_ids: Sequence[int], input_size: tuple[int, int] | None) -> CocoDataset:
        """The same annotations, not read again, with other pictures or another size.

        Raises:
            DataError: an id is not in the annotation file.
        """
        other = copy.copy(self)
        other._show(image_ids, input_size)
        return other

    @property
    def num_classes(self) -> int:
        """C: how many categories there are; the background is not one."""
        return len(self.category_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Example:
        image_id = self.image_ids[index]
        pixels, scale = self._pixels(image_id)
        boxes, labels = self._targets(image_id, scale)
        image = transforms.to_dtype(pixels, torch.float32, scale=True)
        return Example(image, boxes, labels, image_id, scale)

    def missing_pictures(self) -> list[Path]:
        """Files that are not there, without opening any."""
        return [file for file in map(self._file, self.image_ids) if not file.is_file()]

    def _show(self, image_ids: Sequence[int], input_size: tuple[int, int] | None) -> None:
        unknown = sorted(set(image_ids) - set(self.coco.imgs))
        if unknown:
            raise DataError(
                f"pictures: wanted ids of {self.part.annotations}, got {len(unknown)} others:"
                f" {unknown[:5]}"
            )
        self.image_ids = list(image_ids)
        self.input_size = input_size
        self._cache: dict[int, tuple[Tensor, float]] = {}
        self._free_bytes = int(self.cache_mb * _MIB)

    def _file(self, image_id: int) -> Path:
        return self.part.images / self.coco.imgs[image_id]["file_name"]

    def _check_categories(self) -> None:
        for entry in self.coco.dataset["annotations"]:
            if entry["category_id"] not in self._labels:
                raise DataError(
                    f"annotations: wanted a category of {self.category_ids}, got"
                    f" {entry['category_id']} in object {entry['id']} of {self.part.annotations}"
                )

    def _pixels(self, image_id: int) -> tuple[Tensor, float]:
        """The picture as uint8 `3 x H x W`, resized, with its scale; from memory if it is there."""
        if image_id in self._cache:
            return self._cache[image_id]
        named = f"named by {self.part.annotations}"
        pixels, scale = fitted(read_picture(self._file(image_id), named), self.input_size)
        if pixels.nbytes <= self._free_bytes:
            self._free_bytes -= pixels.nbytes
            self._cache[image_id] = pixels, scale
        return pixels, scale

    def _targets(self, image_id: int, scale: float) -> tuple[Tensor, Tensor]:
        objects = [entry for entry in self.coco.imgToAnns[image_id] if _trainable(entry)]
        boxes = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float64)
        boxes = boxes.reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [self._labels[entry["category_id"]] for entry in objects]
        return (boxes * scale).float(), torch.tensor(labels, dtype=torch.int64)


def read_picture(file: Path, named: str) -> Image.Image:
    """A picture file as RGB.

    Args:
        file: its path.
        named: where that was found, for messages.

    Raises:
        DataError: there is no such file, or it is no picture.
    """
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"picture: wanted {file}, {named}, got no such file") from error
    except PICTURE_ERRORS as error:
        raise DataError(f"picture: cannot decode {file}, {named}: {error}") from error


def fitted(picture: Image.Image, input_size: tuple[int, int] | None) -> tuple[Tensor, float]:
    """A picture as uint8 `3 x H x W`, resized as `CocoDataset` does, and its scale.

    Args:
        picture: RGB.
        input_size: (width, height) to fit into, either way round; None leaves it as it is.
    """
    scale = fit_scale(picture.size, input_size)
    if input_size is not None:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return transforms.pil_to_tensor(picture), scale


def fit_scale(size: tuple[int, int], input_size: tuple[int, int] | None) -> float:
    """The factor that `GeneralizedRCNNTransform(min(input_size), max(input_size))` resizes by.

    Args:
        size: (width, height) of the file.
        input_size: (width, height) to fit into, either way round; None: 1.0.
    """
    if input_size is None:
        return 1.0
    return min(min(input_size) / min(size), max(input_size) / max(size))


def _trainable(annotation: dict[str, Any]) -> bool:
    _, _, width, height = annotation["bbox"]
    finite = all(map(math.isfinite, annotation["bbox"]))
    return not annotation["iscrowd"] and finite and width > 0 and height > 0


def _index(data: dict[str, Any]) -> COCO:
    """pycocotools' index of a loaded annotation file, made without its prints."""
    coco = COCO()
    coco.dataset = data | {"annotations": [_completed(entry) for entry in data["annotations"]]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _completed(annotation: dict[str, Any]) -> dict[str, Any]:
    """With the two keys that the COCO metric needs and many exporters leave out."""
    _, _, width, height = annotation["bbox"]
    completed = {"area": width * height, "iscrowd": 0, **annotation}
    # Outlines are most of COCO's bulk and boxes do without them.
    completed.pop("segmentation", None)
    return completed


def collate(batch: Sequence[Example]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Make a batch as torchvision's detectors take it: pictures keep their sizes.

    Returns:
        Images, and for each a target with `boxes`, `labels` and `image_id` (int64, no dimensions).
    """
    targets = [
        {
            "boxes": example.boxes,
            "labels": example.labels,
            "image_id": torch.tensor(example.image_id),
        }
        for example in batch
    ]
    return [example.image for example in batch], targets
