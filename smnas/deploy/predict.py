"""What a detector finds in pictures: pictures with boxes, and COCO results (`smnas predict`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms
from torchvision.utils import draw_bounding_boxes

from smnas.data.coco import Example, fitted, read_picture
from smnas.deploy.saved import Category
from smnas.detectors.components import parse_input_size
from smnas.errors import DataError, RunError
from smnas.training.evaluation import coco_results
from smnas.training.precision import autocast

RESULTS_FILE = "results.json"
PICTURES_FILE = "pictures.json"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""Okabe and Ito's, which the colour-blind can tell apart; classes take them in turn."""


def predict(
    detector: nn.Module,
    pictures: Sequence[Path],
    categories: Sequence[Category],
    out: Path,
    *,
    device: torch.device,
    amp: bool = False,
    least_score: float = 0.5,
) -> list[dict[str, Any]]:
    """Looks at pictures; writes each with its boxes, `results.json` and `pictures.json`.

    `results.json` holds COCO results, all detections of the detector; `pictures.json` the pictures
    and categories that they refer to, as a COCO data set without annotations. A drawn picture has
    the name of the file that it was made of, as a PNG; of equal names the later ones get a number.

    Args:
        detector: in evaluation mode, on the device, with its `input_size`.
        pictures: files.
        categories: in the order of labels.
        out: folder; made if it is not there.
        device: where to work.
        amp: mixed precision, on CUDA only.
        least_score: of detections that are drawn, 0 to 1.

    Returns:
        The COCO results.

    Raises:
        DataError: a file is no picture, or would be overwritten.
        RunError: the folder cannot be written.
    """
    size = parse_input_size(str(detector.input_size))
    ids = [int(category["id"]) for category in categories]
    results: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    try:
        places = _places(pictures, out)
        out.mkdir(parents=True, exist_ok=True)
        for number, (file, place) in enumerate(zip(pictures, places, strict=True), 1):
            picture = read_picture(file, "to look at")
            example, found = _look(detector, picture, number, size, device, amp)
            results += coco_results(example, found, ids)
            entries.append(_entry(number, file, picture))
            _drawn(picture, example, found, categories, least_score).save(place)
        _write(out / RESULTS_FILE, results)
        _write(out / PICTURES_FILE, {"images": entries, "categories": list(categories)})
    except OSError as error:
        raise RunError(f"folder {out}: cannot be written: {error.strerror}") from error
    return results


def find_pictures(given: Sequence[Path]) -> list[Path]:
    """Files as they are given, and the pictures of folders by name.

    Raises:
        DataError: there is none.
    """
    found: list[Path] = []
    for path in given:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        found += [p for p in inside if p == path or p.suffix.lower() in SUFFIXES]
    if not found:
        where = ", ".join(map(str, given)) or "nothing"
        raise DataError(
            f"pictures: wanted files ending in {' '.join(SUFFIXES)}, got none in {where}; folders"
            " in folders are not searched"
        )
    return found


def numbered(count: int) -> list[Category]:
    """Categories for a detector whose names nobody has kept."""
    return [{"id": label, "name": f"class {label}"} for label in range(1, count + 1)]


def _look(
    detector: nn.Module,
    picture: Image.Image,
    number: int,
    size: tuple[int, int],
    device: torch.device,
    amp: bool,
) -> tuple[Example, dict[str, Tensor]]:
    pixels, scale = fitted(picture, size)
    image = transforms.to_dtype(pixels, torch.float32, scale=True)
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    with torch.inference_mode(), autocast(device, amp):
        (found,) = detector([image.to(device)])
    return Example(image, *nothing, number, scale), {k: v.cpu() for k, v in found.items()}


def _drawn(
    picture: Image.Image,
    example: Example,
    found: dict[str, Tensor],
    categories: Sequence[Category],
    least_score: float,
) -> Image.Image:
    chosen = found["scores"] >= least_score
    boxes, labels = found["boxes"][chosen] / example.scale, found["labels"][chosen].tolist()
    pixels = transforms.pil_to_tensor(picture)
    if labels:
        scores = found["scores"][chosen].tolist()
        names = [str(categories[label - 1]["name"]) for label in labels]
        pixels = draw_bounding_boxes(
            pixels,
            boxes,
            labels=[f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)],
            colors=[_COLOURS[label % len(_COLOURS)] for label in labels],
            width=max(1, round(max(picture.size) / 300)),
        )
    return transforms.to_pil_image(pixels)


def _places(pictures: Sequence[Path], out: Path) -> list[Path]:
    """Where each picture is drawn.

    Raises:
        DataError: that would overwrite a picture that is looked at.
    """
    names: dict[str, None] = {}
    for file in pictures:
        name, count = f"{file.stem}.png", 1
        while name in names:
            count += 1
            name = f"{file.stem}-{count}.png"
        names[name] = None
    given = {file.resolve() for file in pictures}
    places = [out / name for name in names]
    overwritten = [place for place in places if place.resolve() in given]
    if overwritten:
        raise DataError(
            f"-o: wanted a folder without the pictures, got {out} with {overwritten[0].name}"
        )
    return places


def _entry(number: int, file: Path, picture: Image.Image) -> dict[str, Any]:
    width, height = picture.size
    return {"id": number, "file_name": str(file), "width": width, "height": height}


def _write(path: Path, record: Any) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n")
