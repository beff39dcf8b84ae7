"""COCO-format data: where the files lie (`DataFolder`), and tensors of them (`CocoDataset`).

Every annotation file is read by `load_annotations` and written by `write_annotations`; training and
evaluation get `CocoDataset`. Knows nothing of detectors: must not import them, NNI or pymoo.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms

from smnas.errors import DataError

PICTURE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises on a file that is no picture or is cut short."""

_SKELETON: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}
_MIB = 2**20


@dataclass(frozen=True)
class Part:
    """One part of a data set.

    Args:
        annotations: a COCO `instances_*.json`.
        images: the folder that its `file_name`s are relative to.
    """

    annotations: Path
    images: Path


@dataclass(frozen=True)
class DataFolder:
    """The parts of a data set. Give them explicitly, or let `open` find them.

    Args:
        train: what is trained on, and what the search split is cut from.
        val: what final numbers are reported on; None when the data set has none.
    """

    train: Part
    val: Part | None = None

    @classmethod
    def open(cls, path: Path | str) -> DataFolder:
        """Find `annotations/instances_NAME.json` with its pictures in `NAME/`.

        `NAME` begins with `train` or `val`, so `instances_train.json` with `train/` and COCO's own
        `instances_train2017.json` with `train2017/` are both found. Both annotation files are read
        once, so that a broken one is known before anything long begins.

        Raises:
            DataError: the folder, the train annotations or a picture folder is missing, several
                files match, or an annotation file is not COCO.
        """
        root = Path(path)
        if not root.is_dir():
            state = "a file" if root.exists() else "nothing"
            raise DataError(f"data: wanted a folder in COCO format, got {state} at {root}")
        train, val = _find_part(root, "train"), _find_part(root, "val")
        if train is None:
            raise DataError(f"data: wanted annotations/instances_train*.json in {root}, got none")
        for part in filter(None, (train, val)):
            load_annotations(part.annotations)
        return cls(train, val)


def _find_part(root: Path, name: str) -> Part | None:
    found = sorted((root / "annotations").glob(f"instances_{name}*.json"))
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(
            f"data: wanted one file instances_{name}*.json, got {names} in {root / 'annotations'}"
        )
    images = root / found[0].stem.removeprefix("instances_")
    if not images.is_dir():
        raise DataError(f"data: wanted the pictures of {found[0]} in the folder {images}, got none")
    return Part(found[0], images)


def load_annotations(path: Path | str) -> dict[str, Any]:
    """Read a COCO annotation file and check its skeleton: sections, keys and their types.

    Values are not judged (that is `smnas.data.check`): ids may repeat, boxes may lie anywhere.

    Returns:
        The JSON object; `images`, `annotations` and `categories` are lists of objects that have the
        keys named in the COCO format. `width`, `height`, `area`, `iscrowd` may be absent.

    Raises:
        DataError: unreadable, not JSON, or not COCO; names the key that is missing.
    """
    try:
        data = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"annotations: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(
            f"annotations: wanted JSON, got something else in {path}: {error}"
        ) from error
    if not isinstance(data, dict):
        raise DataError(f"annotations: wanted a JSON object, got a {type(data).__name__} in {path}")
    for section, fields in _SKELETON.items():
        _check_section(data, section, fields, path)
    return data


def _check_section(
    data: dict[str, Any], section: str, fields: dict[str, type], path: Path | str
) -> None:
    if not isinstance(data.get(section), list):
        raise DataError(f"annotations: wanted COCO with a list {section!r}, got none in {path}")
    for index, entry in enumerate(data[section]):
        where = f"{section}[{index}] of {path}"
        if not isinstance(entry, dict):
            raise DataError(f"annotations: wanted an object, got {entry!r} in {where}")
        for key, kind in fields.items():
            if key not in entry:
                raise DataError(
                    f"annotations: wanted COCO with the key {key!r}, got none in {where}"
                )
            if not isinstance(entry[key], kind):
                raise DataError(
                    f"annotations: wanted {key!r} as {kind.__name__}, got {entry[key]!r} in {where}"
                )
        if "bbox" in fields and not _four_numbers(entry["bbox"]):
            raise DataError(
                f"annotations: wanted 'bbox' as four numbers, got {entry['bbox']!r} in {where}"
            )


def _four_numbers(bbox: list[Any]) -> bool:
    return len(bbox) == 4 and all(isinstance(value, int | float) for value in bbox)


def write_annotations(path: Path, data: dict[str, Any]) -> None:
    """Write an annotation file whole or not at all; equal data give equal bytes."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(json.dumps(data, separators=(",", ":")))
    os.replace(scratch, path)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends well and vanishes when it does not.

    Args:
        out: must not exist, or be an empty folder.

    Raises:
        DataError: the folder cannot be written, or a file read in the block cannot.
    """
    out = out.resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            build = Path(scratch) / out.name
            build.mkdir()
            yield build
            os.replace(build, out)
    except OSError as error:
        raise DataError(f"data: cannot make the folder {out}: {error}") from error


def is_filled(out: Path) -> bool:
    """Whether something stands at `out` that `new_folder` would have to overwrite."""
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


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
            Worker processes of a loader keep one cache each.

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
        self.input_size = input_size
        self.coco = _index(load_annotations(part.annotations))
        self.category_ids = sorted(self.coco.cats)
        self.categories = [self.coco.cats[key]["name"] for key in self.category_ids]
        self.image_ids = sorted(self.coco.imgs) if image_ids is None else list(image_ids)
        self._labels = {key: label for label, key in enumerate(self.category_ids, start=1)}
        self._cache: dict[int, tuple[Tensor, float]] = {}
        self._free_bytes = int(cache_mb * _MIB)
        self._check_references()

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

    def _check_references(self) -> None:
        unknown = sorted(set(self.image_ids) - set(self.coco.imgs))
        if unknown:
            raise DataError(
                f"pictures: wanted ids of {self.part.annotations}, got {len(unknown)} others:"
                f" {unknown[:5]}"
            )
        for key, annotation in self.coco.anns.items():
            if annotation["category_id"] not in self._labels:
                raise DataError(
                    f"annotations: wanted a category of {self.category_ids}, got"
                    f" {annotation['category_id']} in annotation {key} of {self.part.annotations}"
                )

    def _pixels(self, image_id: int) -> tuple[Tensor, float]:
        """The picture as uint8 `3 x H x W`, resized, with its scale; from memory if it is there."""
        if image_id in self._cache:
            return self._cache[image_id]
        picture = self._read(self.part.images / self.coco.imgs[image_id]["file_name"])
        scale = fit_scale(picture.size, self.input_size)
        if self.input_size is not None:
            width, height = (max(1, round(side * scale)) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels = transforms.pil_to_tensor(picture)
        if pixels.nbytes <= self._free_bytes:
            self._free_bytes -= pixels.nbytes
            self._cache[image_id] = pixels, scale
        return pixels, scale

    def _read(self, file: Path) -> Image.Image:
        named = f"named by {self.part.annotations}"
        try:
            with Image.open(file) as picture:
                return picture.convert("RGB")
        except FileNotFoundError as error:
            raise DataError(f"picture: wanted {file}, {named}, got no such file") from error
        except PICTURE_ERRORS as error:
            raise DataError(f"picture: cannot decode {file}, {named}: {error}") from error

    def _targets(self, image_id: int, scale: float) -> tuple[Tensor, Tensor]:
        objects = [entry for entry in self.coco.imgToAnns[image_id] if _trainable(entry)]
        boxes = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float64)
        boxes = boxes.reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [self._labels[entry["category_id"]] for entry in objects]
        return (boxes * scale).float(), torch.tensor(labels, dtype=torch.int64)


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
