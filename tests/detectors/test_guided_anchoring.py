"""Guided anchoring: closed forms, torchvision's own operators, and one picture learned by heart."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import DeformConv2d, box_iou

from smnas.detectors import guided_anchoring as ga
from smnas.errors import ConfigError

LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_anchor_location", "loss_anchor_shape"}
OBJECTS = torch.tensor([[10.0, 12, 42, 50], [50, 30, 90, 60]])


def make_rpn(
    strides: Sequence[int] = (8, 16),
    channels: int = 8,
    base_scale: float = 4,
    top: int = 20,
    score_thresh: float = 0.0,
    seed: int = 0,
) -> ga.GuidedAnchorRPN:
    torch.manual_seed(seed)
    return ga.GuidedAnchorRPN(
        channels,
        strides,
        base_scale=base_scale,
        pre_nms_top_n={"training": 100, "testing": 50},
        post_nms_top_n={"training": 2 * top, "testing": top},
        batch_size_per_image=32,
        positive_fraction=0.5,
        nms_thresh=0.7,
        score_thresh=score_thresh,
    )


def make_features(
    size: tuple[int, int], strides: Sequence[int] = (8, 16), channels: int = 8, images: int = 1
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    height, width = size
    return {
        str(stride): torch.randn(
            images, channels, -(-height // stride), -(-width // stride), generator=generator
        )
        for stride in strides
    }


def make_images(*sizes: tuple[int, int]) -> ImageList:
    height, width = (max(side) for side in zip(*sizes, strict=True))
    return ImageList(torch.zeros(len(sizes), 3, height, width), list(sizes))


def targets(*boxes: Tensor) -> list[dict[str, Tensor]]:
    return [{"boxes": found} for found in boxes]


NO_OBJECTS = torch.zeros(0, 4)


# The parts


def drawn(target: Tensor, width: int) -> list[str]:
    signs = {1: "#", 0: ".", -1: "o"}
    return ["".join(signs[int(v)] for v in row) for row in target.reshape(-1, width)]


def test_location_target_of_one_object() -> None:
    # In locations: centre (3.5, 4.5), 5 wide, 6 high; the centre region is x 3..4, y 3.9..5.1, the
    # ignore region x 2.25..4.75, y 3..6.
    boxes = torch.tensor([[8.0, 12, 48, 60]])
    target = ga.location_targets(boxes, [(8, 8)], [8], base_scale=4)
    assert drawn(target, 8) == [
        "........",
        "........",
        "........",
        "..oooo..",
        "..o##o..",
        "..o##o..",
        "..oooo..",
        "........",
    ]


def test_location_target_ignores_the_neighbouring_levels() -> None:
    boxes = torch.tensor([[48.0, 48, 80, 80]])  # 32 pixels: stride 8 at scale 4
    strides, sides = [4, 8, 16, 32], [32, 16, 8, 4]
    target = ga.location_targets(boxes, [(s, s) for s in sides], strides, base_scale=4)
    levels = target.split([s * s for s in sides])
    assert [sorted(set(level.tolist())) for level in levels] == [
        [-1, 0],
        [-1, 0, 1],
        [-1, 0],
        [0],
    ]
    # Locations (64 ± 8) / stride on each side of the ignore region.
    assert [int((level == -1).sum()) for level in levels] == [5 * 5, 3 * 3 - 1, 1, 0]


def test_location_target_centre_beats_ignore_whatever_the_order() -> None:
    boxes = torch.tensor([[0.0, 0, 64, 64], [36, 20, 60, 44]])
    one, other = (
        ga.location_targets(order, [(8, 8)], [8], base_scale=8) for order in (boxes, boxes.flip(0))
    )
    assert torch.equal(one, other)
    assert drawn(one, 8)[4] == "..o####o"


def test_location_target_of_an_object_at_the_border_has_a_location() -> None:
    boxes = torch.tensor([[60.0, 60, 64, 64], [0, 0, 3, 3]])
    target = ga.location_targets(boxes, [(8, 8)], [8], base_scale=4)
    assert target[-1] == 1 and target[0] == 1 and target.sum() == 2


def test_location_target_without_objects_is_zero() -> None:
    target = ga.location_targets(NO_OBJECTS, [(3, 5), (2, 3)], [8, 16], base_scale=4)
    assert torch.equal(target, torch.zeros(21))


@pytest.mark.parametrize(
    ("width", "height", "level"),
    [
        (16, 16, 0),
        (32, 32, 1),
        (64, 64, 2),
        (22, 22, 0),  # 22.6 lies half-way between 16 and 32 in octaves
        (23, 23, 1),
        (8, 128, 1),
        (2, 2, 0),
        (1000, 1000, 2),
    ],
)
def test_level_of_an_object(width: int, height: int, level: int) -> None:
    box = torch.tensor([[5.0, 7.0, 5 + width, 7 + height]])
    assert ga.assign_levels(box, [4, 8, 16], base_scale=4).tolist() == [level]


def test_location_loss_closed_form() -> None:
    loss = ga.location_loss(torch.zeros(3), torch.tensor([1.0, 0.0, -1.0]))
    assert loss.item() == pytest.approx((0.25 + 0.75) * 0.25 * math.log(2))
    many = ga.location_loss(torch.zeros(2), torch.tensor([1.0, 1.0]))
    assert many.item() == pytest.approx(0.25 * 0.25 * math.log(2))  # a mean over positives


def test_bounded_iou_loss_closed_form() -> None:
    sizes = torch.tensor([[10.0, 20.0], [5.0, 22.0], [20.0, 20.0]])
    loss = ga.bounded_iou_loss(sizes.log(), torch.tensor([10.0, 20.0]).log())
    linear = 0.5 - 0.2 / 2
    quadratic = (1 - 20 / 22) ** 2 / (2 * 0.2)
    assert loss.tolist() == pytest.approx([0.0, linear + quadratic, linear])


def test_bounded_iou_loss_pulls_towards_the_object_and_stays_bounded() -> None:
    shape = torch.tensor([[-0.5, 0.5], [-200.0, 200.0]], requires_grad=True)
    loss = ga.bounded_iou_loss(shape, torch.zeros(2, 2))
    loss.sum().backward()
    assert shape.grad is not None
    assert shape.grad[0, 0] < 0 < shape.grad[0, 1]
    assert loss[1].item() == pytest.approx(2 * (1 - 0.1))
    assert shape.grad.isfinite().all()


def test_reshape_squares() -> None:
    squares = torch.tensor([[0.0, 0, 32, 32], [10, 20, 14, 24], [-4, -4, 4, 4]])
    shape = torch.tensor([[0.0, 0.0], [math.log(2), -math.log(2)], [99.0, -99.0]])
    boxes = ga.reshape_squares(squares, shape)
    assert boxes[0].tolist() == [0, 0, 32, 32]
    assert boxes[1].tolist() == pytest.approx([8, 21, 16, 23])
    sizes = boxes[2, 2:] - boxes[2, :2]
    assert sizes.tolist() == pytest.approx([8 * 62.5, 8 / 62.5], rel=1e-5)


def test_squares_stand_where_torchvision_puts_anchors() -> None:
    levels = list(make_features((96, 160), strides=(8, 16, 32)).values())
    squares = ga.SquareAnchors((8, 16, 32), base_scale=4)(levels)
    theirs = AnchorGenerator(((32,), (64,), (128,)), ((1.0,),) * 3)
    assert torch.equal(squares, theirs(make_images((96, 160)), levels)[0])


def test_squares_want_one_level_a_stride() -> None:
    with pytest.raises(ValueError):
        ga.SquareAnchors((8, 16, 32), base_scale=4)(list(make_features((64, 64)).values()))


def test_approximations_are_retinanets_scales_and_ratios() -> None:
    sizes = torch.tensor(ga.APPROXIMATIONS).exp()
    areas = sizes.prod(dim=1).reshape(3, 3)
    ratios = (sizes[:, 1] / sizes[:, 0]).reshape(3, 3)
    assert torch.allclose(areas, (2 ** (2 * torch.arange(3) / 3))[:, None].expand(3, 3))
    assert torch.allclose(ratios, torch.tensor([0.5, 1.0, 2.0]).expand(3, 3))


def test_best_iou_is_over_shapes_at_a_fixed_centre() -> None:
    squares = torch.tensor([[0.0, 0, 32, 32], [8, 0, 40, 32]])
    width, height = 32 / math.sqrt(2), 32 * math.sqrt(2)
    fitting = [16 - width / 2, 16 - height / 2, 16 + width / 2, 16 + height / 2]
    small = [12.0, 12, 20, 20]
    iou = ga.best_iou(torch.tensor([fitting, small]), squares)
    assert iou.shape == (2, 2)
    assert iou[0, 0].item() == pytest.approx(1.0, abs=1e-5)
    assert iou[0, 1] < 1 and iou[1, 0].item() == pytest.approx(64 / 1024, abs=1e-5)


def test_matcher_gives_low_quality_matches_only_to_overlapped_objects() -> None:
    matcher = ga.OverlapMatcher(0.7, 0.3, allow_low_quality_matches=True)
    quality = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.0, 0.0]])
    assert matcher(quality).tolist() == [-1, 1, -1, -1]


@pytest.mark.parametrize("size", [(5, 7), (1, 3)])
@pytest.mark.parametrize("groups", [1, 4])
def test_deformable_convolution_equals_torchvision(size: tuple[int, int], groups: int) -> None:
    torch.manual_seed(0)
    ours = ga.SampledDeformConv2d(8, 12, 3, padding=1)
    features = torch.randn(2, 8, *size, requires_grad=True)
    offset = (2 * torch.randn(2, groups * 18, *size)).requires_grad_()
    expected = DeformConv2d.forward(ours, features, offset)
    found = ours(features, offset)
    assert torch.allclose(found, expected, atol=1e-5)
    weights = torch.randn_like(found)
    inputs = (features, offset, ours.weight, ours.bias)
    pairs = zip(
        torch.autograd.grad(found, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        strict=True,
    )
    assert all(torch.allclose(one, other, atol=1e-3) for one, other in pairs)


def test_head_counts() -> None:
    c, locations = 16, 4 * 4 + 2 * 2
    head = ga.GuidedAnchorHead(c)
    assert sum(p.numel() for p in head.parameters()) == 18 * c**2 + 10 * c + 152
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        head(list(make_features((32, 32), channels=c).values()))
    assert counter.get_total_flops() == 2 * locations * (18 * c**2 + 8 * c + 144)


def test_head_of_unfit_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="divisible by 4, got 6"):
        ga.GuidedAnchorHead(6)


def test_untrained_head_predicts_squares_at_the_prior() -> None:
    torch.manual_seed(0)
    head, features = ga.GuidedAnchorHead(8), make_features((64, 64))
    predictions = head(list(features.values()))
    assert predictions.location.shape == (1, 80) and predictions.deltas.shape == (1, 80, 4)
    assert predictions.location.sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)
    assert predictions.shape.abs().max() < 0.3 and predictions.deltas.abs().max() < 0.3


def test_untrained_hidden_layers_keep_the_strength_of_their_input() -> None:
    torch.manual_seed(0)
    head, features = ga.GuidedAnchorHead(64), torch.randn(1, 64, 16, 16)
    hidden = head.conv(features).relu()
    adapted = head.adaption(hidden, torch.zeros(1, 72, 16, 16)).relu()
    for outputs in (hidden, adapted):
        assert outputs.square().mean().item() == pytest.approx(1, rel=0.3)


def test_untrained_feature_adaption_is_a_plain_convolution() -> None:
    head = ga.GuidedAnchorHead(8)
    assert not head.offset.weight.any() and head.offset.bias is None
    features = torch.randn(1, 8, 6, 5)
    plain = nn.functional.conv2d(features, head.adaption.weight, padding=1)
    assert torch.allclose(head.adaption(features, torch.zeros(1, 72, 6, 5)), plain, atol=1e-5)


# The network


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [(64, 64), (50, 77)])
def test_training_and_eval_at_any_number_of_levels(levels: int, size: tuple[int, int]) -> None:
    strides = [8, 16, 32, 64, 128][:levels]
    rpn, features = make_rpn(strides), make_features(size, strides)
    proposals, losses = rpn(make_images(size), features, targets(OBJECTS.clamp(max=49)))
    assert set(losses) == LOSSES and all(loss.isfinite() for loss in losses.values())
    assert 0 < len(proposals[0]) <= 40 and not proposals[0].requires_grad
    rpn.eval()
    proposals, losses = rpn(make_images(size), features)
    assert losses == {} and 0 < len(proposals[0]) <= 20


def test_every_parameter_learns_from_an_object() -> None:
    rpn = make_rpn()
    _, losses = rpn(make_images((96, 96)), make_features((96, 96)), targets(OBJECTS))
    sum(losses.values()).backward()
    silent = [name for name, p in rpn.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_shape_branch_learns_from_the_shape_loss_only() -> None:
    rpn = make_rpn()
    nn.init.normal_(rpn.head.offset.weight)
    _, losses = rpn(make_images((96, 96)), make_features((96, 96)), targets(OBJECTS))
    shape = losses.pop("loss_anchor_shape")
    weight = rpn.head.shape.weight
    others = torch.autograd.grad(sum(losses.values()), weight, retain_graph=True)[0]
    assert not others.any() and torch.autograd.grad(shape, weight)[0].any()


def test_shape_loss_closed_form() -> None:
    # One location with a square of 32 under an object of 64: both sides are half of what is right.
    # The loss is a mean over the positive locations of all pictures, so a second picture that is
    # the same changes nothing, and one without objects neither.
    rpn = make_rpn((32,), base_scale=1)
    nn.init.zeros_(rpn.head.shape.weight)
    objects = torch.tensor([[-32.0, -32, 32, 32]])
    for pictures in ([objects], [objects, objects], [NO_OBJECTS, objects]):
        features = make_features((32, 32), (32,), images=len(pictures))
        _, losses = rpn(make_images(*[(32, 32)] * len(pictures)), features, targets(*pictures))
        assert losses["loss_anchor_shape"].item() == pytest.approx(0.1 * 2 * (0.5 - 0.2 / 2))


def test_pictures_without_objects_train() -> None:
    rpn, features = make_rpn(), make_features((64, 64), images=2)
    _, losses = rpn(make_images((64, 64), (64, 64)), features, targets(NO_OBJECTS, NO_OBJECTS))
    assert losses["loss_anchor_shape"] == 0 and losses["loss_rpn_box_reg"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rpn.parameters())
    _, mixed = rpn(make_images((64, 64), (64, 64)), features, targets(OBJECTS, NO_OBJECTS))
    assert all(loss.isfinite() and loss > 0 for loss in mixed.values())


def test_an_object_far_from_every_anchor_does_not_turn_all_anchors_positive() -> None:
    rpn = make_rpn((32,), base_scale=0.25)
    lost = torch.tensor([[14.0, 14, 18, 18]])  # between anchors of 8 pixels that stand 32 apart
    _, losses = rpn(make_images((64, 64)), make_features((64, 64), (32,)), targets(lost))
    assert losses["loss_rpn_box_reg"] == 0 and losses["loss_anchor_shape"] == 0


def test_proposals_stay_inside_pictures_of_unequal_size() -> None:
    sizes = [(40, 96), (96, 56), (90, 90)]
    rpn, features = make_rpn(), make_features((96, 96), images=3)
    objects = targets(OBJECTS[:1], OBJECTS[:1], OBJECTS)
    in_training, losses = rpn(make_images(*sizes), features, objects)
    assert all(loss.isfinite() for loss in losses.values())
    rpn.eval()
    in_eval, _ = rpn(make_images(*sizes), features)
    for boxes, (height, width) in zip(in_training + in_eval, sizes * 2, strict=True):
        assert len(boxes) > 0
        assert (boxes >= 0).all()
        assert (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def spread_rpn(top: int) -> ga.GuidedAnchorRPN:
    """4 x 4 anchors that do not overlap; the features' first channel says how likely each is."""
    rpn = make_rpn((16,), base_scale=1, top=top).eval()
    for parameter in rpn.head.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        rpn.head.conv.weight[0, 0, 1, 1] = 1
        rpn.head.location.weight[0, 0] = 1
        rpn.head.location.bias.fill_(-10)
    return rpn


def proposed(rpn: ga.GuidedAnchorRPN, likely: Sequence[int]) -> set[int]:
    """Locations that give a proposal where these, and only these, are likely, in falling order."""
    features = torch.zeros(1, 8, 4, 4)
    for rank, location in enumerate(likely):
        features[0, 0].view(-1)[location] = 12 - 0.1 * rank
    boxes, _ = rpn(make_images((64, 64)), {0: features})
    corner = (boxes[0][:, 2:] / 16).floor()
    return set((4 * corner[:, 1] + corner[:, 0]).int().tolist())


def test_unlikely_locations_give_no_proposals() -> None:
    assert proposed(spread_rpn(top=2), [3, 5, 9, 14]) <= {3, 5, 9, 14}
    assert proposed(spread_rpn(top=2), [6, 12]) == {6, 12}


@pytest.mark.parametrize(("probability", "given"), [(0.011, {1, 2, 3}), (0.009, {1, 2})])
def test_location_filter_is_at_one_percent(probability: float, given: set[int]) -> None:
    rpn = spread_rpn(top=2)
    images, features = make_images((64, 64)), torch.zeros(1, 8, 4, 4)
    features[0, 0, 0] = torch.tensor([0.0, 12, 12, 10 + math.log(probability / (1 - probability))])
    likely = ga.likely(rpn.head([features]).location, rpn.post_nms_top_n())
    assert set(likely[0].nonzero().flatten().tolist()) == given
    assert len(rpn(images, {0: features})[0][0]) == 2


def test_unlikely_locations_do_not_take_the_place_of_what_nms_removes() -> None:
    rpn = spread_rpn(top=2)
    rpn.anchor_generator.base_scale = 2  # neighbours overlap by a third
    rpn.nms_thresh = 0.3
    assert len(proposed(rpn, [5, 6])) == 1


def test_location_filter_leaves_as_many_locations_as_proposals_are_wanted() -> None:
    assert proposed(spread_rpn(top=1), []) != set()
    assert proposed(spread_rpn(top=16), [6, 12]) == set(range(16))


def test_score_threshold_is_kept() -> None:
    rpn, features = make_rpn(score_thresh=0.9).eval(), make_features((64, 64))
    proposals, _ = rpn(make_images((64, 64)), features)
    assert len(proposals[0]) == 0  # an untrained network is sure of nothing


def test_training_wants_targets() -> None:
    with pytest.raises(ValueError, match="targets"):
        make_rpn()(make_images((64, 64)), make_features((64, 64)))


def test_traced_network_gives_the_same_proposals_for_other_features() -> None:
    rpn = make_rpn().eval().requires_grad_(False)
    nn.init.normal_(rpn.head.offset.weight)
    images, features = make_images((64, 64)), make_features((64, 64))

    def propose(fine: Tensor, coarse: Tensor) -> Tensor:
        boxes: Tensor = rpn(images, {"8": fine, "16": coarse})[0][0]
        return boxes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, as they should
        traced = torch.jit.trace(propose, tuple(features.values()))
        other = [2 - level for level in features.values()]
        assert torch.equal(traced(*other), propose(*other))


def test_same_seed_same_losses_and_proposals() -> None:
    def once() -> tuple[Tensor, dict[str, Tensor]]:
        rpn = make_rpn(seed=3)
        boxes, losses = rpn(make_images((96, 96)), make_features((96, 96)), targets(OBJECTS))
        return boxes[0], losses

    (boxes, losses), (again, losses_again) = once(), once()
    assert torch.equal(boxes, again)
    assert all(torch.equal(losses[name], losses_again[name]) for name in LOSSES)


def test_autocast_in_bfloat16() -> None:
    rpn, features = make_rpn(), make_features((64, 64))
    half = copy.deepcopy(rpn)
    torch.manual_seed(1)
    _, losses = rpn(make_images((64, 64)), features, targets(OBJECTS))
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        boxes, rounded = half(make_images((64, 64)), features, targets(OBJECTS))
    sum(rounded.values()).backward()
    assert boxes[0].dtype == torch.float32
    for name, loss in losses.items():
        assert rounded[name].dtype == torch.float32
        assert rounded[name].item() == pytest.approx(loss.item(), rel=0.05, abs=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_on_cuda(dtype: torch.dtype) -> None:
    rpn = make_rpn().cuda()
    features = {name: level.cuda() for name, level in make_features((64, 64)).items()}
    with torch.autocast("cuda", dtype):
        _, losses = rpn(make_images((64, 64)), features, targets(OBJECTS.cuda()))
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rpn.parameters())


def test_one_picture_can_be_learned_by_heart() -> None:
    torch.manual_seed(0)
    objects = torch.tensor([[10.0, 12, 42, 50], [70, 60, 120, 90], [20, 80, 60, 120]])
    picture = 0.2 * torch.rand(1, 3, 128, 128)
    for left, top, right, bottom in objects.int().tolist():
        picture[:, :, top:bottom, left:right] += 0.5 + torch.rand(1, 3, 1, 1)
    fine = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4, padding=2),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
    )
    coarse = nn.Sequential(
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU()
    )
    rpn = make_rpn(channels=32)
    parameters = [p for module in (fine, coarse, rpn) for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.03, momentum=0.9)
    images = make_images((128, 128))

    def features() -> dict[str, Tensor]:
        level = fine(picture)
        return {"fine": level, "coarse": coarse(level)}

    history = []
    for _ in range(100):
        _, losses = rpn(images, features(), targets(objects))
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    rpn.eval()
    proposals, _ = rpn(images, features())
    assert history[-1] < 0.2 * history[0]
    assert (box_iou(objects, proposals[0][:10]).amax(dim=1) >= 0.5).all()
