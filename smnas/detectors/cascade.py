"""Cascade R-CNN heads: several stages that classify and refine each other's boxes.

Cai and Vasconcelos, "Cascade R-CNN: Delving into High Quality Object Detection", CVPR 2018.
torchvision lacks them, so they are written here on torchvision's RoI heads: each stage is one. The
torchvision parts build them; imports torch and torchvision, and nothing else of smnas.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import clip_boxes_to_image

BOX_WEIGHTS = (
    (10.0, 10.0, 5.0, 5.0),
    (20.0, 20.0, 10.0, 10.0),
    (30.0, 30.0, 15.0, 15.0),
)
"""Of the box coder of each stage: later stages refine by less, so their targets are scaled up."""

Targets = list[dict[str, Tensor]]


class ClassAgnosticPredictor(nn.Module):
    """Scores of every class and one box for all of them.

    Args:
        in_channels: of the RoI's features.
        num_classes: with the background.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`n x in_channels` to logits `n x num_classes` and box deltas `n x 4`, in float32."""
        return self.cls_score(features).float(), self.bbox_pred(features).float()


class CascadeStage(RoIHeads):
    """One stage: torchvision's RoI heads, with one box for all classes.

    Args:
        first: add the ground truth to the proposals in training; later stages get it refined.
        box_roi_pool: shared by all stages.
        box_head: RoI maps to features.
        box_predictor: features to logits and deltas, as `ClassAgnosticPredictor`.
        iou_threshold: from which IoU on a proposal is an object; 0 to 1.
        box_weights: of the box coder.
        batch_size_per_image: proposals sampled per picture in training.
        positive_fraction: largest part of positive ones among them, 0 to 1.
        score_thresh: lowest score of a detection, 0 to 1.
        nms_thresh: IoU above which the less likely detection of a class goes.
        detections_per_img: most detections of a picture.
    """

    def __init__(
        self,
        *,
        first: bool,
        box_roi_pool: nn.Module,
        box_head: nn.Module,
        box_predictor: nn.Module,
        iou_threshold: float,
        box_weights: tuple[float, float, float, float],
        batch_size_per_image: int,
        positive_fraction: float,
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
    ) -> None:
        super().__init__(
            box_roi_pool,
            box_head,
            box_predictor,
            iou_threshold,
            iou_threshold,
            batch_size_per_image,
            positive_fraction,
            box_weights,
            score_thresh,
            nms_thresh,
            detections_per_img,
        )
        self.first = first

    def add_gt_proposals(self, proposals: list[Tensor], gt_boxes: list[Tensor]) -> list[Tensor]:
        """The proposals of each picture, in the first stage with its ground truth."""
        return super().add_gt_proposals(proposals, gt_boxes) if self.first else proposals

    def predict(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        """Logits `n x classes` and deltas `n x 4` of all pictures' proposals, in their order."""
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        return self.box_predictor(self.box_head(pooled))

    def refine(
        self, deltas: Tensor, proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[Tensor]:
        """The next stage's proposals: these, moved by the deltas and clipped; without gradients."""
        moved = self.box_coder.decode(deltas.detach(), proposals).reshape(-1, 4)
        per_image = moved.split([len(boxes) for boxes in proposals])
        return [clip_boxes_to_image(b, s) for b, s in zip(per_image, image_shapes, strict=True)]


class CascadeHeads(nn.Module):
    """Stages in a row, each on the boxes of the one before; takes the place of `RoIHeads`.

    In training every stage samples anew, against its own IoU threshold. Its losses are weighted:
    that keeps the later stages from ruling the shared features. (detectron2 adds the losses up and
    divides the gradient of the features by the number of stages instead; to do both would count
    twice.) In eval class scores are averaged over the stages, and the last one gives the boxes.

    Args:
        stages: at least one, in order.
        loss_weights: one a stage.
    """

    def __init__(self, stages: Sequence[CascadeStage], loss_weights: Sequence[float]) -> None:
        super().__init__()
        # A ModuleList does not tell what its modules are.
        self.stages: Sequence[CascadeStage] = nn.ModuleList(stages)  # type: ignore[assignment]
        self.loss_weights = tuple(loss_weights)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[Targets, dict[str, Tensor]]:
        """As `RoIHeads`: detections of each picture, none in training, and losses, none in eval.

        Args:
            features: maps by level.
            proposals: `n x 4` of each picture.
            image_shapes: (height, width) of each picture.
            targets: `boxes` and `labels` of each picture; required in training.

        Raises:
            ValueError: in training without targets.
        """
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detect(features, proposals, image_shapes), {}

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None,
    ) -> dict[str, Tensor]:
        losses = {}
        pairs = zip(self.stages, self.loss_weights, strict=True)
        for number, (stage, weight) in enumerate(pairs, start=1):
            samples = stage.select_training_samples(proposals, targets)
            proposals, _, labels, regression_targets = samples
            logits, deltas = stage.predict(features, proposals, image_shapes)
            classifier, box_reg = fastrcnn_loss(
                logits, _for_all_classes(deltas, logits), labels, regression_targets
            )
            losses[f"loss_classifier_{number}"] = weight * classifier
            losses[f"loss_box_reg_{number}"] = weight * box_reg
            proposals = stage.refine(deltas, proposals, image_shapes)
        return losses

    def _detect(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Targets:
        logits, deltas = self.stages[0].predict(features, proposals, image_shapes)
        scores = [logits.softmax(dim=-1)]
        for before, stage in pairwise(self.stages):
            proposals = before.refine(deltas, proposals, image_shapes)
            logits, deltas = stage.predict(features, proposals, image_shapes)
            scores.append(logits.softmax(dim=-1))
        # torchvision takes the softmax of what it is given, and a softmax undoes a logarithm.
        mean = torch.stack(scores).mean(dim=0).log()
        found = self.stages[-1].postprocess_detections(
            mean, _for_all_classes(deltas, mean), proposals, image_shapes
        )
        return [
            {"boxes": boxes, "scores": scores, "labels": labels}
            for boxes, scores, labels in zip(*found, strict=True)
        ]


def _for_all_classes(deltas: Tensor, logits: Tensor) -> Tensor:
    """Deltas `n x 4` as torchvision's class-specific ones, `n x (classes x 4)`."""
    return deltas.repeat(1, logits.shape[1])
