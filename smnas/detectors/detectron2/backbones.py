"""Backbones that detectron2 lacks, as its `Backbone`s, and torchvision's weights for those it has.

The parts name these in their configs; `registry` has them for plain ones. Imports detectron2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from smnas.detectors import backbones
from smnas.detectors.detectron2.layers import Norm, norm_hook, standardized
from smnas.detectors.serial import check_norm
from smnas.detectors.strings import EXPANSIONS, BackboneString


class MobileNetV2(Backbone):
    """The layers of `smnas.detectors.backbones`, which are torchvision's, with maps `res2` to
    `res5`.

    Args:
        norm: one of `NORMS`.

    Raises:
        SpaceError: unknown norm.
    """

    def __init__(self, norm: str = "gn_ws") -> None:
        super().__init__()
        self.layers = backbones.Backbone("mobilenet_v2", norm=norm)
        stages = {f"res{level}": stage for level, stage in self.layers.stages.items()}
        self._out_features = list(stages)
        self._out_feature_channels = {name: stage.channels for name, stage in stages.items()}
        self._out_feature_strides = {name: stage.stride for name, stage in stages.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {f"res{level}": hidden for level, hidden in self.layers(x).items()}


class SerialBackbone(ResNet):
    """What a backbone string says (see `smnas.detectors.serial`), out of detectron2's blocks.

    Args:
        string: such as `basicblock_64_11-21-21-21`.
        norm: `gn_ws`, `gn` or `bn`.

    Raises:
        SpaceError: malformed string, unknown or frozen norm.
    """

    def __init__(self, string: str, norm: str = "gn_ws") -> None:
        code = BackboneString.parse(string)
        check_norm(norm, string)
        # a width that 32 does not divide is doubled, not made whole
        hook = norm_hook(norm, code.base_width)
        super().__init__(BasicStem(out_channels=code.base_width, norm=hook), _stages(code, hook))
        self._out_features = list(self.stage_names)
        standardized(self)


def _stages(code: BackboneString, norm: Norm) -> list[list[nn.Module]]:
    stages: list[list[nn.Module]] = []
    inputs = width = code.base_width
    for number, stage in enumerate(code.stages):
        stages.append([])
        for index, doubling in enumerate(stage):
            width *= int(doubling)
            stride = 2 if number and index == 0 else 1
            stages[-1].append(_block(code, inputs, width, stride, norm))
            inputs = width * EXPANSIONS[code.kind]
    return stages


def _block(code: BackboneString, inputs: int, width: int, stride: int, norm: Norm) -> nn.Module:
    outputs = width * EXPANSIONS[code.kind]
    if code.kind == "basicblock":
        block = BasicBlock(inputs, outputs, stride=stride, norm=norm)
    else:
        wide = code.kind == "resnext"
        block = BottleneckBlock(
            inputs,
            outputs,
            bottleneck_channels=2 * width if wide else width,
            num_groups=code.base_width // 2 if wide else 1,
            stride=stride,
            norm=norm,
        )
    # detectron2's blocks project only where the width changes, not where the stride alone does
    if stride > 1 and block.shortcut is None:
        norm_layer = get_norm(norm, outputs)
        block.shortcut = Conv2d(inputs, outputs, 1, stride=stride, bias=False, norm=norm_layer)
        c2_msra_fill(block.shortcut)
    return block


_RENAMED = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


def detectron2_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a ResNet's layers of torchvision under the names that detectron2 has for it."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def load_imagenet(backbone: Backbone, name: str, norm: str) -> None:
    """Gives a backbone torchvision's ImageNet weights, downloaded once.

    Args:
        backbone: `MobileNetV2`, or detectron2's ResNet with 3x3 convolutions that stride.
        name: one of `PRETRAINED_BACKBONES`.
        norm: `bn` or `frozen_bn`.
    """
    source = backbones.Backbone(name, norm=norm, pretrained=True)
    if isinstance(backbone, MobileNetV2):
        backbone.layers.load_state_dict(source.state_dict())
    else:
        backbone.load_state_dict(detectron2_names(source.body.state_dict()))
