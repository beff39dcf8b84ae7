"""Augmentation: where pixels and boxes go, what vanishes, and that one generator decides it all."""

import pytest
import torch
from torch import Tensor

from smnas.training.augment import augment
from smnas.training.recipe import Recipe

HEIGHT, WIDTH = 40, 60


def painted(boxes: list[list[float]]) -> tuple[Tensor, dict[str, Tensor]]:
    """A black picture with a white rectangle at every box."""
    image = torch.zeros(3, HEIGHT, WIDTH)
    for x0, y0, x1, y1 in boxes:
        image[:, int(y0) : int(y1), int(x0) : int(x1)] = 1
    target = {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.arange(1, len(boxes) + 1),
        "image_id": torch.tensor(7),
    }
    return image, target


def augmented(boxes: list[list[float]], recipe: Recipe, seed: int = 0):
    image, target = painted(boxes)
    images, targets = augment(([image], [target]), recipe, torch.Generator().manual_seed(seed))
    return images[0], targets[0]


def test_a_flip_mirrors_pixels_and_boxes():
    image, target = augmented([[10.0, 5.0, 30.0, 25.0]], Recipe(flip=1))
    assert target["boxes"].tolist() == [[30.0, 5.0, 50.0, 25.0]]  # 60 - 30, 60 - 10
    assert torch.equal(image, painted([[30.0, 5.0, 50.0, 25.0]])[0])
    assert type(target["boxes"]) is Tensor and target["image_id"] == 7


def test_nothing_asked_nothing_changed():
    image, target = augmented([[10.0, 5.0, 30.0, 25.0]], Recipe(flip=0))
    assert torch.equal(image, painted([[10.0, 5.0, 30.0, 25.0]])[0])
    assert target["boxes"].tolist() == [[10.0, 5.0, 30.0, 25.0]]


def test_half_of_the_pictures_flip():
    image, target = painted([[0.0, 0.0, 10.0, 10.0]])
    batch = ([image] * 400, [target] * 400)
    _, targets = augment(batch, Recipe(flip=0.5), torch.Generator().manual_seed(0))
    flipped = sum(bool(t["boxes"][0, 0] == 50) for t in targets)
    assert 150 < flipped < 250  # five standard deviations of a fair coin


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_zoom_keeps_the_size_and_boxes_stay_on_their_pixels(factor, seed):
    recipe = Recipe(flip=0.5, scale_jitter=(factor, factor))
    image, target = augmented([[20.0, 10.0, 40.0, 30.0]], recipe, seed)
    assert image.shape == (3, HEIGHT, WIDTH)
    x0, y0, x1, y1 = target["boxes"][0].round().int().tolist()
    assert 0 <= x0 < x1 <= WIDTH and 0 <= y0 < y1 <= HEIGHT
    # The rectangle is white and all else black, up to a pixel of interpolation at its border.
    assert image[:, y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].min() > 0.99
    assert image.sum() / 3 == pytest.approx((x1 - x0) * (y1 - y0), rel=0.1)


def test_a_smaller_picture_is_padded_with_black():
    recipe = Recipe(flip=0, scale_jitter=(0.5, 0.5))
    image, target = augmented([[0.0, 0.0, 60.0, 40.0]], recipe)
    x0, y0, x1, y1 = target["boxes"][0].int().tolist()
    assert (x1 - x0, y1 - y0) == (30, 20)
    assert image.sum() == 3 * 30 * 20 and image[:, y0:y1, x0:x1].min() == 1


def test_boxes_that_leave_the_picture_are_dropped_with_their_labels():
    corners = [[0.0, 0.0, 4.0, 4.0], [56.0, 0.0, 60.0, 4.0], [0.0, 36.0, 4.0, 40.0]]
    recipe = Recipe(flip=0, scale_jitter=(4.0, 4.0))
    for seed in range(10):
        image, target = augmented(corners, recipe, seed)
        # At fourfold zoom a quarter of each side is seen, so at most one of the corners.
        assert len(target["boxes"]) == len(target["labels"]) <= 1
        assert (len(target["boxes"]) == 1) == bool(image.sum() > 0)


def test_a_picture_without_objects_stays_one():
    _, target = augmented([], Recipe(flip=1, scale_jitter=(0.5, 2)))
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)


def test_the_generator_alone_decides():
    recipe = Recipe(flip=0.5, scale_jitter=(0.5, 2))
    before = torch.get_rng_state()
    first, second = augmented([[20.0, 10.0, 40.0, 30.0]], recipe, 3), augmented(
        [[20.0, 10.0, 40.0, 30.0]], recipe, 3
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1]["boxes"], second[1]["boxes"])
    assert torch.equal(torch.get_rng_state(), before)


def test_options_do_not_shift_each_other():
    """With and without zoom, the same pictures flip."""
    image, target = painted([[0.0, 0.0, 10.0, 40.0]])
    batch = ([image] * 20, [target] * 20)
    plain = augment(batch, Recipe(flip=0.5), torch.Generator().manual_seed(1))[1]
    jitter = Recipe(flip=0.5, scale_jitter=(1.0, 1.0))
    zoomed = augment(batch, jitter, torch.Generator().manual_seed(1))[1]
    assert [t["boxes"].tolist() for t in plain] == [t["boxes"].tolist() for t in zoomed]
