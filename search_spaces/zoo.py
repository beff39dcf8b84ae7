"""Named detectors: two that SM-NAS found and the usual hand-made ones, as samples of the spaces.

What a search is compared with. `smnas describe --zoo` prints it; `build` makes any of them. Nothing
of a search imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from smnas.detectors.space import load_space
from smnas.errors import SpaceError, nearest
from smnas.objectives.cost import count_parameters
from smnas.records import Option, Sample


@dataclass(frozen=True)
class Published:
    """What others measured of a detector with COCO's 80 classes.

    Args:
        source: who, where and how.
        map: on COCO's validation set, 0 to 1.
        latency_ms: of one picture on the source's device.
        params_m: millions of parameters; None where the source does not say.
    """

    source: str
    map: float
    latency_ms: float
    params_m: float | None = None


@dataclass(frozen=True)
class Architecture:
    """A detector by name.

    Args:
        name: lower case, for commands and files.
        space: `package.module:Class` of the search space that it belongs to.
        space_args: of that space, by name.
        sample: of that space.
        published: what is known of it; None for nothing that could be cited.
        note: what the name does not say; of SM-NAS's detectors the backbone string.
    """

    name: str
    space: str
    space_args: Mapping[str, Any]
    sample: Sample
    published: Published | None = None
    note: str = ""

    def at(self, input_size: str) -> Architecture:
        """The same for pictures of another size, without what was published of it."""
        arguments = {**self.space_args, "input_sizes": [input_size]}
        sample = {**self.sample, "input_size": input_size}
        return replace(self, space_args=arguments, sample=sample, published=None)


def find(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        SpaceError: there is none; says which is near.
    """
    if name not in ZOO:
        raise SpaceError(f"zoo: no architecture named {name!r}{nearest(name, ZOO)}")
    return ZOO[name]


def build(
    name: str,
    *,
    num_classes: int = 80,
    input_size: str | None = None,
    norm: str = "gn_ws",
    library: str = "auto",
) -> nn.Module:
    """A detector by name, newly initialised from torch's global generator.

    Args:
        name: a key of `ZOO`.
        num_classes: without background.
        input_size: WIDTHxHEIGHT instead of the architecture's own.
        norm: `gn_ws`, `gn` or `bn`.
        library: `torchvision`, `detectron2`, or `auto`.

    Raises:
        SpaceError: no such architecture, or an argument is out of range, such as an input too small
            for the architecture's pyramid.
    """
    architecture = find(name) if input_size is None else find(name).at(input_size)
    arguments = {"num_classes": num_classes, "norm": norm, "library": library}
    # The space's default detector is not wanted: it takes neither memory nor random numbers.
    with torch.device("meta"):
        space = load_space(architecture.space, {**architecture.space_args, **arguments})
    return space.freeze(dict(architecture.sample))


def rows() -> list[dict[str, Any]]:
    """All architectures with their counted parameters, as JSON can hold them.

    Counted are the parameters of the whole detector of torchvision's parts, with 80 classes and
    `gn_ws`.
    """
    return [_row(architecture) for architecture in ZOO.values()]


def _row(architecture: Architecture) -> dict[str, Any]:
    with torch.device("meta"):
        parameters = count_parameters(build(architecture.name, library="torchvision"))
    published = architecture.published
    return {
        "name": architecture.name,
        "note": architecture.note,
        "params_m": parameters / 1e6,
        "published": None if published is None else vars(published),
        "space": architecture.space,
        "space_args": dict(architecture.space_args),
        "sample": dict(architecture.sample),
    }


def _hand_made(
    name: str, backbone: str, head: str, published: Published | None = None
) -> Architecture:
    one_stage = head == "retinanet"
    sample: dict[str, Option] = {
        "backbone": backbone,
        "neck": "fpn",
        "neck_start": 3 if one_stage else 2,
        "neck_end": 7 if one_stage else 6,
        "neck_width": 256,
        "rpn": "none" if one_stage else "rpn",
        "head": head,
        "input_size": "1333x800",
    }
    arguments = {"input_sizes": ["1333x800"], "neck_ends": [6, 7]}
    space = "search_spaces.structural:StructuralSpace"
    return Architecture(name, space, arguments, sample, published)


def _sm_nas(name: str, note: str, sample: dict[str, Option], published: Published) -> Architecture:
    arguments = {
        "input_sizes": [sample["input_size"]],
        "neck_ends": [6],
        "blocks_range": [5, 35],
    }
    space = "search_spaces.modular:ModularSpace"
    return Architecture(name, space, arguments, sample, published, note)


# The authors' model zoo prints size, mAP and latency, but no structure. These two are taken to be
# E0 and E3 because they have the printed sizes, within 0.04 %, if parts are understood as they are
# here: each convolution of the pyramid has a GroupNorm and no bias, the RPN three anchors a cell,
# each stage of the head two layers of 1024; a plain head gives boxes for each class, a cascade for
# all classes together. Sizes say nothing of the input size; the printed multiply-adds (22.01 and
# 116.22 billion) are higher than ours at these inputs.
_SM_NAS_SOURCE = "SM-NAS model zoo, COCO minival, V100"
_MMDETECTION = "mmdetection 1.0, COCO val, V100, with data loading"

_ARCHITECTURES = (
    _sm_nas(
        "sm_nas_e0",
        "basicblock_64_1-21-21-12",
        {
            "block": "basicblock",
            "base_width": 64,
            "depth1": 1,
            "depth2": 2,
            "depth3": 2,
            "depth4": 2,
            "double1": 2,
            "double2": 4,
            "double3": 7,
            "neck": "fpn",
            "neck_start": 3,
            "neck_end": 6,
            "neck_width": 128,
            "rpn": "rpn",
            "head": "rcnn",
            "input_size": "512x512",
        },
        Published(_SM_NAS_SOURCE, 0.2711, 24.56, params_m=16.23),
    ),
    _sm_nas(
        "sm_nas_e3",
        "bottleneck_56_211-111111111-2111111-11112111",
        {
            "block": "bottleneck",
            "base_width": 56,
            "depth1": 3,
            "depth2": 9,
            "depth3": 7,
            "depth4": 8,
            "double1": 1,
            "double2": 13,
            "double3": 24,
            "neck": "fpn",
            "neck_start": 2,
            "neck_end": 6,
            "neck_width": 128,
            "rpn": "rpn",
            "head": "cascade3",
            "input_size": "800x600",
        },
        Published(_SM_NAS_SOURCE, 0.4268, 50.71, params_m=52.05),
    ),
    _hand_made("faster_rcnn_mobilenet_v2_fpn", "mobilenet_v2", "rcnn"),
    _hand_made("faster_rcnn_r18_fpn", "resnet18", "rcnn"),
    _hand_made("faster_rcnn_r34_fpn", "resnet34", "rcnn"),
    _hand_made("faster_rcnn_r50_fpn", "resnet50", "rcnn", Published(_MMDETECTION, 0.364, 73.5)),
    _hand_made("faster_rcnn_r101_fpn", "resnet101", "rcnn", Published(_MMDETECTION, 0.385, 84.0)),
    _hand_made("faster_rcnn_x50_fpn", "resnext50", "rcnn"),
    _hand_made("retinanet_r18_fpn", "resnet18", "retinanet"),
    _hand_made("retinanet_r50_fpn", "resnet50", "retinanet", Published(_MMDETECTION, 0.356, 82.6)),
    _hand_made("cascade_rcnn_r18_fpn", "resnet18", "cascade3"),
    _hand_made(
        "cascade_rcnn_r50_fpn", "resnet50", "cascade3", Published(_MMDETECTION, 0.404, 84.0)
    ),
)

ZOO = {architecture.name: architecture for architecture in _ARCHITECTURES}
"""All architectures by name."""
