"""Generates the demo data: real handwritten digits scattered over crops of natural photographs.

Digits and photographs are scikit-learn's own files, so nothing is downloaded. A digit instance is
used in one part only. Light: must not import torch, NNI or pymoo.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from smnas.data.files import DataFolder, is_filled, new_folder, write_annotations
from smnas.errors import DataError

MARKER = "digits.json"
"""In the generated folder: the arguments it was made with."""

VERSION = 1
"""Raised whenever equal arguments begin to give other pictures."""

MIN_DIGITS, MAX_DIGITS = 2, 6
"""Digits meant for a picture; one that finds no free place is left out."""

MIN_SIDE, MAX_SIDE = 32 / 192, 80 / 192
"""Longer side of a digit before it is turned, as a share of the picture's shorter side."""

MAX_OVERLAP = 0.08
"""Of two boxes: intersection over the smaller one."""

VAL_SHARE = 0.2
"""Share of the digit instances that only `val` uses."""

_TRIES = 30
_JPEG_QUALITY = 92

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Arguments:
    version: int
    train: int
    val: int
    width: int
    height: int
    seed: int


@dataclass(frozen=True)
class _Sources:
    """What pictures are made of: digits `n x 8 x 8` with labels `n`, and photographs."""

    digits: Pixels
    labels: NDArray[np.int64]
    photographs: list[Image.Image]


def make_digits(
    out: Path | str,
    *,
    train: int = 400,
    val: int = 100,
    size: tuple[int, int] = (192, 192),
    seed: int = 0,
) -> DataFolder:
    """Make a COCO folder of pictures with 1 to 6 digits each; ten classes, named 0 to 9.

    Light ink on darkened photographs: easy to see, so that two or three passes over 300 pictures
    teach a small detector something, and small enough that its stride and input size matter.
    Same arguments, same bytes on one machine. A folder made before with the same arguments is
    returned as it is.

    Args:
        out: must not exist or be empty, or hold the data of an earlier call. Made whole or not
            at all.
        train: pictures to train on, at least 1.
        val: pictures for final numbers, at least 1.
        size: (width, height) of every picture in pixels, at least 64 each; digits grow with it.
        seed: at least 0.

    Raises:
        DataError: an argument is out of range, or `out` holds something else or cannot be written.
    """
    out = Path(out)
    wanted = _Arguments(VERSION, train, val, *size, seed)
    if min(train, val) < 1 or min(size) < 64 or seed < 0:
        raise DataError(
            f"digits: wanted train and val from 1, sides from 64, seed from 0, got {wanted}"
        )
    if is_filled(out):
        _check_same(out, wanted)
    else:
        with new_folder(out) as build:
            _fill(build, wanted)
    return DataFolder.open(out)


def _check_same(out: Path, wanted: _Arguments) -> None:
    try:
        made = json.loads((out / MARKER).read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"digits: wanted an empty or new folder, got other files in {out}"
        ) from error
    if made != asdict(wanted):
        raise DataError(f"digits: wanted {asdict(wanted)}, got data made with {made} in {out}")


def _fill(build: Path, wanted: _Arguments) -> None:
    (build / "annotations").mkdir()
    first_id = 1
    for part, sources in _sources(wanted.seed).items():
        (build / part).mkdir()
        count = getattr(wanted, part)
        data = _make_part(build / part, sources, wanted, range(first_id, first_id + count))
        write_annotations(build / "annotations" / f"instances_{part}.json", data)
        first_id += count
    (build / MARKER).write_text(json.dumps(asdict(wanted)))


def _sources(seed: int) -> dict[str, _Sources]:
    """Sources of `train` and `val`, no digit instance in both; the photographs are the same."""
    digits = load_digits()
    ink = (digits.images * (255 / 16)).astype(np.uint8)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    order = np.random.default_rng(seed).permutation(len(ink))
    border = round(len(ink) * VAL_SHARE)
    rows = {"train": order[border:], "val": order[:border]}
    return {
        part: _Sources(ink[index], digits.target[index], photographs)
        for part, index in rows.items()
    }


def _make_part(
    folder: Path, sources: _Sources, wanted: _Arguments, image_ids: range
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in image_ids:
        # One generator a picture, so that a picture does not change with the number of others.
        rng = np.random.default_rng([wanted.seed, image_id])
        picture, objects = _scene(sources, (wanted.width, wanted.height), rng)
        name = f"{image_id:06d}.jpg"
        picture.save(folder / name, quality=_JPEG_QUALITY, subsampling=0)
        images.append(
            {"id": image_id, "file_name": name, "width": wanted.width, "height": wanted.height}
        )
        for label, (x0, y0, x1, y1) in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _scene(
    sources: _Sources, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[int, Box]]]:
    """A picture, and for each digit in it which one and its box (x0, y0, x1, y1), ends excluded."""
    scene = _ground(sources.photographs, size, rng)
    objects: list[tuple[int, Box]] = []
    # Large ones first: a small one still finds a place between them.
    sides = rng.uniform(
        np.log(MIN_SIDE), np.log(MAX_SIDE), rng.integers(MIN_DIGITS, MAX_DIGITS + 1)
    )
    for side in sorted(np.exp(sides) * min(size), reverse=True):
        index = rng.integers(len(sources.digits))
        ink = _ink(sources.digits[index], side, rng)
        box = _free_place(ink.shape, size, [placed for _, placed in objects], rng)
        if box is not None:
            _paint(scene, ink, box, rng)
            objects.append((int(sources.labels[index]), box))
    return Image.fromarray(scene.round().astype(np.uint8)), objects


def _ground(
    photographs: list[Image.Image], size: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    """A crop of a photograph, scaled, flipped, its colours moved: `H x W x 3`, 0 to 255."""
    photograph = photographs[rng.integers(len(photographs))]
    width, height = size
    largest = min(photograph.width / width, photograph.height / height)
    zoom = largest * rng.uniform(0.35, 1.0)
    left = rng.uniform(0, photograph.width - width * zoom)
    top = rng.uniform(0, photograph.height - height * zoom)
    region = (left, top, left + width * zoom, top + height * zoom)
    crop = photograph.resize(size, Image.Resampling.BILINEAR, box=region)
    pixels = np.asarray(crop, dtype=np.float64)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    # Flatter and darker than the photograph: the ink is light.
    level = rng.uniform(50, 110) + rng.uniform(-20, 20, 3)
    mean = pixels.mean(axis=(0, 1))
    return np.clip((pixels - mean) * rng.uniform(0.25, 0.5) + level, 0, 255)


def _ink(digit: Pixels, side: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Opacity of a digit, 0 to 1, cut tight around the visible; longer side about `side` pixels."""
    core = digit[_span(digit > 64)]
    small = Image.fromarray(np.pad(core, 1))
    zoom = side / max(core.shape)
    stretch = rng.uniform(0.85, 1.2)
    scaled = small.resize(
        (round(small.width * zoom * stretch), round(small.height * zoom)), Image.Resampling.BICUBIC
    )
    turned = scaled.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
    # Steeper than the interpolation left it: 8 x 8 pixels blown up have no edges.
    opacity = np.clip((np.asarray(turned) / 255 - 0.38) / 0.26, 0, 1)
    return opacity[_span(opacity > 0.5)]


def _span(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and columns of the smallest rectangle around what is True."""
    rows, columns = np.nonzero(mask)
    return slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)


def _free_place(
    shape: tuple[int, ...], size: tuple[int, int], taken: list[Box], rng: np.random.Generator
) -> Box | None:
    height, width = shape
    if width > size[0] or height > size[1]:
        return None
    for _ in range(_TRIES):
        x = int(rng.integers(size[0] - width + 1))
        y = int(rng.integers(size[1] - height + 1))
        box = (x, y, x + width, y + height)
        if all(_overlap(box, other) <= MAX_OVERLAP for other in taken):
            return box
    return None


def _overlap(a: Box, b: Box) -> float:
    """Intersection over the smaller area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(width, 0) * max(height, 0) / smaller


def _paint(
    scene: NDArray[np.float64], ink: NDArray[np.float64], box: Box, rng: np.random.Generator
) -> None:
    """Lay ink of one colour over the scene, far lighter than the ground below it."""
    x0, y0, x1, y1 = box
    ground = scene[y0:y1, x0:x1]
    colour = ground.mean() + rng.uniform(110, 160) + rng.uniform(-30, 30, 3)
    opacity = ink[:, :, None]
    ground[:] = ground * (1 - opacity) + np.clip(colour, 0, 255) * opacity
