"""What all detector libraries share: names of the options, how parts are wired to each other, and
the numbers that come with a structure.

Search spaces and the builders of parts read it. It imports no detector library; `load_library`
finds one by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

from smnas.errors import MissingLibraryError, SpaceError, nearest
from smnas.records import Option

BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext50",
    "resnext101",
    "mobilenet_v2",
)
"""The ResNeXts have 32 groups of 4 channels."""

PRETRAINED_BACKBONES = tuple(name for name in BACKBONES if name != "resnext101")
"""Those for which torchvision has ImageNet weights: it has none for ResNeXt-101 32x4d."""

NECKS = ("fpn", "none")
RPNS = ("rpn", "ga_rpn", "none")
HEADS = ("rcnn", "cascade2", "cascade3", "retinanet")
NORMS = ("gn_ws", "gn", "bn", "frozen_bn")
LIBRARIES = ("auto", "torchvision", "detectron2")

CASCADE_STAGES = {"rcnn": 1, "cascade2": 2, "cascade3": 3}
"""Two-stage heads and how often each classifies and refines a box."""

IMAGE_MEAN = [0.485, 0.456, 0.406]
IMAGE_DEVIATION = [0.229, 0.224, 0.225]
"""Of ImageNet's pictures, red, green, blue."""

SCORE_THRESHOLD = 0.05
NMS_THRESHOLD = 0.5
DETECTIONS_PER_IMAGE = 100
"""As many as COCO counts, for all heads: otherwise their latencies could not be compared."""

RPN_NMS_THRESHOLD = 0.7
ROI_SIZE = 7
CANONICAL_ROI = 224
"""Side in pixels of the RoI that is pooled from level 4 (Lin et al. 2017, FPN, equation 1)."""

FOREGROUND_PRIOR = 0.01
"""Probability of an object, all classes together, that an untrained head gives."""

ASPECT_RATIOS = (0.5, 1.0, 2.0)


class Stage(NamedTuple):
    """What a part states about one of its feature maps, so that the next part can be wired to it.

    Attributes:
        channels: of the map.
        stride: pixels of the input per cell of the map, in both directions.
    """

    channels: int
    stride: int


Stages = Mapping[int, Stage]
"""The feature maps of a part by level, finest first; level `k` has stride `2^k`."""


def check_option(part: str, option: object, options: Sequence[str]) -> None:
    """Refuses what is not among the options of a part.

    Raises:
        SpaceError: with the nearest option, if one is near.
    """
    if option not in options:
        near = nearest(str(option), options)
        raise SpaceError(f"{part}: wanted one of {list(options)}, got {option!r}{near}")


def check_structure(rpn: str, head: str) -> None:
    """Refuses proposals and heads that do not go together.

    Raises:
        SpaceError: unknown options; proposals for a one-stage head; none for a two-stage head.
    """
    check_option("rpn", rpn, RPNS)
    check_option("head", head, HEADS)
    if (rpn == "none") != (head == "retinanet"):
        raise SpaceError(
            f"structure: wanted rpn 'none' with head 'retinanet' and with no other,"
            f" got rpn {rpn!r} with head {head!r}"
        )


def check_list(part: str, options: Sequence[Option], wanted: str) -> None:
    """Refuses what is not a list of at least one option, all different.

    Args:
        part: what the options are for.
        options: as a user gave them.
        wanted: what should have been given, for the message.

    Raises:
        SpaceError: naming the part.
    """
    if not isinstance(options, list | tuple) or not options or len(set(options)) < len(options):
        raise SpaceError(f"{part}: wanted a list of different {wanted}, got {options!r}")


def check_count(part: str, number: object) -> None:
    """Refuses what is not a positive integer.

    Raises:
        SpaceError: naming the part.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise SpaceError(f"{part}: wanted a positive integer, got {number!r}")


def parse_input_size(text: str) -> tuple[int, int]:
    """`"1333x800"` to `(1333, 800)`, in pixels.

    A picture keeps its shape: it is scaled until its shorter or its longer side fits, so a portrait
    comes out as 800x1333.

    Raises:
        SpaceError: not WIDTHxHEIGHT in positive numbers.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", str(text))
    if match is None:
        raise SpaceError(f"input_size: wanted WIDTHxHEIGHT such as '800x600', got {text!r}")
    return int(match[1]), int(match[2])


def map_side(input_size: str, level: int) -> int:
    """Cells on the shorter side of the map of a level from 5 on; pictures are padded to full cells.

    Raises:
        SpaceError: the input size is malformed.
    """
    side = -(-min(parse_input_size(input_size)) // 32)
    for _ in range(5, level):
        side = -(-side // 2)
    return side


# The paper's numbers hold from its smallest input, 512x512, upwards. A smaller picture has fewer
# anchors, in proportion to its area: as many proposals and samples as in a large one would be most
# of them. So they shrink with the area, down to as many proposals as COCO counts detections (100)
# and to batches whose quarter of positives is still a number of boxes (64). Sides of anchors shrink
# with the picture's side, but only to a half: objects are small in a small picture, but anchors of
# fewer strides would fall between the cells and miss their objects by more than matching allows.

FULL_SIDE = 512
FEWEST_PROPOSALS = 100
SMALLEST_BATCH = 64
SMALLEST_ANCHOR_SHARE = 0.5


@dataclass(frozen=True)
class TrainingValues:
    """The numbers that come with a structure (SM-NAS and the papers of the parts).

    Args:
        pre_nms_top_n: boxes of each level that enter the RPN's NMS, under `training` and `testing`.
        post_nms_top_n: proposals of a picture, under `training` and `testing`.
        rpn_batch: anchors sampled per picture for the RPN's losses.
        roi_batch: proposals sampled per picture and stage for the head's losses.
        iou_thresholds: of each stage of the head: lowest IoU of a positive proposal, 0 to 1.
        loss_weights: of each stage of the head.
    """

    pre_nms_top_n: Mapping[str, int]
    post_nms_top_n: Mapping[str, int]
    rpn_batch: int
    roi_batch: int
    iou_thresholds: tuple[float, ...]
    loss_weights: tuple[float, ...]


def training_values(input_size: str, rpn: str, head: str) -> TrainingValues:
    """The numbers for a two-stage structure, scaled down for inputs of less than 512x512 pixels.

    Args:
        input_size: WIDTHxHEIGHT.
        rpn: `rpn` or `ga_rpn`.
        head: a key of `CASCADE_STAGES`.

    Raises:
        SpaceError: the input size is malformed.
    """
    width, height = parse_input_size(input_size)
    area = min(1.0, width * height / FULL_SIDE**2)
    # Guided anchors are so few and so good that a head sees 300, and may ask more of each (SM-NAS).
    guided = rpn == "ga_rpn"
    thresholds = (0.6, 0.7, 0.75) if guided and head != "rcnn" else (0.5, 0.6, 0.7)
    stages = CASCADE_STAGES[head]
    return TrainingValues(
        pre_nms_top_n=_proposals(area, 2000, 1000),
        post_nms_top_n=_proposals(area, 300, 300) if guided else _proposals(area, 2000, 1000),
        rpn_batch=max(SMALLEST_BATCH, round(256 * area)),
        roi_batch=max(SMALLEST_BATCH, round(512 * area)),
        iou_thresholds=thresholds[:stages],
        loss_weights=(1.0, 0.5, 0.25)[:stages],
    )


def _proposals(area: float, training: int, testing: int) -> dict[str, int]:
    return {
        "training": max(FEWEST_PROPOSALS, round(training * area)),
        "testing": max(FEWEST_PROPOSALS, round(testing * area)),
    }


def anchor_share(input_size: str) -> float:
    """Side of anchors, and of whatever is measured against them, over that at full-sized inputs.

    Returns:
        From 0.5 (up to 256x256 pixels) to 1 (from 512x512 pixels).

    Raises:
        SpaceError: the input size is malformed.
    """
    width, height = parse_input_size(input_size)
    side = (width * height) ** 0.5 / FULL_SIDE
    return min(1.0, max(SMALLEST_ANCHOR_SHARE, side))


def anchor_sizes(
    stages: Stages, input_size: str, *, one_stage: bool
) -> tuple[tuple[float, ...], ...]:
    """Sides of the square anchors of each level, in pixels.

    A pyramid has one of 8 strides a level for an RPN (Lin et al. 2017, FPN) and three from 4
    strides on for a one-stage head (Lin et al. 2017, RetinaNet); a single map has five octaves.

    Raises:
        SpaceError: the input size is malformed.
    """
    share = anchor_share(input_size)
    strides = [stage.stride for stage in stages.values()]
    if len(strides) == 1:
        return (tuple(share * octave * strides[0] for octave in (1, 2, 4, 8, 16)),)
    scales = [4 * 2 ** (third / 3) for third in range(3)] if one_stage else [8]
    return tuple(tuple(share * scale * stride for scale in scales) for stride in strides)


def guided_anchor_scale(stages: Stages, input_size: str) -> float:
    """Side, in strides, of the square that a guided anchor starts from.

    Returns:
        8 on a pyramid (Wang et al. 2019), 4 on a single map: the middle of its five octaves; less
        for small inputs.

    Raises:
        SpaceError: the input size is malformed.
    """
    return anchor_share(input_size) * (4 if len(stages) == 1 else 8)


def canonical_roi(input_size: str) -> int:
    """Side in pixels of the RoI that is pooled from level 4.

    Raises:
        SpaceError: the input size is malformed.
    """
    return round(CANONICAL_ROI * anchor_share(input_size))


def background_logit(num_classes: int) -> float:
    """Logit over those of all classes, which are 0, at which a softmax says background."""
    return math.log((1 - FOREGROUND_PRIOR) / FOREGROUND_PRIOR * num_classes)


def resolve_library(name: str) -> str:
    """`torchvision` or `detectron2`; `auto` is detectron2 where it is installed.

    Raises:
        SpaceError: no library of that name.
        MissingLibraryError: detectron2 is wanted and not there.
    """
    check_option("library", name, LIBRARIES)
    if name == "auto":
        return "detectron2" if _has_detectron2() else "torchvision"
    if name == "detectron2" and not _has_detectron2():
        raise MissingLibraryError(
            "library: wanted detectron2, which is not installed; install smnas[detectron2]"
            " (docs/detectron2.md), or use library: torchvision"
        )
    return name


def load_library(name: str) -> ModuleType:
    """The module that builds parts with a library.

    Raises:
        SpaceError: no library of that name.
        MissingLibraryError: detectron2 is wanted and not there.
    """
    modules = {"torchvision": "torchvision", "detectron2": "detectron2.parts"}
    return import_module(f"smnas.detectors.{modules[resolve_library(name)]}")


def _has_detectron2() -> bool:
    return find_spec("detectron2") is not None
