"""A few pictures of the search split with what a trained detector finds in them, for reports.

The trial calls it after training and keeps the record in its folder. Must not import the search,
spaces or builders.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from smnas.data.coco import CocoDataset, Example
from smnas.quiet import QuietDevice
from smnas.training.precision import autocast

PICTURES = 4
LEAST_SCORE = 0.05
MOST_BOXES = 20
"""Detections kept of a picture, the surest ones."""


def find_examples(
    model: nn.Module,
    dataset: CocoDataset,
    *,
    device: torch.device,
    quiet: QuietDevice,
    amp: bool = False,
) -> dict[str, Any]:
    """Detections in the same few pictures whichever detector looks.

    Args:
        model: as in `smnas.training.evaluation.evaluate`, on the device.
        dataset: the search split at the detector's input size.
        amp: mixed precision, on CUDA only.

    Returns:
        Plain JSON: `categories`, names in the order of labels, which count from 1, and
        `category_ids`, what the annotations call them; `pictures`, each with its `file`, `width`,
        `height`, `truth` (`[x0, y0, x1, y1, label]` an object) and `found` (the same and a score,
        above `LEAST_SCORE`, surest first). Boxes are in pixels of the file.
    """
    chosen = dataset.view(_spread(_with_objects(dataset)), dataset.input_size)
    was_training = model.training
    model.eval()
    pictures = []
    with quiet.working(), torch.inference_mode(), autocast(device, amp):
        for index, image_id in enumerate(chosen.image_ids):
            example = chosen[index]
            (detection,) = model([example.image.to(device)])
            file = (dataset.part.images / dataset.coco.imgs[image_id]["file_name"]).resolve()
            pictures.append({"file": str(file), **_record(example, detection)})
    model.train(was_training)
    return {
        "categories": dataset.categories,
        "category_ids": dataset.category_ids,
        "pictures": pictures,
    }


def _with_objects(dataset: CocoDataset) -> list[int]:
    return [key for key in dataset.image_ids if dataset.coco.imgToAnns.get(key)]


def _spread(image_ids: list[int]) -> list[int]:
    """So many as `PICTURES` evenly out of all: neighbours are often frames of one scene."""
    return image_ids[:: -(-len(image_ids) // PICTURES)] if image_ids else []


def _record(example: Example, detection: dict[str, Tensor]) -> dict[str, Any]:
    boxes, labels, scores = (detection[key].cpu() for key in ("boxes", "labels", "scores"))
    kept = boxes.isfinite().all(dim=1) & (scores > LEAST_SCORE)
    order = scores[kept].argsort(descending=True)[:MOST_BOXES]
    found = [
        [*box, label, round(score, 3)]
        for box, label, score in zip(
            _corners(boxes[kept][order], example.scale),
            labels[kept][order].tolist(),
            scores[kept][order].tolist(),
            strict=True,
        )
    ]
    truth = zip(_corners(example.boxes, example.scale), example.labels.tolist(), strict=True)
    height, width = (round(side / example.scale) for side in example.image.shape[1:])
    return {
        "width": width,
        "height": height,
        "truth": [[*box, label] for box, label in truth],
        "found": found,
    }


def _corners(boxes: Tensor, scale: float) -> list[list[float]]:
    return [[round(value, 1) for value in box] for box in (boxes.double() / scale).tolist()]
