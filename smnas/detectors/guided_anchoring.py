"""Guided anchoring: a region proposal network that predicts where anchors stand, and their shape.

Wang, Chen, Yang, Loy, Lin, "Region Proposal by Guided Anchoring", CVPR 2019; its sections
are cited by title. torchvision lacks it, so it is written here on torchvision's RPN, which brings
matching, sampling, box coding, NMS and two of the losses. The detector builders call it; it imports
torch and torchvision, and nothing of smnas but the errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import DeformConv2d, box_iou, sigmoid_focal_loss

from smnas.errors import ConfigError

LOCATION_PRIOR = 0.01
"""Probability of an object at a location that the untrained location branch gives."""

LOCATION_FILTER = 0.01
"""Locations below this probability give no proposals in eval ("Anchor Location Prediction")."""

CENTRE_REGION = 0.2
"""sigma 1: part of an object's sides whose locations are positive ("Training")."""

IGNORE_REGION = 0.5
"""sigma 2: part of an object's sides whose other locations do not count ("Training")."""

SHAPE_WEIGHT = 0.1
"""lambda 2: weight of the anchor shape loss; the location loss has weight 1 ("Training")."""

BOUNDED_IOU_BETA = 0.2
"""Where the smooth L1 of the bounded IoU loss turns linear."""

OFFSET_GROUPS = 4
"""Groups of channels with offsets of their own in the feature adaption, as in the authors' code."""

MAX_LOG_SIZE = math.log(1000 / 16)
"""Predicted anchors stay within this factor of their square; the bound of the box coder."""

APPROXIMATIONS = tuple(
    (scale * math.log(2) / 3 - math.log(ratio) / 2, scale * math.log(2) / 3 + math.log(ratio) / 2)
    for scale in range(3)
    for ratio in (0.5, 1.0, 2.0)
)
"""Nine log (width, height) over the square, RetinaNet's 3 scales x 3 ratios. They stand for all
shapes in the search for the best IoU that a location can reach with an object ("Training").
"""


class Predictions(NamedTuple):
    """What the head says of every location of every level: level by level, row by row.

    Attributes:
        location: `images x locations`, logit that an object's centre is here.
        shape: `images x locations x 2`, log (width, height) over the side of the location's square.
        objectness: `images x locations`, logit that the predicted anchor holds an object.
        deltas: `images x locations x 4`, from the predicted anchor to the proposal.
    """

    location: Tensor
    shape: Tensor
    objectness: Tensor
    deltas: Tensor


class SampledDeformConv2d(DeformConv2d):
    """A 3x3 deformable convolution of stride 1: bilinear sampling, then a 1x1 convolution.

    Parameters and results are those of torchvision's operator. That one is several times slower on
    a CPU, has no bfloat16 kernel there, and is unknown to MAC counters and some exporters.
    """

    def forward(self, features: Tensor, offset: Tensor) -> Tensor:
        """Convolves.

        Args:
            features: `images x in_channels x height x width`.
            offset: `images x (groups * 9 * 2) x height x width`, pixels (down, right) that move
                each tap; any number of groups that divides the channels.

        Returns:
            `images x out_channels x height x width`.
        """
        images, channels, height, width = features.shape
        groups = offset.shape[1] // 18
        grid = self._grid(offset.float().reshape(images * groups, 9, 2, height, width))
        grouped = features.float().reshape(images * groups, channels // groups, height, width)
        taps = F.grid_sample(grouped, grid, padding_mode="zeros", align_corners=False)
        columns = taps.to(features.dtype).reshape(images, channels * 9, height, width)
        return F.conv2d(columns, self.weight.flatten(1)[:, :, None, None], self.bias)

    def _grid(self, offset: Tensor) -> Tensor:
        """Positions (right, down) of all taps, -1 to 1 from border to border: `n x 9h x w x 2`."""
        count, _, _, height, width = offset.shape
        step = torch.arange(-1, 2, device=offset.device)
        rows = torch.arange(height, device=offset.device)[:, None]
        columns = torch.arange(width, device=offset.device)
        y = offset[:, :, 0] + rows + step.repeat_interleave(3)[:, None, None]
        x = offset[:, :, 1] + columns + step.repeat(3)[:, None, None]
        grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
        return grid.reshape(count, 9 * height, width, 2)


class GuidedAnchorHead(nn.Module):
    """The layers of guided anchoring, shared by all levels.

    Args:
        in_channels: channels of every level, kept throughout; divisible by `OFFSET_GROUPS`.

    Raises:
        ConfigError: if the channels cannot be divided into the offset groups.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        if in_channels % OFFSET_GROUPS:
            raise ConfigError(
                f"guided anchoring wants channels divisible by {OFFSET_GROUPS}, got {in_channels}"
            )
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.location = nn.Conv2d(in_channels, 1, 1)
        self.shape = nn.Conv2d(in_channels, 2, 1)
        # Without a bias, an anchor that stays a square samples the plain 3x3 neighbourhood.
        self.offset = nn.Conv2d(2, OFFSET_GROUPS * 2 * 3 * 3, 1, bias=False)
        self.adaption = SampledDeformConv2d(in_channels, in_channels, 3, padding=1)
        self.cls_logits = nn.Conv2d(in_channels, 1, 1)
        self.bbox_pred = nn.Conv2d(in_channels, 4, 1)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.01)
            else:
                nn.init.zeros_(parameter)
        # With 0.01, as in an RPN, narrow hidden layers answer so faintly that the location loss of
        # the first steps can switch them off for good.
        for hidden in (self.conv, self.adaption):
            nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
        nn.init.zeros_(self.offset.weight)
        nn.init.constant_(self.get_parameter("location.bias"), _logit(LOCATION_PRIOR))

    def forward(self, levels: Sequence[Tensor]) -> Predictions:
        """Predicts in float32 for maps `images x in_channels x height x width`, one a level."""
        maps = [self._predict(level).flatten(2).transpose(1, 2) for level in levels]
        location, shape, objectness, deltas = (
            torch.cat(maps, dim=1).float().split((1, 2, 1, 4), dim=2)
        )
        return Predictions(location.squeeze(2), shape, objectness.squeeze(2), deltas)

    def _predict(self, level: Tensor) -> Tensor:
        hidden = F.relu(self.conv(level))
        shape = self.shape(hidden)
        # The shape branch learns from the shape loss alone, else later losses pull at the anchors.
        adapted = F.relu(self.adaption(hidden, self.offset(shape.detach())))
        outputs = (
            self.location(hidden),
            shape,
            self.cls_logits(adapted),
            self.bbox_pred(adapted),
        )
        return torch.cat(outputs, dim=1)


class SquareAnchors(nn.Module):
    """The squares that predicted shapes start from: one a location, centred on it.

    Args:
        strides: pixels between neighbouring locations, one a level.
        base_scale: side of a level's squares in its strides.
    """

    def __init__(self, strides: Sequence[int], base_scale: float) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.base_scale = base_scale

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Squares `locations x 4` for these feature maps, in the order of `Predictions`.

        Location `(row, column)` stands at pixel `(row, column) * stride`, as torchvision has it.
        """
        squares = [
            self._of_level(level.shape[-2], level.shape[-1], stride, level.device)
            for level, stride in zip(levels, self.strides, strict=True)
        ]
        return torch.cat(squares)

    def _of_level(self, height: int, width: int, stride: int, device: torch.device) -> Tensor:
        rows = torch.arange(height, dtype=torch.float32, device=device) * stride
        columns = torch.arange(width, dtype=torch.float32, device=device) * stride
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        half = self.base_scale * stride / 2
        return torch.stack((x - half, y - half, x + half, y + half), dim=-1).reshape(-1, 4)


def reshape_squares(squares: Tensor, shape: Tensor) -> Tensor:
    """Gives squares a width and a height and keeps their centres ("Anchor Shape Prediction").

    Args:
        squares: `... x 4`.
        shape: `... x 2`, log (width, height) over the square's side; clamped to `±MAX_LOG_SIZE`.

    Returns:
        Boxes `... x 4`; a shape of zero gives the square back.
    """
    low, high = squares[..., :2], squares[..., 2:]
    centre = (low + high) / 2
    half = (high - low) / 2 * shape.clamp(-MAX_LOG_SIZE, MAX_LOG_SIZE).exp()
    return torch.cat((centre - half, centre + half), dim=-1)


def assign_levels(boxes: Tensor, strides: Sequence[int], base_scale: float) -> Tensor:
    """The level of each object: the one whose squares are nearest to its size, in octaves.

    Args:
        boxes: `n x 4`.
        strides: one a level.
        base_scale: side of a level's squares in its strides.

    Returns:
        Level indices, `n`.
    """
    sides = torch.tensor([base_scale * stride for stride in strides], device=boxes.device)
    octaves = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).log2() / 2
    return (octaves[:, None] - sides.log2()).abs().argmin(dim=1)


def region(boxes: Tensor, fraction: float, stride: int, height: int, width: int) -> Tensor:
    """The locations of one level in the middle of any of the boxes ("Training").

    A region reaches from the location nearest to its low corner to the one nearest to its high
    corner, so that every object has at least one location, also at the border.

    Args:
        boxes: `n x 4`.
        fraction: part of each box's width and height, 0 to 1.
        stride: pixels between the locations.
        height: rows of the level.
        width: columns of the level.

    Returns:
        Mask `height x width`.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 * fraction
    last = torch.tensor([width - 1, height - 1], device=boxes.device)
    low = ((centre - half) / stride).round().clamp(min=0).minimum(last)
    high = ((centre + half) / stride).round().clamp(min=0).minimum(last)
    columns = torch.arange(width, device=boxes.device)
    rows = torch.arange(height, device=boxes.device)
    inside_x = (columns >= low[:, :1]) & (columns <= high[:, :1])
    inside_y = (rows >= low[:, 1:]) & (rows <= high[:, 1:])
    return (inside_y[:, :, None] & inside_x[:, None, :]).any(dim=0)


def location_targets(
    boxes: Tensor, sizes: Sequence[tuple[int, int]], strides: Sequence[int], base_scale: float
) -> Tensor:
    """What the location branch should say for one picture ("Training").

    An object marks its centre region on its own level. Its ignore region, there and on the two
    neighbouring levels, is not counted where no centre region of another object lies.

    Args:
        boxes: the picture's objects, `n x 4`; none is fine.
        sizes: (height, width), one a level.
        strides: one a level.
        base_scale: side of a level's squares in its strides.

    Returns:
        1 object, 0 none, -1 not counted; `locations`, in the order of `Predictions`.
    """
    home = assign_levels(boxes, strides, base_scale)
    targets = []
    for level, ((height, width), stride) in enumerate(zip(sizes, strides, strict=True)):
        near = boxes[(home - level).abs() <= 1]
        target = torch.zeros(height, width, device=boxes.device)
        target[region(near, IGNORE_REGION, stride, height, width)] = -1
        target[region(boxes[home == level], CENTRE_REGION, stride, height, width)] = 1
        targets.append(target.flatten())
    return torch.cat(targets)


def location_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss over the counted locations, per positive location ("Training").

    Args:
        logits: any shape.
        targets: same shape; 1, 0, or -1 for not counted.
    """
    focal = sigmoid_focal_loss(logits, targets.clamp(min=0), alpha=0.25, gamma=2.0)
    return focal[targets >= 0].sum() / (targets == 1).sum().clamp(min=1)


def bounded_iou_loss(shape: Tensor, target: Tensor) -> Tensor:
    """Bounded IoU loss of widths and heights ("Training"): smooth L1 of `1 - min(w/g, g/w)`.

    In logarithms the ratio is `exp(-|log w - log g|)`: nothing can overflow or be divided by zero.

    Args:
        shape: `n x 2`, log (width, height) over any unit.
        target: `n x 2`, the same of the objects, over the same unit.

    Returns:
        `n` losses, width and height summed; 0 where both are equal.
    """
    shortfall = -torch.expm1(-(shape - target).abs())
    none = torch.zeros_like(shortfall)
    return F.smooth_l1_loss(shortfall, none, beta=BOUNDED_IOU_BETA, reduction="none").sum(dim=1)


class OverlapMatcher(Matcher):
    """torchvision's matcher, but an object that overlaps no anchor matches none instead of all."""

    def set_low_quality_matches_(
        self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor
    ) -> None:
        """Gives each overlapped object its best anchors even if their IoU is low."""
        overlapped = match_quality_matrix.amax(dim=1) > 0
        super().set_low_quality_matches_(matches, all_matches, match_quality_matrix[overlapped])


FOREGROUND_IOU = 0.7
BACKGROUND_IOU = 0.3
"""From which IoU an anchor is an object's, and below which it is nobody's, as in an RPN."""

_MATCHER = OverlapMatcher(FOREGROUND_IOU, BACKGROUND_IOU, allow_low_quality_matches=True)


class GuidedAnchorRPN(RegionProposalNetwork):
    """Region proposal network with guided anchors: one predicted anchor a location.

    In eval, locations whose probability is under `LOCATION_FILTER` give no proposals; but of each
    picture at least the `post_nms_top_n` likeliest locations are kept, so that an untrained network
    proposes about as many boxes as a trained one.

    On CUDA the backward pass of the feature adaption adds in no fixed order.

    Args:
        in_channels: channels of every level.
        strides: of the levels, finest first; at least one.
        base_scale: side of the square that an anchor starts from, in strides; 8 in the paper.
        pre_nms_top_n: anchors of a level that enter NMS, under `training` and `testing`.
        post_nms_top_n: proposals of a picture, under `training` and `testing`.
        batch_size_per_image: anchors sampled for the objectness and regression losses.
        positive_fraction: largest part of positive ones among them, 0 to 1.
        nms_thresh: IoU above which the less likely proposal goes.
        score_thresh: lowest objectness of a proposal, 0 to 1.
    """

    def __init__(
        self,
        in_channels: int,
        strides: Sequence[int],
        *,
        base_scale: float,
        pre_nms_top_n: dict[str, int],
        post_nms_top_n: dict[str, int],
        batch_size_per_image: int,
        positive_fraction: float,
        nms_thresh: float,
        score_thresh: float = 0.0,
    ) -> None:
        super().__init__(
            SquareAnchors(strides, base_scale),
            GuidedAnchorHead(in_channels),
            fg_iou_thresh=FOREGROUND_IOU,
            bg_iou_thresh=BACKGROUND_IOU,
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            pre_nms_top_n=pre_nms_top_n,
            post_nms_top_n=post_nms_top_n,
            nms_thresh=nms_thresh,
            # Filtered locations score exactly 0; any bound above that drops them.
            score_thresh=max(score_thresh, torch.finfo(torch.float32).tiny),
        )
        self.proposal_matcher = _MATCHER

    def forward(
        self,
        images: ImageList,
        features: Mapping[Any, Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposes boxes; in training also computes the losses.

        Args:
            images: the batch; only its picture sizes are read.
            features: `images x in_channels x height x width`, one a level, in the order of strides.
            targets: `boxes` (`n x 4`) of each picture; required in training.

        Returns:
            Proposals `n x 4` of each picture, likeliest first; losses by name, none in eval.

        Raises:
            ValueError: in training without targets, or if there is not one feature map a stride.
        """
        levels = list(features.values())
        squares = self.anchor_generator(levels)
        predictions = self.head(levels)
        anchors = reshape_squares(squares, predictions.shape.detach())
        proposals = self._propose(images, levels, predictions, anchors)
        if not self.training:
            return proposals, {}
        if targets is None:
            raise ValueError("GuidedAnchorRPN wants targets in training, got None")
        boxes = [target["boxes"] for target in targets]
        return proposals, {
            **self._objectness_losses(predictions, anchors, boxes),
            **anchor_losses(predictions, squares, self.anchor_generator, levels, boxes),
        }

    def _propose(
        self, images: ImageList, levels: list[Tensor], predictions: Predictions, anchors: Tensor
    ) -> list[Tensor]:
        deltas = predictions.deltas.detach().flatten(0, 1)
        boxes = self.box_coder.decode_single(deltas, anchors.flatten(0, 1)).view_as(anchors)
        objectness = predictions.objectness
        if not self.training:
            unlikely = ~likely(predictions.location, self.post_nms_top_n())
            objectness = objectness.masked_fill(unlikely, -math.inf)
        counts = [level.shape[-2] * level.shape[-1] for level in levels]
        proposals, _ = self.filter_proposals(boxes, objectness, images.image_sizes, counts)
        return proposals

    def _objectness_losses(
        self, predictions: Predictions, anchors: Tensor, boxes: list[Tensor]
    ) -> dict[str, Tensor]:
        per_image = list(anchors)
        labels, matched = self.assign_targets_to_anchors(
            per_image, [{"boxes": found} for found in boxes]
        )
        objectness, regression = self.compute_loss(
            predictions.objectness,
            predictions.deltas.flatten(0, 1),
            labels,
            self.box_coder.encode(matched, per_image),
        )
        return {"loss_objectness": objectness, "loss_rpn_box_reg": regression}


def likely(location: Tensor, fewest: int) -> Tensor:
    """The locations that give proposals in eval ("Anchor Location Prediction").

    Args:
        location: logits, `images x locations`.
        fewest: so many of the likeliest of each picture are kept, also below `LOCATION_FILTER`.

    Returns:
        Mask `images x locations`.
    """
    last = location.topk(min(fewest, location.shape[1]), dim=1).values[:, -1:]
    return location >= last.clamp(max=_logit(LOCATION_FILTER))


def anchor_losses(
    predictions: Predictions,
    squares: Tensor,
    grid: SquareAnchors,
    levels: Sequence[Tensor],
    boxes: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Losses of where anchors stand and of their shape, by name ("Training").

    Args:
        predictions: of the head for these maps.
        squares: of the grid for these maps.
        grid: where predicted shapes start from.
        levels: feature maps.
        boxes: objects of each picture, `n x 4`.
    """
    sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
    locations = [location_targets(b, sizes, grid.strides, grid.base_scale) for b in boxes]
    pairs = zip(predictions.shape, boxes, strict=True)
    shapes = [_shape_loss(shape, squares, found) for shape, found in pairs]
    shape_loss = torch.cat(shapes).sum() / max(1, sum(map(len, shapes)))
    return {
        "loss_anchor_location": location_loss(predictions.location, torch.stack(locations)),
        "loss_anchor_shape": SHAPE_WEIGHT * shape_loss,
    }


def _shape_loss(shape: Tensor, squares: Tensor, boxes: Tensor) -> Tensor:
    """Losses of one picture's positive locations: those whose best shape matches an object."""
    if len(boxes) == 0:
        return shape[:0].sum(dim=1)
    matched = _MATCHER(best_iou(boxes, squares))
    positive = matched >= 0
    objects = boxes[matched[positive]]
    sides = squares[positive, 2:] - squares[positive, :2]
    return bounded_iou_loss(shape[positive], ((objects[:, 2:] - objects[:, :2]) / sides).log())


def best_iou(boxes: Tensor, squares: Tensor) -> Tensor:
    """The best IoU that a location can reach with an object by choice of shape ("Training").

    Args:
        boxes: objects, `n x 4`.
        squares: one a location, `locations x 4`.

    Returns:
        `n x locations`, the largest IoU over `APPROXIMATIONS`.
    """
    shapes = torch.tensor(APPROXIMATIONS, device=squares.device)
    # One shape after the other: nine matrices of objects x locations at once are too much for COCO.
    return reduce(torch.maximum, (box_iou(boxes, reshape_squares(squares, s)) for s in shapes))


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
