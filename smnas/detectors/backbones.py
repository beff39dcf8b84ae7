"""Backbones: torchvision's classifiers without their classifier, as pyramids of feature maps.

The torchvision parts build them; necks are wired to the stages that they state. Imports torch and
torchvision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torchvision.models import MobileNetV2, ResNet, get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from smnas.detectors.components import (
    BACKBONES,
    NORMS,
    PRETRAINED_BACKBONES,
    Stage,
    check_option,
)
from smnas.detectors.norms import NormLayer, norm_layer, standardize_weights
from smnas.errors import SpaceError

RESNET_BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnext50": (3, 4, 6, 3),
    "resnext101": (3, 4, 23, 3),
}
"""Blocks of each stage of the ResNets and ResNeXts."""

_RESNET_ENDS = {"layer1": 2, "layer2": 3, "layer3": 4, "layer4": 5}
# The last block of each stride; the last of all is the 1x1 convolution that widens the map to 1280.
_MOBILENET_ENDS = {"3": 2, "6": 3, "13": 4, "18": 5}
_MOBILENET_CHANNELS = (24, 32, 96, 1280)

_WEIGHTS = {"resnext50": "resnext50_32x4d"}
"""torchvision's names where they are not ours."""


class LevelMaps(nn.Module):
    """Layers in a row that give a map of each level: what every backbone is.

    Args:
        body: the layers; their children are run one after the other.
        ends: level of the map that a layer gives, by the layer's name, finest level first.
        channels: of the map of each level.

    Attributes:
        stages: channels and stride of each level.
    """

    def __init__(self, body: nn.Module, ends: Mapping[str, int], channels: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        self._ends = ends
        self.stages = {
            level: Stage(count, 2**level)
            for level, count in zip(ends.values(), channels, strict=True)
        }

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Feature maps `n x channels x height / stride x width / stride`, by level.

        Args:
            images: `n x 3 x height x width`, normalised.
        """
        levels = {}
        hidden = images
        for name, layer in self.body.named_children():
            hidden = layer(hidden)
            if name in self._ends:
                levels[self._ends[name]] = hidden
        return levels


class Backbone(LevelMaps):
    """A classifier's layers that gives the last map of each stride from 4 to 32.

    Nothing is frozen, and residual branches start at full scale, as training from scratch wants it.

    Args:
        name: one of `BACKBONES`.
        norm: one of `NORMS`.
        pretrained: start from torchvision's ImageNet weights (its first version), downloaded once.

    Attributes:
        stages: channels and stride of each level, 2 to 5.

    Raises:
        SpaceError: unknown name or norm, or weights that do not exist for this backbone and norm.
    """

    def __init__(self, name: str, *, norm: str = "gn_ws", pretrained: bool = False) -> None:
        check_backbone(name, norm, pretrained)
        layer, channels = norm_layer(norm), backbone_channels(name)
        if name == "mobilenet_v2":
            super().__init__(_mobilenet(layer, pretrained), _MOBILENET_ENDS, channels)
        else:
            super().__init__(_resnet(name, layer, pretrained), _RESNET_ENDS, channels)
        self.name = name
        standardize_weights(self.body, norm)


def check_backbone(name: str, norm: str, pretrained: bool) -> None:
    """Refuses the arguments that `Backbone` refuses.

    Raises:
        SpaceError: as `Backbone`.
    """
    check_option("backbone", name, BACKBONES)
    check_option("norm", norm, NORMS)
    if pretrained and norm not in ("bn", "frozen_bn"):
        raise SpaceError(
            f"pretrained: ImageNet weights want norm 'bn' or 'frozen_bn', got norm {norm!r}"
        )
    if pretrained and name not in PRETRAINED_BACKBONES:
        raise SpaceError(
            f"pretrained: wanted one of {list(PRETRAINED_BACKBONES)}, which have ImageNet weights,"
            f" got {name!r}"
        )


def is_basic(name: str) -> bool:
    """Whether a ResNet is made of two 3x3 convolutions a block, and not of bottlenecks."""
    return name in ("resnet18", "resnet34")


def backbone_channels(name: str) -> tuple[int, ...]:
    """Channels of a backbone's maps of levels 2 to 5."""
    if name == "mobilenet_v2":
        return _MOBILENET_CHANNELS
    expansion = BasicBlock.expansion if is_basic(name) else Bottleneck.expansion
    return tuple(width * expansion for width in (64, 128, 256, 512))


def _resnet(name: str, layer: NormLayer, pretrained: bool) -> nn.Module:
    groups, width = (32, 4) if name.startswith("resnext") else (1, 64)
    model = ResNet(
        BasicBlock if is_basic(name) else Bottleneck,
        list(RESNET_BLOCKS[name]),
        groups=groups,
        width_per_group=width,
        norm_layer=layer,
    )
    if pretrained:
        _load_imagenet(model, name)
    layers = model.named_children()
    return nn.Sequential(OrderedDict((n, m) for n, m in layers if n not in ("avgpool", "fc")))


def _mobilenet(layer: NormLayer, pretrained: bool) -> nn.Module:
    model = MobileNetV2(norm_layer=layer)
    if pretrained:
        _load_imagenet(model, "mobilenet_v2")
    return model.features


def _load_imagenet(model: nn.Module, name: str) -> None:
    weights = get_model_weights(_WEIGHTS.get(name, name))["IMAGENET1K_V1"]
    model.load_state_dict(weights.get_state_dict(progress=False, check_hash=True))
