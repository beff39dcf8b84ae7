"""What tests of two detector libraries share: structures that cover every option, how their
parameter counts may differ, and weights copied from torchvision's names to detectron2's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.zoo import find
from smnas.detectors.space import load_space
from smnas.records import Sample

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

STRUCTURAL = "search_spaces.structural:StructuralSpace"
MODULAR = "search_spaces.modular:ModularSpace"

_LABELS = ("backbone", "neck", "neck_start", "neck_end", "neck_width", "rpn", "head")
_ROWS = {
    "resnet18": ("fpn", 2, 5, 64, "rpn", "rcnn"),
    "resnet34": ("fpn", 3, 6, 128, "rpn", "cascade2"),
    "resnet50": ("fpn", 2, 6, 256, "ga_rpn", "rcnn"),
    "resnet101": ("fpn", 3, 5, 128, "ga_rpn", "cascade3"),
    "resnext50": ("fpn", 3, 7, 256, "none", "retinanet"),
    "resnext101": ("none", 2, 5, 64, "rpn", "cascade3"),
    "mobilenet_v2": ("fpn", 3, 6, 64, "none", "retinanet"),
}

STRUCTURES = [dict(zip(_LABELS, (name, *row), strict=True)) for name, row in _ROWS.items()]
"""Samples of the structural space, without input size, that together have all its options."""

STRINGS = (
    "basicblock_64_1-21-21-12",
    "bottleneck_56_211-111111111-2111111-11112111",
    "resnext_48_12-11-2-21",
)
"""Backbone strings of every kind of block, with strides that do and do not double the width."""


def evolved(library: str) -> nn.Module:
    """E0 of SM-NAS at a small input, a sample of the modular space."""
    return build(library, E0, "160x160", MODULAR, **E0_ARGUMENTS)


E0 = find("sm_nas_e0").at("160x160").sample
E0_ARGUMENTS = {"blocks_range": [5, 35], "neck_ends": [5, 6]}


def smallest_input(sample: Sample) -> str:
    """A square input with 3x3 cells on the sample's coarsest level."""
    return {5: "96x96", 6: "160x160", 7: "288x288"}[int(sample["neck_end"])]


def build(
    library: str, sample: Sample, input_size: str, space: str = STRUCTURAL, **arguments: Any
) -> nn.Module:
    """The detector of a sample with small heads, 3 classes."""
    given = {"num_classes": 3, "head_width": 64, "neck_ends": [5, 6, 7], **arguments}
    with torch.device("meta"):
        opened = load_space(space, {**given, "input_sizes": [input_size], "library": library})
    torch.manual_seed(0)
    return opened.freeze({**sample, "input_size": input_size})


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def explained(head: str, norm: str, head_width: int, neck_width: int) -> tuple[int, str]:
    """What detectron2 has less than torchvision (or more, negative), and why."""
    if head == "rcnn":
        return 4 * (head_width + 1), "torchvision predicts boxes of the background, too"
    if head == "retinanet" and norm.startswith("gn"):
        return -8 * neck_width, "detectron2 has biases in front of the head's norms"
    return 0, ""


def fill(module: nn.Module) -> None:
    """Makes norms, too, tell one weight from another."""
    generator = torch.Generator().manual_seed(1)
    for name, value in module.state_dict().items():
        if value.dim() == 1:
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(noise - 0.5 if name.endswith(("bias", "mean")) else noise + 0.5)


def _renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def features_state(body: nn.Module, neck: nn.Module) -> dict[str, Tensor]:
    """The state of torchvision's backbone and neck under detectron2's names."""
    from smnas.detectors.detectron2.backbones import detectron2_names

    if hasattr(body, "name") and body.name == "mobilenet_v2":
        inside = {f"layers.{name}": value for name, value in body.state_dict().items()}
    else:
        inside = detectron2_names(body.body.state_dict())
    first = neck.inputs[0]
    rules = (
        (r"^extra_blocks\.convs\.0", "top_block.p6"),
        (r"^extra_blocks\.convs\.1", "top_block.p7"),
        *(
            (rf"^{theirs}\.{index}\.", f"{ours}{first + index}.")
            for theirs, ours in (("inner_blocks", "fpn_lateral"), ("layer_blocks", "fpn_output"))
            for index in range(4)
        ),
        (r"^(0|fpn_\w+\d\.0)\.", lambda m: "narrow." if m[1] == "0" else m[1][:-1]),
        (r"^(1|fpn_\w+\d\.1)\.", lambda m: ("narrow." if m[1] == "1" else m[1][:-1]) + "norm."),
    )
    outside = _renamed(neck.maps.state_dict(), rules)
    return {**{f"bottom_up.{name}": value for name, value in inside.items()}, **outside}


def detector_state(theirs: nn.Module) -> dict[str, Tensor]:
    """The state of torchvision's whole detector under detectron2's names, its classes in
    detectron2's order and without boxes of the background.
    """
    model = theirs.model
    features = features_state(model.backbone.backbone, model.backbone.neck)
    state = {f"backbone.{name}": value for name, value in features.items()}
    if hasattr(model, "rpn"):
        return {**state, **_proposals(model.rpn.rpn), **_roi_heads(model.roi_heads.module)}
    return {**state, **_retinanet(model)}


def _by_size(value: Tensor, sizes: int) -> Tensor:
    """A cell's anchors: torchvision's are by ratio and size, detectron2's by size and ratio."""
    by_ratio = value.reshape(3, sizes, -1, *value.shape[1:])
    return by_ratio.transpose(0, 1).reshape(value.shape)


def _proposals(rpn: nn.Module) -> dict[str, Tensor]:
    state = rpn.head.state_dict()
    if "conv.0.0.weight" in state:
        sizes = len(rpn.anchor_generator.sizes[0])
        last = {name: _by_size(v, sizes) for name, v in state.items() if "conv" not in name}
        rules: Rules = (
            ("conv.0.0", "conv"),
            ("cls_logits", "objectness_logits"),
            ("bbox_pred", "anchor_deltas"),
        )
        state = _renamed({**state, **last}, rules)
    return {f"proposal_generator.rpn_head.{name}": value for name, value in state.items()}


def _roi_heads(heads: nn.Module) -> dict[str, Tensor]:
    stages = list(getattr(heads, "stages", [heads]))
    state = {}
    for number, stage in enumerate(stages):
        mark = f".{number}" if len(stages) > 1 else ""
        for name, value in stage.box_head.state_dict().items():
            renamed = name.replace("fc6", "fc1").replace("fc7", "fc2")
            state[f"roi_heads.box_head{mark}.{renamed}"] = value
        for name, value in stage.box_predictor.state_dict().items():
            if name.startswith("cls_score"):
                value = value.roll(-1, 0)
            elif len(stages) == 1:
                value = value[4:]
            state[f"roi_heads.box_predictor{mark}.{name}"] = value
    return state


def _retinanet(model: nn.Module) -> dict[str, Tensor]:
    state = {}
    sizes = len(model.anchor_generator.sizes[0])
    for part, subnet, last, ours in (
        ("classification_head", "cls_subnet", "cls_logits", "cls_score"),
        ("regression_head", "bbox_subnet", "bbox_reg", "bbox_pred"),
    ):
        head = getattr(model.head, part)
        for index, (conv, norm, _) in enumerate(head.conv):
            state[f"head.{subnet}.{3 * index}.weight"] = conv.weight
            state[f"head.{subnet}.{3 * index}.bias"] = torch.zeros(conv.out_channels)
            state[f"head.{subnet}.{3 * index + 1}.weight"] = norm.weight
            state[f"head.{subnet}.{3 * index + 1}.bias"] = norm.bias
        for name, value in getattr(head, last).state_dict().items():
            state[f"head.{ours}.{name}"] = _by_size(value, sizes)
    return state
