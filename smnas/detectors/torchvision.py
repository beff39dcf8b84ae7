"""Detectors out of torchvision's components: the parts, and twins of them that a space may vary.

A search space wires `MutableBackbone` or `MutableSerialBackbone`, `MutableNeck`, `MutableProposals`
and `MutableHead` to a `Detector`; frozen, they are the plain parts. Guided anchoring and cascades,
which torchvision lacks, have modules of their own. This is the torchvision side of
`components.load_library`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from smnas.detectors.backbones import Backbone, LevelMaps
from smnas.detectors.cascade import (
    BOX_WEIGHTS,
    CascadeHeads,
    CascadeStage,
    ClassAgnosticPredictor,
)
from smnas.detectors.components import (
    ASPECT_RATIOS,
    DETECTIONS_PER_IMAGE,
    NMS_THRESHOLD,
    ROI_SIZE,
    RPN_NMS_THRESHOLD,
    SCORE_THRESHOLD,
    Stages,
    TrainingValues,
    anchor_sizes,
    background_logit,
    canonical_roi,
    check_count,
    check_structure,
    guided_anchor_scale,
    training_values,
)
from smnas.detectors.guided_anchoring import GuidedAnchorRPN
from smnas.detectors.nas import ParametrizedModule
from smnas.detectors.necks import TOP_LEVEL, Neck
from smnas.detectors.norms import head_norm_layer, standardize_weights
from smnas.detectors.serial import SerialBackbone
from smnas.detectors.transform import Transform

Picture = Tensor
Boxes = dict[str, Tensor]


class Proposals(nn.Module):
    """What proposes boxes to a two-stage head; an empty part in a one-stage detector.

    Args:
        kind: one of `RPNS`.
        stages: what the neck states.
        input_size: WIDTHxHEIGHT.
        head: kind of the head that takes the proposals; one of `HEADS`.

    Raises:
        SpaceError: unknown kind, or a kind and a head that do not go together.
    """

    def __init__(self, kind: str, stages: Stages, *, input_size: str, head: str) -> None:
        super().__init__()
        check_structure(kind, head)
        self.kind = kind
        if kind != "none":
            values = training_values(input_size, kind, head)
            build = _guided_rpn if kind == "ga_rpn" else _rpn
            self.rpn = build(stages, input_size, values)

    def forward(
        self,
        images: ImageList,
        features: dict[int, Tensor],
        targets: list[Boxes] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals `n x 4` of each picture and, in training, losses."""
        return self.rpn(images, features, targets)


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
            self.anchors = _Anchors(stages, input_size, one_stage=True)
            self.module: nn.Module = _retinanet_head(stages, self.anchors, num_classes, norm)
        else:
            values = training_values(input_size, rpn, kind)
            self.module = _roi_heads(stages, input_size, num_classes, width, values)

    def forward(
        self,
        features: dict[int, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Boxes] | None = None,
    ) -> tuple[list[Boxes], dict[str, Tensor]]:
        """Of a two-stage head: detections of each picture in eval, losses in training."""
        return self.module(features, proposals, image_shapes, targets)


class Detector(nn.Module):
    """Parts as one detector.

    Args:
        backbone: made for the neck.
        neck: made for the proposals and the head.
        proposals: `none` makes it a one-stage detector.
        head: its input size is the detector's.
    """

    def __init__(self, backbone: LevelMaps, neck: Neck, proposals: Proposals, head: Head) -> None:
        super().__init__()
        features = _Features(backbone, neck)
        transform = Transform(head.input_size)
        self.num_classes = head.num_classes
        self.input_size = head.input_size
        self.model: nn.Module = (
            _one_stage(features, head, transform)
            if head.kind == "retinanet"
            else GeneralizedRCNN(features, proposals, head, transform)
        )

    def forward(
        self, images: list[Picture], targets: list[Boxes] | None = None
    ) -> dict[str, Tensor] | list[Boxes]:
        """Losses in training, detections in eval.

        Args:
            images: `3 x height x width` each, of any size, 0 to 1; scaled to the input size inside.
            targets: of each picture `boxes` (`n x 4`, x1 y1 x2 y2 in its own pixels) and `labels`
                (`n`, 1 to the number of classes); required in training.

        Returns:
            Scalars by name; or of each picture `boxes`, `labels` and `scores` (0 to 1, falling).

        Raises:
            ValueError: in training without targets.
        """
        if not self.training:
            return self.model(images)
        if targets is None:
            raise ValueError("a detector in training wants targets, got None")
        return self.model(images, targets)


class _Features(nn.Module):
    """Backbone and neck as the one module that torchvision's detectors call a backbone."""

    def __init__(self, backbone: LevelMaps, neck: Neck) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.out_channels = next(iter(neck.stages.values())).channels

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        return self.neck(self.backbone(images))


# Under autocast convolutions and linear layers give half precision, in which a coordinate of 1333
# is off by up to half a pixel: whatever becomes a box or a score leaves its head in float32.


class _RPNHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in deltas]


class _RetinaNetHead(RetinaNetHead):
    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: output.float() for name, output in super().forward(x).items()}


class _Predictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


# torchvision infers strides from the sizes of pictures and maps, and keeps those of its first batch
# for all RoIs: a narrow first picture, mostly padding, misplaces them for good. Ours are stated.


class _Anchors(AnchorGenerator):
    def __init__(self, stages: Stages, input_size: str, *, one_stage: bool) -> None:
        sizes = anchor_sizes(stages, input_size, one_stage=one_stage)
        super().__init__(sizes, (ASPECT_RATIOS,) * len(sizes))
        self.strides = [[stage.stride, stage.stride] for stage in stages.values()]

    def grid_anchors(
        self, grid_sizes: list[list[int]], strides: list[list[Tensor]]
    ) -> list[Tensor]:
        return super().grid_anchors(grid_sizes, self.strides)


class _RoIPool(MultiScaleRoIAlign):
    def __init__(self, stages: Stages, input_size: str) -> None:
        levels = [level for level in stages if level <= TOP_LEVEL]
        super().__init__(levels, ROI_SIZE, sampling_ratio=2)
        self.scales = [1 / stages[level].stride for level in levels]
        self.map_levels = initLevelMapper(
            levels[0], levels[-1], canonical_scale=canonical_roi(input_size)
        )


def _width(stages: Stages) -> int:
    return next(iter(stages.values())).channels


def _rpn(stages: Stages, input_size: str, values: TrainingValues) -> RegionProposalNetwork:
    anchors = _Anchors(stages, input_size, one_stage=False)
    return RegionProposalNetwork(
        anchors,
        _RPNHead(_width(stages), anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=values.rpn_batch,
        positive_fraction=0.5,
        pre_nms_top_n=dict(values.pre_nms_top_n),
        post_nms_top_n=dict(values.post_nms_top_n),
        nms_thresh=RPN_NMS_THRESHOLD,
    )


def _guided_rpn(stages: Stages, input_size: str, values: TrainingValues) -> GuidedAnchorRPN:
    return GuidedAnchorRPN(
        _width(stages),
        [stage.stride for stage in stages.values()],
        base_scale=guided_anchor_scale(stages, input_size),
        pre_nms_top_n=dict(values.pre_nms_top_n),
        post_nms_top_n=dict(values.post_nms_top_n),
        batch_size_per_image=values.rpn_batch,
        positive_fraction=0.5,
        nms_thresh=RPN_NMS_THRESHOLD,
    )


def _retinanet_head(
    stages: Stages, anchors: AnchorGenerator, num_classes: int, norm: str
) -> RetinaNetHead:
    head = _RetinaNetHead(
        _width(stages),
        anchors.num_anchors_per_location()[0],
        num_classes,
        norm_layer=head_norm_layer(norm),
    )
    standardize_weights(head, norm)
    return head


def _roi_heads(
    stages: Stages, input_size: str, num_classes: int, width: int, values: TrainingValues
) -> nn.Module:
    pool = _RoIPool(stages, input_size)
    channels = _width(stages) * ROI_SIZE**2
    if len(values.iou_thresholds) == 1:
        return _rcnn_heads(pool, channels, num_classes, width, values)
    return _cascade_heads(pool, channels, num_classes, width, values)


def _rcnn_heads(
    pool: nn.Module, channels: int, num_classes: int, width: int, values: TrainingValues
) -> RoIHeads:
    predictor = _Predictor(width, num_classes + 1)
    _set_background_prior(predictor.cls_score)
    threshold = values.iou_thresholds[0]
    return RoIHeads(
        pool,
        TwoMLPHead(channels, width),
        predictor,
        threshold,
        threshold,
        values.roi_batch,
        0.25,
        BOX_WEIGHTS[0],
        SCORE_THRESHOLD,
        NMS_THRESHOLD,
        DETECTIONS_PER_IMAGE,
    )


def _cascade_heads(
    pool: nn.Module, channels: int, num_classes: int, width: int, values: TrainingValues
) -> CascadeHeads:
    stages = []
    for number, threshold in enumerate(values.iou_thresholds):
        predictor = ClassAgnosticPredictor(width, num_classes + 1)
        _set_background_prior(predictor.cls_score)
        stage = CascadeStage(
            first=number == 0,
            box_roi_pool=pool,
            box_head=TwoMLPHead(channels, width),
            box_predictor=predictor,
            iou_threshold=threshold,
            box_weights=BOX_WEIGHTS[number],
            batch_size_per_image=values.roi_batch,
            positive_fraction=0.25,
            score_thresh=SCORE_THRESHOLD,
            nms_thresh=NMS_THRESHOLD,
            detections_per_img=DETECTIONS_PER_IMAGE,
        )
        stages.append(stage)
    return CascadeHeads(stages, values.loss_weights)


@torch.no_grad()
def _set_background_prior(classifier: nn.Linear) -> None:
    """Lets an untrained softmax say background, as RetinaNet's prior does.

    Latency is measured before training. With few classes an untrained softmax would give each of
    them more than the score threshold and send every box of every class through NMS, which no
    trained detector does.
    """
    classes = classifier.out_features - 1
    classifier.bias.zero_()
    classifier.bias[0] = background_logit(classes)


class _OneStage(RetinaNet):
    """torchvision's RetinaNet, with classes from 1 on outside and from 0 on inside."""

    def forward(
        self, images: list[Picture], targets: list[Boxes] | None = None
    ) -> dict[str, Tensor] | list[Boxes]:
        if self.training and targets is not None:
            shifted = [{**target, "labels": target["labels"] - 1} for target in targets]
            return super().forward(images, shifted)
        detections = super().forward(images)
        return [{**found, "labels": found["labels"] + 1} for found in detections]


def _one_stage(features: _Features, head: Head, transform: Transform) -> RetinaNet:
    model = _OneStage(
        features,
        head.num_classes,
        anchor_generator=head.anchors,
        head=head.module,
        score_thresh=SCORE_THRESHOLD,
        nms_thresh=NMS_THRESHOLD,
        detections_per_img=DETECTIONS_PER_IMAGE,
    )
    model.transform = transform
    return model


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
