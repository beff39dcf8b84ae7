"""Backbones from backbone strings: torchvision's residual blocks in a row, wherever width doubles.

The torchvision parts build them, the modular space varies them. Imports torch and torchvision.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from smnas.detectors.backbones import LevelMaps
from smnas.detectors.components import NORMS, check_option
from smnas.detectors.norms import NormLayer, norm_layer, standardize_weights
from smnas.detectors.strings import EXPANSIONS, BackboneString
from smnas.errors import SpaceError

FIRST_LEVEL = 2
"""Of the first stage: the stem has stride 4."""


class SerialBackbone(LevelMaps):
    """What a backbone string says (Yao et al. 2020, SM-NAS, modular level).

    A stem as ResNet's, 7x7 of stride 2 to the base width and max-pooling of stride 2; then the
    stages, each but the first with stride 2 in its first block. A block whose stride or number of
    channels differs from its input's has a 1x1 convolution for a shortcut. With the strings of
    ResNets at base 64 it is torchvision's network, in the order and names of its parameters too.

    A block of width `w` is two 3x3 convolutions of `w` channels (`basicblock`); or one of `w`
    channels between 1x1 convolutions, the last to `4w` (`bottleneck`); or the same with a 3x3 one
    of `2w` channels in base / 2 groups (`resnext`): 4 channels a group in blocks of the base width,
    so 32x4d at base 64, and twice as many after each doubling.

    A GroupNorm has 32 groups or, for widths that 32 does not divide, the next smaller divisor of
    the width (`norms.group_count`), so that there is one for every width: base / 2 for bases of 48
    and 56, 24 for 72.

    Nothing is frozen, and residual branches start at full scale, as training from scratch wants it.

    Args:
        string: such as `basicblock_64_11-21-21-21`.
        norm: `gn_ws`, `gn` or `bn`.

    Attributes:
        string: the same, parsed.
        stages: channels and stride of each stage, by level, from 2 on.

    Raises:
        SpaceError: malformed string, unknown norm, or frozen norms, for which there are no weights.
    """

    def __init__(self, string: str, *, norm: str = "gn_ws") -> None:
        code = BackboneString.parse(string)
        check_norm(norm, string)
        layer = norm_layer(norm)
        stages = _stages(code, layer)
        ends = {name: level for level, name in enumerate(stages, FIRST_LEVEL)}
        body = nn.Sequential(OrderedDict({**_stem(code.base_width, layer), **stages}))
        super().__init__(body, ends, code.channels)
        self.string = code
        # torchvision's ResNets draw a classifier first. With it the same seed gives the same
        # weights here and there, and a detector the same mAP, whichever space its sample is from.
        nn.Linear(code.channels[-1], 1000)
        _initialize(self.body)
        standardize_weights(self.body, norm)


def check_norm(norm: str, string: str) -> None:
    """Refuses norms that a backbone string cannot have.

    Raises:
        SpaceError: unknown norm, or frozen norms, for which there are no weights.
    """
    check_option("norm", norm, NORMS)
    if norm == "frozen_bn":
        raise SpaceError(
            f"norm: wanted gn_ws, gn or bn for backbone {string!r}, which has no ImageNet"
            f" weights, got {norm!r}"
        )


def _stem(width: int, layer: NormLayer) -> dict[str, nn.Module]:
    return {
        "conv1": nn.Conv2d(3, width, 7, 2, 3, bias=False),
        "bn1": layer(width),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, 2, 1),
    }


def _stages(code: BackboneString, layer: NormLayer) -> dict[str, nn.Module]:
    stages: dict[str, nn.Module] = {}
    inputs = width = code.base_width
    for number, stage in enumerate(code.stages, 1):
        blocks = []
        for index, doubling in enumerate(stage):
            width *= int(doubling)
            stride = 2 if number > 1 and index == 0 else 1
            blocks.append(_block(code, inputs, width, stride, layer))
            inputs = width * EXPANSIONS[code.kind]
        stages[f"layer{number}"] = nn.Sequential(*blocks)
    return stages


def _block(
    code: BackboneString, inputs: int, width: int, stride: int, layer: NormLayer
) -> nn.Module:
    outputs = width * EXPANSIONS[code.kind]
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), layer(outputs))
    if code.kind == "basicblock":
        return BasicBlock(inputs, width, stride, shortcut, norm_layer=layer)
    if code.kind == "bottleneck":
        return Bottleneck(inputs, width, stride, shortcut, norm_layer=layer)
    groups = code.base_width // 2
    return Bottleneck(
        inputs,
        width,
        stride,
        shortcut,
        groups=groups,
        base_width=_width_per_group(2 * width // groups, width),
        norm_layer=layer,
    )


def _width_per_group(channels: int, width: int) -> float:
    """torchvision's `base_width` that gives the 3x3 convolution so many channels a group.

    It rounds `width * base_width / 64` down: half a channel more keeps it from losing one.
    """
    return (channels + 0.5) * 64 / width


def _initialize(body: nn.Module) -> None:
    """As torchvision initialises its ResNets; norms start as they are, at full scale."""
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
