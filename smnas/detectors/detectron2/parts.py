"""Detectors out of detectron2's components: the parts, and twins of them that a space may vary.

A part states its stages and says in detectron2's own words, a LazyConfig, what it is; `Detector`
puts the configs together and builds the whole. What is trained and what `lazy` writes down are
therefore one. This is the detectron2 side of `components.load_library`.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import Tensor, nn

from smnas.detectors.backbones import backbone_channels, check_backbone
from smnas.detectors.components import (
    Stage,
    Stages,
    background_logit,
    check_count,
    check_structure,
    training_values,
)
from smnas.detectors.detectron2 import backbones, configs
from smnas.detectors.nas import ParametrizedModule
from smnas.detectors.necks import neck_stages
from smnas.detectors.serial import FIRST_LEVEL, check_norm
from smnas.detectors.strings import BackboneString
from smnas.detectors.transform import Transform
from smnas.errors import TrialFailure

Picture = Tensor
Objects = dict[str, Tensor]


class Backbone(nn.Module):
    """As `smnas.detectors.backbones.Backbone`, with maps `res2` to `res5`.

    Args:
        name: one of `BACKBONES`.
        norm: one of `NORMS`.
        pretrained: start from torchvision's ImageNet weights, downloaded once.

    Attributes:
        stages: channels and stride of each level, 2 to 5.
        config: of a `Backbone` of detectron2.

    Raises:
        SpaceError: unknown name or norm, or weights that do not exist for this backbone and norm.
    """

    def __init__(self, name: str, *, norm: str = "gn_ws", pretrained: bool = False) -> None:
        super().__init__()
        check_backbone(name, norm, pretrained)
        self.norm = norm
        self.pretrained = name if pretrained else None
        channels = enumerate(backbone_channels(name), FIRST_LEVEL)
        self.stages = {level: Stage(count, 2**level) for level, count in channels}
        self.config = (
            L(backbones.MobileNetV2)(norm=norm)
            if name == "mobilenet_v2"
            else configs.resnet(name, norm)
        )


class SerialBackbone(nn.Module):
    """As `smnas.detectors.serial.SerialBackbone`, with a map `res2` and so on of each stage.

    Args:
        string: such as `basicblock_64_11-21-21-21`.
        norm: `gn_ws`, `gn` or `bn`.

    Attributes:
        stages: channels and stride of each stage, by level, from 2 on.
        config: of a `Backbone` of detectron2.

    Raises:
        SpaceError: malformed string, unknown norm, or frozen norms.
    """

    pretrained = None

    def __init__(self, string: str, *, norm: str = "gn_ws") -> None:
        super().__init__()
        channels = enumerate(BackboneString.parse(string).channels, FIRST_LEVEL)
        check_norm(norm, string)
        self.norm = norm
        self.stages = {level: Stage(count, 2**level) for level, count in channels}
        self.config = L(backbones.SerialBackbone)(string=string, norm=norm)


class Neck(nn.Module):
    """As `smnas.detectors.necks.Neck`, with maps `p2` and so on.

    Attributes:
        stages: channels and stride of each map, finest first.

    Raises:
        SpaceError: unknown kind or norm, levels or a width that are out of range, or levels that
            the backbone does not have.
    """

    def __init__(
        self,
        kind: str,
        stages: Stages,
        *,
        start: int = 2,
        end: int = 5,
        width: int = 256,
        norm: str = "gn_ws",
        one_stage: bool = False,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.stages = neck_stages(
            kind, stages, start=start, end=end, width=width, one_stage=one_stage
        )
        self.norm = norm
        self.one_stage = one_stage

    def on(self, bottom_up: DictConfig) -> DictConfig:
        """Config of a `Backbone` of detectron2: this neck on that backbone."""
        kind, stages, one_stage = self.kind, self.stages, self.one_stage
        return configs.neck(kind, stages, bottom_up, norm=self.norm, one_stage=one_stage)


class Proposals(nn.Module):
    """What proposes boxes to a two-stage head.

    Args:
        kind: one of `RPNS`; `none` in a one-stage detector.
        stages: what the neck states.
        input_size: WIDTHxHEIGHT.
        head: kind of the head that takes the proposals; one of `HEADS`.

    Attributes:
        config: of a proposal generator of detectron2; None for none.

    Raises:
        SpaceError: unknown kind, or a kind and a head that do not go together.
    """

    def __init__(self, kind: str, stages: Stages, *, input_size: str, head: str) -> None:
        super().__init__()
        check_structure(kind, head)
        self.config = None
        if kind != "none":
            values = training_values(input_size, kind, head)
            build = configs.guided_rpn if kind == "ga_rpn" else configs.rpn
            self.config = build(stages, input_size, values)


class Head(nn.Module):
    """What classifies: RetinaNet's head on every cell, or an R-CNN or Cascade head on proposals.

    Args:
        kind: one of `HEADS`.
        stages: what the neck states.
        num_classes: without background.
        input_size: WIDTHxHEIGHT.
        rpn: kind of the proposals; one of `RPNS`.
        width: of the two fully connected layers of R-CNN and Cascade heads.
        norm: one of `NORMS`; a GroupNorm follows RetinaNet's convolutions, no other norm does.

    Attributes:
        config: of the `RetinaNet`, which still lacks its backbone, or of RoI heads of detectron2.

    Raises:
        SpaceError: unknown kind or norm, kind and proposals that do not go together, or a number
            of classes or a width that is not positive.
    """

    def __init__(
        self,
        kind: str,
        stages: Stages,
        *,
        num_classes: int,
        input_size: str,
        rpn: str,
        width: int = 1024,
        norm: str = "gn_ws",
    ) -> None:
        super().__init__()
        check_structure(rpn, kind)
        check_count("num_classes", num_classes)
        check_count("head_width", width)
        self.kind = kind
        self.num_classes = num_classes
        self.input_size = input_size
        if kind == "retinanet":
            self.config = configs.retinanet(stages, input_size, num_classes, norm)
        else:
            values = training_values(input_size, rpn, kind)
            self.config = configs.roi_heads(stages, input_size, num_classes, width, values)


class Detector(nn.Module):
    """Parts as one detector of detectron2, behind our calls.

    Args:
        backbone: made for the neck.
        neck: made for the proposals and the head.
        proposals: `none` makes it a one-stage detector.
        head: its input size is the detector's.

    Attributes:
        config: LazyConfig of the model; plain detectron2 builds from it what `model` is.
        model: detectron2's.
    """

    def __init__(
        self, backbone: Backbone | SerialBackbone, neck: Neck, proposals: Proposals, head: Head
    ) -> None:
        super().__init__()
        self.num_classes = head.num_classes
        self.input_size = head.input_size
        self.transform = Transform(head.input_size)
        features = neck.on(backbone.config)
        self.config = configs.detector(features, proposals.config, head.config, backbone.norm)
        self.model: nn.Module = instantiate(self.config)
        if backbone.pretrained is not None:
            bottom_up = self.model.backbone.bottom_up
            backbones.load_imagenet(bottom_up, backbone.pretrained, backbone.norm)
        for module in self.model.modules():
            if isinstance(module, FastRCNNOutputLayers):
                _set_background_prior(module.cls_score)
            if isinstance(module, FastRCNNOutputLayers | StandardRPNHead | RetinaNetHead):
                module.register_forward_hook(_in_float32)

    def forward(
        self, images: list[Picture], targets: list[Objects] | None = None
    ) -> dict[str, Tensor] | list[Objects]:
        """Losses in training, detections in eval.

        Args:
            images: `3 x height x width` each, of any size, 0 to 1; scaled to the input size inside.
            targets: of each picture `boxes` (`n x 4`, x1 y1 x2 y2 in its own pixels) and `labels`
                (`n`, 1 to the number of classes); required in training.

        Returns:
            Scalars by name; or of each picture `boxes`, `labels` and `scores` (0 to 1, falling).

        Raises:
            ValueError: in training without targets.
            TrialFailure: the training diverged.
        """
        if not self.training:
            found = self.model([self._input(image, None) for image in images])
            return [_detections(one["instances"]) for one in found]
        if targets is None:
            raise ValueError("a detector in training wants targets, got None")
        pairs = zip(images, targets, strict=True)
        inputs = [self._input(image, target) for image, target in pairs]
        try:
            # detectron2 writes its statistics somewhere, or fails
            with EventStorage():
                return self.model(inputs)
        except FloatingPointError as error:
            raise TrialFailure("nan_loss", str(error)) from error

    def _input(self, image: Picture, target: Objects | None) -> dict[str, Any]:
        """What detectron2 takes for one picture: scaled; its own size is that of the results."""
        height, width = image.shape[-2:]
        scaled, objects = self.transform.resize(image, target)
        taken = {"image": scaled * configs.COLOURS, "height": height, "width": width}
        if objects is None:
            return taken
        instances = Instances(
            tuple(scaled.shape[-2:]),
            gt_boxes=Boxes(objects["boxes"]),
            gt_classes=objects["labels"] - 1,
        )
        return {**taken, "instances": instances}


def _detections(instances: Instances) -> Objects:
    return {
        "boxes": instances.pred_boxes.tensor,
        "labels": instances.pred_classes + 1,
        "scores": instances.scores,
    }


def _in_float32(
    module: nn.Module, inputs: object, output: tuple[Tensor | list[Tensor], ...]
) -> tuple[Tensor | list[Tensor], ...]:
    """What becomes a box or a score leaves its head in float32, as in `detectors.torchvision`."""
    return tuple(
        part.float() if isinstance(part, Tensor) else [level.float() for level in part]
        for part in output
    )


@torch.no_grad()
def _set_background_prior(classifier: nn.Linear) -> None:
    """Lets an untrained softmax say background, which is detectron2's last class."""
    classifier.bias[-1] = background_logit(classifier.out_features - 1)


class MutableBackbone(ParametrizedModule, Backbone, wraps=Backbone):  # type: ignore[call-arg]
    """`Backbone` whose arguments may be choices."""


class MutableSerialBackbone(  # type: ignore[call-arg]
    ParametrizedModule, SerialBackbone, wraps=SerialBackbone
):
    """`SerialBackbone` whose arguments may be choices."""


class MutableNeck(ParametrizedModule, Neck, wraps=Neck):  # type: ignore[call-arg]
    """`Neck` whose arguments may be choices."""


class MutableProposals(ParametrizedModule, Proposals, wraps=Proposals):  # type: ignore[call-arg]
    """`Proposals` whose arguments may be choices."""


class MutableHead(ParametrizedModule, Head, wraps=Head):  # type: ignore[call-arg]
    """`Head` whose arguments may be choices."""
