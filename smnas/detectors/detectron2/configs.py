"""What detectors are in detectron2's own words: LazyConfigs of its components, and of ours.

The parts put them together; numbers and names come from `smnas.detectors.components`, as on the
torchvision side. Builds nothing. Imports detectron2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, GeneralizedRCNN, StandardROIHeads
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNConvFCHead, FastRCNNOutputLayers
from omegaconf import DictConfig

from smnas.detectors.backbones import RESNET_BLOCKS, backbone_channels, is_basic
from smnas.detectors.cascade import BOX_WEIGHTS
from smnas.detectors.components import (
    ASPECT_RATIOS,
    DETECTIONS_PER_IMAGE,
    IMAGE_DEVIATION,
    IMAGE_MEAN,
    NMS_THRESHOLD,
    ROI_SIZE,
    RPN_NMS_THRESHOLD,
    SCORE_THRESHOLD,
    Stages,
    TrainingValues,
    anchor_sizes,
    canonical_roi,
    guided_anchor_scale,
)
from smnas.detectors.detectron2.guided_anchoring import REGRESSION_BETA, GuidedAnchorRPN
from smnas.detectors.detectron2.layers import (
    LastLevelP6,
    SingleMap,
    head_norm_hook,
    norm_hook,
    standardized,
)
from smnas.detectors.necks import TOP_LEVEL, neck_inputs

RESNET_WIDTH = 64
"""Channels of a ResNet's stem."""

COLOURS = 255
"""detectron2 takes pictures of 0 to 255, we take them of 0 to 1."""


def detector(
    backbone: DictConfig, proposals: DictConfig | None, head: DictConfig | dict[str, Any], norm: str
) -> DictConfig:
    """A whole model.

    Args:
        backbone: with its neck.
        proposals: None for a one-stage detector.
        head: of RoI heads, or what a RetinaNet has besides its backbone (`retinanet`).
        norm: of the backbone, one of `NORMS`.
    """
    shared = {
        "backbone": backbone,
        "pixel_mean": [COLOURS * mean for mean in IMAGE_MEAN],
        "pixel_std": [COLOURS * deviation for deviation in IMAGE_DEVIATION],
        "input_format": "RGB",
    }
    model = (
        L(RetinaNet)(**shared, **head)
        if proposals is None
        else L(GeneralizedRCNN)(**shared, proposal_generator=proposals, roi_heads=head)
    )
    return L(standardized)(module=model) if norm == "gn_ws" else model


def neck(
    kind: str, stages: Stages, bottom_up: DictConfig, *, norm: str, one_stage: bool
) -> DictConfig:
    """A neck on a backbone, as one `Backbone`.

    Args:
        kind: one of `NECKS`.
        stages: what the neck states.
        bottom_up: the backbone.
        norm: one of `NORMS`.
        one_stage: learn the levels above 5.
    """
    width = _width(stages)
    hook = head_norm_hook(norm, width)
    if kind == "none":
        return L(SingleMap)(bottom_up=bottom_up, out_channels=width, norm=hook)
    return L(FPN)(
        bottom_up=bottom_up,
        in_features=[f"res{level}" for level in neck_inputs(stages)],
        out_channels=width,
        norm=hook,
        top_block=_top_block(stages, one_stage),
    )


def _top_block(stages: Stages, one_stage: bool) -> DictConfig | None:
    width, extra = _width(stages), len(stages) - len(neck_inputs(stages))
    if not extra:
        return None
    if not one_stage:
        return L(LastLevelMaxPool)()
    if extra == 1:
        return L(LastLevelP6)(width=width)
    return L(LastLevelP6P7)(in_channels=width, out_channels=width, in_feature=f"p{TOP_LEVEL}")


def _width(stages: Stages) -> int:
    return next(iter(stages.values())).channels


def _names(stages: Stages) -> list[str]:
    return [f"p{level}" for level in stages]


def resnet(name: str, norm: str) -> DictConfig:
    """A ResNet or ResNeXt whose 3x3 convolutions stride, with maps `res2` to `res5`."""
    channels = backbone_channels(name)
    inputs = (RESNET_WIDTH, *channels)
    stages = [
        L(ResNet.make_stage)(
            block_class=BasicBlock if is_basic(name) else BottleneckBlock,
            num_blocks=count,
            stride_per_block=[2 if number else 1] + [1] * (count - 1),
            in_channels=inputs[number],
            out_channels=channels[number],
            norm=norm_hook(norm),
            **_bottleneck(name, channels[number]),
        )
        for number, count in enumerate(RESNET_BLOCKS[name])
    ]
    return L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=RESNET_WIDTH, norm=norm_hook(norm)),
        stages=stages,
        out_features=["res2", "res3", "res4", "res5"],
    )


def _bottleneck(name: str, channels: int) -> dict[str, int]:
    if is_basic(name):
        return {}
    if name.startswith("resnext"):
        return {"bottleneck_channels": channels // 2, "num_groups": 32}
    return {"bottleneck_channels": channels // 4}


def _anchors(stages: Stages, input_size: str, *, one_stage: bool) -> DictConfig:
    return L(DefaultAnchorGenerator)(
        sizes=[list(sizes) for sizes in anchor_sizes(stages, input_size, one_stage=one_stage)],
        aspect_ratios=list(ASPECT_RATIOS),
        strides=[stage.stride for stage in stages.values()],
        offset=0.0,
    )


def _anchors_per_cell(anchors: DictConfig) -> int:
    return len(anchors.sizes[0]) * len(ASPECT_RATIOS)


def _coder(weights: Sequence[float]) -> DictConfig:
    return L(Box2BoxTransform)(weights=list(weights))


def _top_n(values: dict[str, int]) -> list[int]:
    return [values["training"], values["testing"]]


def rpn(stages: Stages, input_size: str, values: TrainingValues) -> DictConfig:
    """A region proposal network on all maps of a neck."""
    anchors = _anchors(stages, input_size, one_stage=False)
    return L(RPN)(
        in_features=_names(stages),
        head=L(StandardRPNHead)(in_channels=_width(stages), num_anchors=_anchors_per_cell(anchors)),
        anchor_generator=anchors,
        anchor_matcher=L(Matcher)(
            thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        box2box_transform=_coder((1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=values.rpn_batch,
        positive_fraction=0.5,
        pre_nms_topk=_top_n(dict(values.pre_nms_top_n)),
        post_nms_topk=_top_n(dict(values.post_nms_top_n)),
        nms_thresh=RPN_NMS_THRESHOLD,
        smooth_l1_beta=REGRESSION_BETA,
    )


def guided_rpn(stages: Stages, input_size: str, values: TrainingValues) -> DictConfig:
    """Guided anchoring on all maps of a neck."""
    return L(GuidedAnchorRPN)(
        in_features=_names(stages),
        in_channels=_width(stages),
        strides=[stage.stride for stage in stages.values()],
        base_scale=guided_anchor_scale(stages, input_size),
        batch_size_per_image=values.rpn_batch,
        positive_fraction=0.5,
        pre_nms_topk=_top_n(dict(values.pre_nms_top_n)),
        post_nms_topk=_top_n(dict(values.post_nms_top_n)),
        nms_thresh=RPN_NMS_THRESHOLD,
    )


def retinanet(stages: Stages, input_size: str, num_classes: int, norm: str) -> dict[str, Any]:
    """What a `RetinaNet` has besides its backbone."""
    anchors, width = _anchors(stages, input_size, one_stage=True), _width(stages)
    return {
        "head": L(RetinaNetHead)(
            input_shape=[L(ShapeSpec)(channels=width) for _ in stages],
            num_classes=num_classes,
            num_anchors=_anchors_per_cell(anchors),
            conv_dims=[width] * 4,
            norm=head_norm_hook(norm, width),
        ),
        "head_in_features": _names(stages),
        "anchor_generator": anchors,
        "box2box_transform": _coder((1.0, 1.0, 1.0, 1.0)),
        "anchor_matcher": L(Matcher)(
            thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        "num_classes": num_classes,
        "test_score_thresh": SCORE_THRESHOLD,
        "test_nms_thresh": NMS_THRESHOLD,
        "max_detections_per_image": DETECTIONS_PER_IMAGE,
    }


def roi_heads(
    stages: Stages, input_size: str, num_classes: int, width: int, values: TrainingValues
) -> DictConfig:
    """R-CNN or Cascade heads, one stage for each threshold of the training values.

    Args:
        stages: what the neck states.
        input_size: WIDTHxHEIGHT.
        num_classes: without background.
        width: of the two fully connected layers.
        values: of the structure.
    """
    pooled = {level: stage for level, stage in stages.items() if level <= TOP_LEVEL}
    shared = {
        "num_classes": num_classes,
        "batch_size_per_image": values.roi_batch,
        "positive_fraction": 0.25,
        "box_in_features": _names(pooled),
        "box_pooler": L(ROIPooler)(
            output_size=ROI_SIZE,
            scales=[1 / stage.stride for stage in pooled.values()],
            sampling_ratio=2,
            pooler_type="ROIAlign",
            canonical_box_size=canonical_roi(input_size),
        ),
    }
    matchers = [
        L(Matcher)(thresholds=[threshold], labels=[0, 1], allow_low_quality_matches=False)
        for threshold in values.iou_thresholds
    ]
    heads = [_box_head(_width(stages), width) for _ in matchers]
    # detectron2 keeps a cascade's later stages from ruling the features by scaling gradients, so
    # its losses have no weights (see `smnas.detectors.cascade`)
    cascade = len(matchers) > 1
    predictors = [
        _predictor(width, num_classes, BOX_WEIGHTS[number], for_each_class=not cascade)
        for number in range(len(matchers))
    ]
    if cascade:
        return L(CascadeROIHeads)(
            **shared, box_heads=heads, box_predictors=predictors, proposal_matchers=matchers
        )
    return L(StandardROIHeads)(
        **shared, box_head=heads[0], box_predictor=predictors[0], proposal_matcher=matchers[0]
    )


def _box_head(channels: int, width: int) -> DictConfig:
    return L(FastRCNNConvFCHead)(
        input_shape=L(ShapeSpec)(channels=channels, height=ROI_SIZE, width=ROI_SIZE),
        conv_dims=[],
        fc_dims=[width, width],
    )


def _predictor(
    width: int, num_classes: int, box_weights: Sequence[float], *, for_each_class: bool
) -> DictConfig:
    return L(FastRCNNOutputLayers)(
        input_shape=L(ShapeSpec)(channels=width),
        box2box_transform=_coder(box_weights),
        num_classes=num_classes,
        cls_agnostic_bbox_reg=not for_each_class,
        test_score_thresh=SCORE_THRESHOLD,
        test_nms_thresh=NMS_THRESHOLD,
        test_topk_per_image=DETECTIONS_PER_IMAGE,
        smooth_l1_beta=REGRESSION_BETA,
    )
