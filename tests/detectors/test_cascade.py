"""Cascade heads: matching, refinement, losses and scores against closed forms."""

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from smnas.detectors.cascade import (
    BOX_WEIGHTS,
    CascadeHeads,
    CascadeStage,
    ClassAgnosticPredictor,
)

SHAPE = (100, 120)
CLASSES = 3
FEATURES = {2: torch.randn(2, 4, 25, 30, generator=torch.Generator().manual_seed(0))}
PROPOSALS = torch.tensor([[10.0, 10, 50, 60], [60, 20, 110, 90], [0, 0, 119, 99], [30, 30, 34, 34]])
TARGETS = [
    {"boxes": torch.tensor([[12.0, 8, 52, 58], [60, 20, 110, 90]]), "labels": torch.tensor([1, 3])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


def stage(number: int, threshold: float, **changes: object) -> CascadeStage:
    arguments = {
        "first": number == 0,
        "box_roi_pool": MultiScaleRoIAlign([2], 7, 2),
        "box_head": TwoMLPHead(4 * 49, 16),
        "box_predictor": ClassAgnosticPredictor(16, CLASSES + 1),
        "iou_threshold": threshold,
        "box_weights": BOX_WEIGHTS[number],
        "batch_size_per_image": 64,
        "positive_fraction": 0.25,
        "score_thresh": 0.05,
        "nms_thresh": 0.5,
        "detections_per_img": 100,
    }
    return CascadeStage(**{**arguments, **changes})


def heads(count: int = 3, weights: tuple[float, ...] = (1.0, 0.5, 0.25)) -> CascadeHeads:
    torch.manual_seed(0)
    stages = [stage(number, 0.5 + 0.1 * number) for number in range(count)]
    return CascadeHeads(stages, weights[:count])


def proposals() -> list[Tensor]:
    return [PROPOSALS.clone(), PROPOSALS.clone()]


def say(module: CascadeStage, logits: list[float], deltas: list[float]) -> None:
    """Makes a stage say the same of every box."""
    for layer, bias in (
        (module.box_predictor.cls_score, logits),
        (module.box_predictor.bbox_pred, deltas),
    ):
        nn.init.zeros_(layer.weight)
        with torch.no_grad():
            layer.bias.copy_(torch.tensor(bias))


def log_odds(*shares: float) -> list[float]:
    return [math.log(share) for share in shares]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_refine_moves_boxes_by_the_stages_deltas(number):
    wx, _, ww, wh = BOX_WEIGHTS[number]
    deltas = torch.tensor(
        [[0.1 * wx, 0.0, 0.0, math.log(0.5) * wh], [0.0, 0.0, math.log(10) * ww, 0.0]]
    )
    boxes = [torch.tensor([[10.0, 10, 50, 60]]), torch.tensor([[50.0, 20, 70, 40]])]
    moved = stage(number, 0.5).refine(deltas, boxes, [SHAPE, SHAPE])
    assert torch.allclose(moved[0], torch.tensor([[14.0, 22.5, 54.0, 47.5]]), atol=1e-4)
    # 200 wide around 60: clipped to the picture.
    assert torch.allclose(moved[1], torch.tensor([[0.0, 20.0, 120.0, 40.0]]), atol=1e-4)


def test_refined_boxes_carry_no_gradient():
    deltas = torch.zeros(4, 4, requires_grad=True)
    (moved,) = stage(0, 0.5).refine(deltas, [PROPOSALS], [SHAPE])
    assert torch.equal(moved, PROPOSALS)
    assert not moved.requires_grad


@pytest.mark.parametrize(("threshold", "positive"), [(0.5, True), (0.6, True), (0.7, False)])
def test_each_stage_matches_at_its_own_threshold(threshold, positive):
    # IoU of the two boxes: 40 x 60 over 60 x 60 = 2/3.
    module = stage(1, threshold)
    target = [{"boxes": torch.tensor([[0.0, 0, 60, 60]]), "labels": torch.tensor([2])}]
    samples = module.select_training_samples([torch.tensor([[0.0, 0, 40, 60]])], target)
    assert samples[2][0].tolist() == [2 if positive else 0]


def test_ground_truth_joins_the_first_stage_only():
    boxes = TARGETS[0]["boxes"]
    assert len(stage(0, 0.5).add_gt_proposals([PROPOSALS], [boxes])[0]) == 6
    assert len(stage(1, 0.6).add_gt_proposals([PROPOSALS], [boxes])[0]) == 4


def test_one_box_for_all_classes():
    predictor = ClassAgnosticPredictor(16, 4)
    logits, deltas = predictor(torch.zeros(5, 16))
    assert logits.shape == (5, 4)
    assert deltas.shape == (5, 4)
    assert sum(p.numel() for p in predictor.parameters()) == (16 + 1) * 4 + (16 + 1) * 4


@pytest.mark.parametrize("count", [2, 3])
def test_losses_of_each_stage(count):
    detections, losses = heads(count)(FEATURES, proposals(), [SHAPE, SHAPE], TARGETS)
    assert detections == []
    assert sorted(losses) == sorted(
        f"loss_{kind}_{number}"
        for kind in ("classifier", "box_reg")
        for number in range(1, count + 1)
    )
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())


def test_losses_are_weighted():
    plain, weighted = heads(weights=(1.0, 1.0, 1.0)), heads(weights=(1.0, 0.5, 0.25))
    _, full = plain(FEATURES, proposals(), [SHAPE, SHAPE], TARGETS)
    _, found = weighted(FEATURES, proposals(), [SHAPE, SHAPE], TARGETS)
    for number, weight in ((1, 1.0), (2, 0.5), (3, 0.25)):
        for kind in ("classifier", "box_reg"):
            name = f"loss_{kind}_{number}"
            assert found[name].item() == pytest.approx(weight * full[name].item(), rel=1e-6)


def test_closed_form_of_the_classifier_loss():
    """Every stage says (.7, .1, .1, .1); of the 10 boxes of both pictures 4 hold objects.

    In the first stage these are both objects and the proposals nearest to them (IoU .77 and 1).
    """
    module = heads(1)
    say(module.stages[0], log_odds(0.7, 0.1, 0.1, 0.1), [0.0] * 4)
    _, losses = module(FEATURES, proposals(), [SHAPE, SHAPE], TARGETS)
    wanted = -(4 * math.log(0.1) + 6 * math.log(0.7)) / 10
    assert losses["loss_classifier_1"].item() == pytest.approx(wanted, rel=1e-5)


def test_closed_form_of_the_box_loss():
    """One proposal, 4 pixels off in 40: smooth L1 of 10 * 0.1, over proposal and object."""
    module = heads(1)
    say(module.stages[0], [0.0] * 4, [0.0] * 4)
    target = [{"boxes": torch.tensor([[14.0, 10, 54, 60]]), "labels": torch.tensor([2])}]
    _, losses = module(FEATURES, [PROPOSALS[:1].clone()], [SHAPE], target)
    assert losses["loss_box_reg_1"].item() == pytest.approx((1.0 - 0.5 / 9) / 2, rel=1e-5)


def test_a_batch_without_objects():
    _, losses = heads()(FEATURES, proposals(), [SHAPE, SHAPE], [TARGETS[1], TARGETS[1]])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_box_reg_2"] == 0


def test_gradients_reach_every_stage_and_the_features():
    module = heads()
    features = {2: FEATURES[2].clone().requires_grad_()}
    _, losses = module(features, proposals(), [SHAPE, SHAPE], TARGETS)
    sum(losses.values()).backward()
    assert features[2].grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_scores_are_averaged_over_the_stages():
    module = heads(3).eval()
    shares = ((0.4, 0.6, 0.0001, 0.0001), (0.7, 0.3, 0.0001, 0.0001), (0.1, 0.9, 0.0001, 0.0001))
    for part, share in zip(module.stages, shares, strict=True):
        say(part, log_odds(*share), [0.0] * 4)
    found, losses = module(FEATURES, [PROPOSALS[:1], PROPOSALS[1:2]], [SHAPE, SHAPE])
    assert losses == {}
    for picture, box in zip(found, PROPOSALS, strict=False):
        assert picture["labels"].tolist() == [1]
        assert picture["scores"].item() == pytest.approx(0.6, abs=1e-3)
        assert torch.allclose(picture["boxes"][0], box, atol=1e-4)


def test_every_stage_moves_the_boxes_of_the_one_before():
    module = heads(3).eval()
    for part, weights in zip(module.stages, BOX_WEIGHTS, strict=True):
        say(part, log_odds(0.1, 0.9, 0.0001, 0.0001), [0.1 * weights[0], 0.0, 0.0, 0.0])
    (found,) = module({2: FEATURES[2][:1]}, [PROPOSALS[:1]], [SHAPE])[0]
    # Three times a tenth of a width of 40.
    assert torch.allclose(found["boxes"], torch.tensor([[22.0, 10, 62, 60]]), atol=1e-4)


def test_no_proposals_no_detections():
    none = torch.zeros(0, 4)
    found, _ = heads().eval()(FEATURES, [none, none], [SHAPE, SHAPE])
    assert [len(picture["boxes"]) for picture in found] == [0, 0]
    assert found[0]["boxes"].shape == (0, 4)


def test_the_given_proposals_are_left_alone():
    given = proposals()
    heads()(FEATURES, given, [SHAPE, SHAPE], TARGETS)
    assert all(torch.equal(boxes, PROPOSALS) for boxes in given)


def test_training_wants_targets():
    with pytest.raises(ValueError, match="targets"):
        heads()(FEATURES, proposals(), [SHAPE, SHAPE])
