"""Guided anchoring as a proposal generator of detectron2, registered as `GuidedAnchorRPN`.

Head, shapes and their losses are those of `smnas.detectors.guided_anchoring`; matching, sampling,
box coding and NMS are detectron2's. Imports detectron2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from smnas.detectors.guided_anchoring import (
    BACKGROUND_IOU,
    FOREGROUND_IOU,
    GuidedAnchorHead,
    Predictions,
    SquareAnchors,
    anchor_losses,
    likely,
    reshape_squares,
)

REGRESSION_BETA = 1 / 9
"""Where the smooth L1 of box regression turns linear, in torchvision and here."""


class OverlapMatcher(Matcher):
    """detectron2's matcher, but an object that overlaps no anchor matches none instead of all."""

    def set_low_quality_matches_(self, match_labels: Tensor, match_quality_matrix: Tensor) -> None:
        """Gives each overlapped object its best anchors even if their IoU is low."""
        overlapped = match_quality_matrix.amax(dim=1) > 0
        super().set_low_quality_matches_(match_labels, match_quality_matrix[overlapped])


@PROPOSAL_GENERATOR_REGISTRY.register()
class GuidedAnchorRPN(RPN):
    """Region proposal network with guided anchors (Wang et al. 2019): one a location.

    Args:
        in_features: names of the maps, finest first, all of one width.
        in_channels: that width.
        strides: of the maps.
        base_scale: side of the square that an anchor starts from, in strides; 8 in the paper.
        batch_size_per_image: anchors sampled for the objectness and regression losses.
        pre_nms_topk: anchors of a level that enter NMS, in training and in eval.
        post_nms_topk: proposals of a picture, in training and in eval.
        positive_fraction: largest part of positive anchors in a sample, 0 to 1.
        nms_thresh: IoU above which the less likely proposal goes.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        in_channels: int,
        strides: Sequence[int],
        base_scale: float,
        batch_size_per_image: int,
        pre_nms_topk: Sequence[int],
        post_nms_topk: Sequence[int],
        positive_fraction: float = 0.5,
        nms_thresh: float = 0.7,
    ) -> None:
        super().__init__(
            in_features=in_features,
            head=GuidedAnchorHead(in_channels),
            anchor_generator=SquareAnchors(strides, base_scale),
            anchor_matcher=OverlapMatcher(
                [BACKGROUND_IOU, FOREGROUND_IOU], [0, -1, 1], allow_low_quality_matches=True
            ),
            box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            pre_nms_topk=pre_nms_topk,
            post_nms_topk=post_nms_topk,
            nms_thresh=nms_thresh,
            smooth_l1_beta=REGRESSION_BETA,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments from a plain config: `MODEL.RPN`, and the scale of `registry.add_config`."""
        rpn = cfg.MODEL.RPN
        return {
            "in_features": rpn.IN_FEATURES,
            "in_channels": input_shape[rpn.IN_FEATURES[0]].channels,
            "strides": [input_shape[name].stride for name in rpn.IN_FEATURES],
            "base_scale": cfg.MODEL.GUIDED_ANCHORING.BASE_SCALE,
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "nms_thresh": rpn.NMS_THRESH,
        }

    def forward(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposals of each picture, likeliest first; losses by name, none in eval.

        Raises:
            ValueError: in training without instances.
        """
        levels = [features[name] for name in self.in_features]
        squares = self.anchor_generator(levels)
        predictions = self.rpn_head(levels)
        anchors = reshape_squares(squares, predictions.shape.detach())
        losses = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("GuidedAnchorRPN wants gt_instances in training, got None")
            boxes = [instances.gt_boxes.tensor for instances in gt_instances]
            grid = self.anchor_generator
            losses = {
                **self._objectness_losses(predictions, anchors, gt_instances),
                **anchor_losses(predictions, squares, grid, levels, boxes),
            }
        return self._propose(images, levels, predictions, anchors), losses

    def _objectness_losses(
        self, predictions: Predictions, anchors: Tensor, instances: list[Instances]
    ) -> dict[str, Tensor]:
        """detectron2's, picture by picture: each has anchors of its own."""
        losses = []
        for own, objectness, deltas, objects in zip(
            anchors, predictions.objectness, predictions.deltas, instances, strict=True
        ):
            boxes = [Boxes(own)]
            labels, matched = self.label_and_sample_anchors(boxes, [objects])
            losses.append(self.losses(boxes, [objectness[None]], labels, [deltas[None]], matched))
        return {name: torch.stack([one[name] for one in losses]).mean() for name in losses[0]}

    @torch.no_grad()
    def _propose(
        self, images: ImageList, levels: list[Tensor], predictions: Predictions, anchors: Tensor
    ) -> list[Instances]:
        deltas = predictions.deltas.flatten(0, 1)
        boxes = self.box2box_transform.apply_deltas(deltas, anchors.flatten(0, 1))
        objectness = predictions.objectness
        if not self.training:
            unlikely = ~likely(predictions.location, self.post_nms_topk[False])
            # detectron2 drops what is not finite
            objectness = objectness.masked_fill(unlikely, -math.inf)
        counts = [level.shape[-2] * level.shape[-1] for level in levels]
        return find_top_rpn_proposals(
            list(boxes.view_as(anchors).split(counts, dim=1)),
            list(objectness.split(counts, dim=1)),
            images.image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )
