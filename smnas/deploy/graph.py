"""A detector as one graph of tensors, for exporters: torchvision's inference without branches that
depend on what is found.

torchvision filters boxes by slicing and asks how many are left, which a graph that is captured once
cannot. Here what has been filtered stays in its place, marked, and the numbers of proposals and
detections are those of the structure. The results are those of the detector, but for ties: boxes
whose scores or overlaps fall together within rounding may be ordered or suppressed differently.
Knows nothing of ONNX.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import clip_boxes_to_image, nms

from smnas.detectors.components import IMAGE_DEVIATION, IMAGE_MEAN
from smnas.detectors.norms import WeightStandardizedConv2d
from smnas.errors import DeployError

CELL = 32
"""Pictures are padded to full cells of so many pixels, as torchvision does."""

SMALLEST_BOX = 1e-2
"""Sides of a detection in pixels, at least; torchvision's RoI heads have it as a literal."""

Found = tuple[list[Tensor], list[Tensor], list[Tensor]]


class Graph(nn.Module):
    """A trained detector of torchvision's parts for one picture at its own size.

    Args:
        detector: in evaluation mode; it is copied, weights too.

    Raises:
        DeployError: the detector is not of torchvision's parts.
    """

    detector: Any  # what is set on it is torchvision's, which torch's types do not know

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        model = getattr(detector, "model", None)
        if not hasattr(model, "transform"):
            raise DeployError(
                f"export: wanted a detector of torchvision's parts, got {type(model).__name__}"
            )
        self.detector = copy.deepcopy(detector).eval()
        self.detector.model.transform = _Whole()
        _standardize_for_good(self.detector)
        for module in self.detector.modules():
            if isinstance(module, RegionProposalNetwork):
                module.filter_proposals = MethodType(_filter_proposals, module)
                module._get_top_n_idx = MethodType(_likeliest_anchors, module)
            elif isinstance(module, RoIHeads):
                module.postprocess_detections = MethodType(_detections_of_regions, module)
            elif isinstance(module, RetinaNet):
                module.postprocess_detections = MethodType(_detections_of_anchors, module)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of a picture, highest score first.

        Args:
            image: `3 x height x width`, 0 to 1, as large as the detector shall see it.

        Returns:
            Boxes `n x 4` (x0 y0 x1 y1, pixels), scores `n` (0 to 1), labels `n` (from 1).
        """
        (found,) = self.detector([image])
        boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
        kept = torch.where(scores >= 0)[0]
        return boxes[kept], scores[kept], labels[kept]


def _standardize_for_good(detector: nn.Module) -> None:
    """Weights that are standardised in every call become weights that are."""
    for parent in list(detector.modules()):
        for name, child in parent.named_children():
            if isinstance(child, WeightStandardizedConv2d):
                setattr(parent, name, _plain_twin(child))


def _plain_twin(conv: WeightStandardizedConv2d) -> nn.Conv2d:
    twin = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    with torch.no_grad():
        twin.weight = nn.Parameter(conv.standardized_weight().clone(), requires_grad=False)
    twin.bias = conv.bias
    return twin


class _Whole(nn.Module):
    """torchvision's transform for a picture that is not to be resized."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN)[:, None, None], persistent=False)
        deviation = torch.tensor(IMAGE_DEVIATION)[:, None, None]
        self.register_buffer("deviation", deviation, persistent=False)

    def forward(self, images: list[Tensor], targets: None = None) -> tuple[ImageList, None]:
        (image,) = images
        height, width = image.shape[-2:]
        whole = F.pad((image - self.mean) / self.deviation, (0, -width % CELL, 0, -height % CELL))
        return ImageList(whole[None], [(height, width)]), None

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Nothing was resized, so nothing is to be scaled back."""
        return result


def _suppressed(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou: float, most: int, span: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Non-maximum suppression in each group, then the best of all; highest score first.

    Args:
        boxes: `n x 4`, within a picture.
        scores: `n`, 0 to 1.
        groups: `n`, from 0.
        valid: `n`; what is not cannot be found.
        iou: above which the lower score goes.
        most: how many to return, if there are so many boxes.
        span: of the picture in pixels; keeps groups apart.

    Returns:
        Boxes, scores, groups, `min(n, most)` each; a score of -1 stands for no box.
    """
    inside = torch.where(valid)[0]
    apart = boxes[inside] + groups[inside][:, None] * (span + 1)
    chosen = inside[nms(apart, scores[inside], iou)]
    kept = torch.full_like(scores, -1.0).index_put((chosen,), scores[chosen])
    best, order = kept.topk(torch.sym_min(most, kept.shape[0]))
    return boxes[order], best, groups[order]


def _large(boxes: Tensor, side: float) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2] >= side).all(dim=1)


def _likeliest_anchors(self: Any, objectness: Tensor, num_anchors_per_level: list[int]) -> Tensor:
    """`RegionProposalNetwork._get_top_n_idx`, for sizes that are not known yet, too."""
    found, offset = [], 0
    for level in objectness.split(num_anchors_per_level, 1):
        count = level.shape[1]
        found.append(level.topk(torch.sym_min(self.pre_nms_top_n(), count), dim=1).indices + offset)
        offset += count
    return torch.cat(found, dim=1)


def _filter_proposals(
    self: Any,
    proposals: Tensor,
    objectness: Tensor,
    image_shapes: list[tuple[int, int]],
    num_anchors_per_level: list[int],
) -> tuple[list[Tensor], list[Tensor]]:
    """`RegionProposalNetwork.filter_proposals` of one picture. What is no proposal has no area:
    heads leave it so, and drop it as too small.
    """
    (size,) = image_shapes
    levels = torch.cat([torch.full((n,), k) for k, n in enumerate(num_anchors_per_level)])
    logits = objectness.reshape(1, -1)
    (top,) = self._get_top_n_idx(logits, num_anchors_per_level)
    boxes, scores = clip_boxes_to_image(proposals[0][top], size), logits[0][top].sigmoid()
    valid = _large(boxes, self.min_size) & (scores >= self.score_thresh)
    limits = self.nms_thresh, self.post_nms_top_n(), torch.sym_max(*size)
    boxes, scores, _ = _suppressed(boxes, scores, levels.to(top)[top], valid, *limits)
    return [boxes * (scores >= 0)[:, None]], [scores]


def _detections_of_regions(
    self: Any,
    class_logits: Tensor,
    box_regression: Tensor,
    proposals: list[Tensor],
    image_shapes: list[tuple[int, int]],
) -> Found:
    """`RoIHeads.postprocess_detections` of one picture."""
    (size,) = image_shapes
    classes = class_logits.shape[-1]
    scores = class_logits.softmax(dim=-1)[:, 1:].reshape(-1)
    every = clip_boxes_to_image(self.box_coder.decode(box_regression, proposals), size)
    boxes = every.reshape(-1, classes, 4)[:, 1:].reshape(-1, 4)
    labels = torch.arange(1, classes, device=scores.device).repeat(class_logits.shape[0])
    valid = _large(boxes, SMALLEST_BOX) & (scores > self.score_thresh)
    limits = self.nms_thresh, self.detections_per_img, torch.sym_max(*size)
    boxes, scores, labels = _suppressed(boxes, scores, labels, valid, *limits)
    return [boxes], [scores], [labels]


def _detections_of_anchors(
    self: Any,
    head_outputs: dict[str, list[Tensor]],
    anchors: list[list[Tensor]],
    image_shapes: list[tuple[int, int]],
) -> list[dict[str, Tensor]]:
    """`RetinaNet.postprocess_detections` of one picture."""
    (size,) = image_shapes
    levels = zip(
        head_outputs["cls_logits"], head_outputs["bbox_regression"], anchors[0], strict=True
    )
    found = [_of_level(self, logits[0], deltas[0], own) for logits, deltas, own in levels]
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    boxes = clip_boxes_to_image(boxes, size)
    limits = self.nms_thresh, self.detections_per_img, torch.sym_max(*size)
    valid = scores > self.score_thresh
    boxes, scores, labels = _suppressed(boxes, scores, labels, valid, *limits)
    return [{"boxes": boxes, "scores": scores, "labels": labels}]


def _of_level(
    model: RetinaNet, logits: Tensor, deltas: Tensor, anchors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest anchors of a level with their classes, also those below the threshold."""
    classes = logits.shape[-1]
    scores = logits.sigmoid().flatten()
    scores, order = scores.topk(torch.sym_min(model.topk_candidates, scores.shape[0]))
    places = order // classes
    return model.box_coder.decode_single(deltas[places], anchors[places]), scores, order % classes
