"""Random flips and zooms of pictures with their boxes, driven by a generator that the caller owns.

The loop applies them on the device, after the batch has been moved there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from smnas.training.recipe import Recipe

Targets = list[dict[str, Tensor]]
Batch = tuple[list[Tensor], Targets]


def augment(batch: Batch, recipe: Recipe, generator: torch.Generator) -> Batch:
    """Flip and zoom each picture with its boxes, as the recipe says; sizes stay.

    Every picture takes the same count of random numbers, whatever becomes of it, so that one option
    does not shift the others.
    """
    pairs = [_augmented(*pair, recipe, generator) for pair in zip(*batch, strict=True)]
    return [image for image, _ in pairs], [target for _, target in pairs]


def _augmented(
    image: Tensor, target: dict[str, Tensor], recipe: Recipe, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    chance, *zoom = torch.rand(4, generator=generator).tolist()
    height, width = image.shape[-2:]
    boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(height, width))
    labels = target["labels"]
    if chance < recipe.flip:
        image, boxes = transforms.horizontal_flip(image), transforms.horizontal_flip(boxes)
    if recipe.scale_jitter is not None:
        image, boxes = _zoomed(image, boxes, recipe.scale_jitter, *zoom)
        boxes, kept = transforms.sanitize_bounding_boxes(boxes)
        labels = labels[kept]
    return image, {**target, "boxes": boxes.as_subclass(Tensor), "labels": labels}


def _zoomed(
    image: Tensor,
    boxes: tv_tensors.BoundingBoxes,
    jitter: tuple[float, float],
    zoom: float,
    down: float,
    right: float,
) -> tuple[Tensor, tv_tensors.BoundingBoxes]:
    """Resize by a factor in `jitter`, then cut the old size out, or pad to it; random in [0, 1)."""
    factor = jitter[0] + (jitter[1] - jitter[0]) * zoom
    height, width = image.shape[-2:]
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    top, left = round(down * (size[0] - height)), round(right * (size[1] - width))
    image = transforms.crop(transforms.resize(image, size), top, left, height, width)
    boxes = transforms.crop(transforms.resize(boxes, size), top, left, height, width)
    return image, transforms.clamp_bounding_boxes(boxes)
