"""Whole detectors out of torchvision's parts: sizes, what they take and give, how they start."""

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_resnet50_fpn,
    retinanet_resnet50_fpn,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList

from smnas.detectors.torchvision import Backbone, Detector, Head, Neck, Proposals
from smnas.errors import SpaceError

STRUCTURES = [("rpn", "rcnn"), ("rpn", "cascade3"), ("ga_rpn", "cascade2"), ("none", "retinanet")]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build(
    rpn: str = "rpn",
    head: str = "rcnn",
    *,
    backbone: str = "resnet18",
    levels: tuple[int, int] = (3, 5),
    neck: str = "fpn",
    width: int = 32,
    head_width: int = 64,
    num_classes: int = 3,
    input_size: str = "96x96",
    norm: str = "gn_ws",
) -> Detector:
    torch.manual_seed(0)
    body = Backbone(backbone, norm=norm)
    start, end = levels
    pyramid = Neck(
        neck, body.stages, start=start, end=end, width=width, norm=norm, one_stage=rpn == "none"
    )
    proposals = Proposals(rpn, pyramid.stages, input_size=input_size, head=head)
    heads = Head(
        head,
        pyramid.stages,
        num_classes=num_classes,
        input_size=input_size,
        rpn=rpn,
        width=head_width,
        norm=norm,
    )
    return Detector(body, pyramid, proposals, heads)


def let_all_through(detector: Detector) -> Detector:
    """Shows an untrained detector's boxes, all of which are under the score threshold."""
    for module in detector.modules():
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0
    return detector.eval()


def picture(height: int = 96, width: int = 96, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def target(*labels: int) -> dict[str, Tensor]:
    boxes = torch.tensor([[8.0, 8, 40, 44], [30, 20, 90, 92], [60, 4, 76, 20]])[: len(labels)]
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64)}


def detect(detector: Detector, *pictures: Tensor) -> list[dict[str, Tensor]]:
    with torch.no_grad():
        return detector(list(pictures))


def test_faster_rcnn_has_torchvisions_parameters():
    with torch.device("meta"):
        theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
        for norm, difference in (("bn", 0), ("frozen_bn", 41_808_406 - 41_755_286)):
            ours = build(
                backbone="resnet50",
                levels=(2, 6),
                width=256,
                head_width=1024,
                num_classes=90,
                input_size="1333x800",
                norm=norm,
            )
            assert count(ours) == count(theirs) - difference
        # With frozen norms: the number that torchvision publishes.
        assert count(ours) == 41_755_286


def test_retinanet_has_torchvisions_parameters():
    with torch.device("meta"):
        theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
        arguments = {"backbone": "resnet50", "levels": (3, 7), "width": 256, "num_classes": 91}
        ours = build("none", "retinanet", norm="bn", input_size="1333x800", **arguments)
    assert count(ours) == count(theirs) == 34_068_119


def test_faster_rcnn_says_what_torchvisions_says():
    """Same weights, same picture: same boxes."""
    body = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    theirs = FasterRCNN(body, num_classes=4, min_size=512, max_size=512).eval()
    ours = let_all_through(
        build(levels=(2, 6), width=256, head_width=1024, input_size="512x512", norm="bn")
    )
    with torch.no_grad():
        for own, their in zip(ours.parameters(), theirs.parameters(), strict=True):
            own.copy_(their)
    theirs.roi_heads.score_thresh = 0.0
    for rpn in (ours.model.rpn.rpn, theirs.rpn):
        rpn._post_nms_top_n = {"training": 50, "testing": 50}
    (found,), (wanted,) = detect(ours, picture(512, 512)), detect(theirs, picture(512, 512))
    assert len(found["boxes"]) > 50
    for key in ("boxes", "scores", "labels"):
        assert torch.allclose(found[key].float(), wanted[key].float(), atol=1e-3)


@pytest.mark.parametrize(("rpn", "head"), STRUCTURES)
def test_trains_and_detects(rpn, head):
    detector = build(rpn, head)
    losses = detector([picture(), picture(seed=1)], [target(1, 2, 3), target()])
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    assert all(type(name) is str for name in losses)
    found = detect(let_all_through(detector), picture(), picture(60, 100))
    assert [set(one) for one in found] == [{"boxes", "labels", "scores"}] * 2
    for one, (height, width) in zip(found, ((96, 96), (60, 100)), strict=True):
        check_detections(one, height, width)


def check_detections(found: dict[str, Tensor], height: int, width: int) -> None:
    boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
    assert 0 < len(boxes) <= 100
    assert boxes.shape == (len(labels), 4)
    assert set(labels.tolist()) <= {1, 2, 3}
    assert labels.dtype == torch.int64
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (scores.diff() <= 0).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert (boxes.amax(dim=0) <= torch.tensor([width, height, width, height]) + 1e-3).all()


@pytest.mark.parametrize("labels", [(1,), (3,), (1, 2, 3)])
@pytest.mark.parametrize(("rpn", "head"), STRUCTURES)
def test_first_and_last_class_can_be_learnt(rpn, head, labels):
    losses = build(rpn, head)([picture()], [target(*labels)])
    assert sum(losses.values()).isfinite()


def test_one_stage_labels_count_from_one():
    """The target's class is the one that the classification loss raises."""
    detector = build("none", "retinanet")
    logits = detector.model.head.classification_head.cls_logits
    detector([picture()], [target(3)])["classification"].backward()
    slopes = logits.bias.grad.view(-1, 3).sum(dim=0)
    assert slopes.argmin() == 2
    with torch.no_grad():
        logits.bias.view(-1, 3)[:, 2] += 9.0
    (found,) = detect(let_all_through(detector), picture())
    assert found["labels"][0] == 3


@pytest.mark.parametrize(("rpn", "head"), STRUCTURES)
def test_targets_are_left_alone(rpn, head):
    given = target(1, 2)
    build(rpn, head)([picture(120, 200)], [given])
    assert torch.equal(given["boxes"], target(1, 2)["boxes"])
    assert given["labels"].tolist() == [1, 2]


@pytest.mark.parametrize(("rpn", "head"), STRUCTURES)
def test_training_without_targets(rpn, head):
    with pytest.raises(ValueError, match="targets"):
        build(rpn, head)([picture()])


@pytest.mark.parametrize(("rpn", "head"), STRUCTURES)
def test_a_batch_is_its_pictures(rpn, head):
    detector = let_all_through(build(rpn, head))
    both = detect(detector, picture(seed=1), picture(seed=2))
    for one, seed in zip(both, (1, 2), strict=True):
        (alone,) = detect(detector, picture(seed=seed))
        assert torch.allclose(one["scores"], alone["scores"], atol=1e-4)


@pytest.mark.parametrize(("rpn", "head"), STRUCTURES)
def test_an_untrained_detector_says_background(rpn, head):
    """Also with one class, where a uniform softmax would be far over the score threshold."""
    (found,) = detect(build(rpn, head, num_classes=1).eval(), picture())
    assert len(found["boxes"]) == 0


def test_background_prior_of_a_softmax():
    for module in build("rpn", "cascade2", num_classes=7).modules():
        if hasattr(module, "cls_score"):
            assert 1 - module.cls_score.bias.softmax(0)[0].item() == pytest.approx(0.01, rel=1e-4)
            assert module.cls_score.bias[1:].tolist() == [0.0] * 7


@pytest.mark.parametrize(("rpn", "head"), STRUCTURES)
def test_boxes_are_in_the_pictures_own_pixels(rpn, head):
    """A picture of twice the input size is scaled down to what the detector would see anyway."""
    detector = let_all_through(build(rpn, head, input_size="96x96"))
    small = picture()
    large = small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    (of_small,), (of_large,) = detect(detector, small), detect(detector, large)
    assert torch.allclose(of_large["boxes"], of_small["boxes"] * 2, atol=1e-2)


def test_a_picture_that_fits_is_not_interpolated(monkeypatch):
    transform = build(input_size="128x96").model.transform
    calls = []
    interpolate = nn.functional.interpolate
    monkeypatch.setattr(
        nn.functional, "interpolate", lambda *a, **k: calls.append(1) or interpolate(*a, **k)
    )
    for height, width, resized in (
        (96, 128, 0),
        (128, 96, 0),
        (96, 96, 0),
        (90, 128, 0),
        (96, 150, 1),
    ):
        calls.clear()
        images, targets = transform([picture(height, width)], [target(1)])
        assert len(calls) == resized
        if not resized:
            assert images.image_sizes == [(height, width)]
            assert torch.equal(targets[0]["boxes"], target(1)["boxes"])


def test_normalised_by_imagenets_colours():
    images, _ = build().model.transform([torch.full((3, 96, 96), 0.5)])
    wanted = [(0.5 - mean) / deviation for mean, deviation in ((0.485, 0.229), (0.406, 0.225))]
    assert images.tensors[0, [0, 2], 50, 50].tolist() == pytest.approx(wanted)


def test_anchors_stand_on_the_stated_strides():
    """160 pixels are 3 cells of level 6, which are 64 apart and not 160 / 3."""
    detector = build(levels=(2, 6), input_size="160x160")
    generator = detector.model.rpn.rpn.anchor_generator
    maps = [torch.zeros(1, 32, side, side) for side in (40, 20, 10, 5, 3)]
    (anchors,) = generator(ImageList(torch.zeros(1, 3, 160, 160), [(160, 160)]), maps)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert len(anchors) == 3 * sum(side * side for side in (40, 20, 10, 5, 3))
    assert centres[-27:].unique().tolist() == [0, 64, 128]
    sides = (anchors[:, 2:] - anchors[:, :2]).prod(dim=1).sqrt()
    # Torchvision rounds the corners of its anchors to pixels.
    assert sides[0].item() == pytest.approx(16, rel=0.05)
    assert sides[-1].item() == pytest.approx(256, rel=0.01)


def test_rois_are_pooled_alike_whatever_came_first():
    """Torchvision infers scales from its first batch; this one would give it 1/2 instead of 1/4."""
    detector = let_all_through(build(levels=(2, 5)))
    (wanted,) = detect(detector, picture())
    other = let_all_through(build(levels=(2, 5)))
    detect(other, picture(65, 65))
    (found,) = detect(other, picture())
    assert torch.equal(found["boxes"], wanted["boxes"])
    assert other.model.roi_heads.module.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


@pytest.mark.parametrize(
    ("size", "side", "level"),
    [("512x512", 112, 3), ("512x512", 111, 2), ("160x160", 56, 3), ("160x160", 55, 2)]
    + [("160x160", 112, 4), ("160x160", 2000, 5), ("160x160", 2, 2)],
)
def test_small_inputs_spread_their_objects_over_the_pyramid(size, side, level):
    detector = build(levels=(2, 6), input_size=size)
    mapper = detector.model.roi_heads.module.box_roi_pool.map_levels
    assert mapper([torch.tensor([[0.0, 0, side, side]])]).item() + 2 == level


@pytest.mark.parametrize(("rpn", "head"), STRUCTURES)
def test_boxes_and_losses_are_float32_under_autocast(rpn, head):
    detector = build(rpn, head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector([picture()], [target(1, 2)])
        (found,) = detect(let_all_through(detector), picture())
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    # Half-precision coordinates of up to 96 would be multiples of a power of two.
    assert (found["boxes"] * 16 % 1 != 0).any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("rpn", "head"), STRUCTURES)
def test_trains_and_detects_in_half_precision_on_cuda(rpn, head):
    detector = build(rpn, head).cuda().to(memory_format=torch.channels_last)
    images = [picture().cuda(), picture(60, 100).cuda()]
    targets = [{name: value.cuda() for name, value in target(1, 2).items()}] * 2
    with torch.autocast("cuda", dtype=torch.float16):
        losses = detector(images, targets)
    (1024 * sum(losses.values())).backward()
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in detector.parameters())
    with torch.autocast("cuda", dtype=torch.float16):
        found = detect(let_all_through(detector), *images)
    for one, (height, width) in zip(found, ((96, 96), (60, 100)), strict=True):
        check_detections({name: value.cpu() for name, value in one.items()}, height, width)


@pytest.mark.parametrize(
    ("rpn", "head"), [("none", "rcnn"), ("rpn", "retinanet"), ("none", "cascade3")]
)
def test_parts_that_do_not_go_together(rpn, head):
    with pytest.raises(SpaceError, match=f"got rpn '{rpn}' with head '{head}'"):
        build(rpn, head)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "rcn"}, "head: wanted one of .*'rcnn'"),
        ({"rpn": "grpn"}, "rpn: wanted one of"),
        ({"num_classes": 0}, "num_classes: wanted a positive integer, got 0"),
        ({"head_width": -5}, "head_width: wanted a positive integer, got -5"),
        ({"input_size": "big"}, "input_size: wanted WIDTHxHEIGHT"),
        ({"norm": "ln"}, "norm: wanted one of"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(SpaceError, match=message):
        build(**arguments)


def test_values_of_the_structure_arrive():
    detector = build("ga_rpn", "cascade3", input_size="800x600")
    stages = detector.model.roi_heads.module.stages
    assert [stage.proposal_matcher.high_threshold for stage in stages] == [0.6, 0.7, 0.75]
    assert [stage.first for stage in stages] == [True, False, False]
    assert {stage.fg_bg_sampler.batch_size_per_image for stage in stages} == {512}
    assert detector.model.rpn.rpn._post_nms_top_n == {"training": 300, "testing": 300}
    plain = build("rpn", "rcnn", input_size="800x600")
    assert plain.model.rpn.rpn._post_nms_top_n == {"training": 2000, "testing": 1000}
    assert plain.model.roi_heads.module.proposal_matcher.high_threshold == 0.5


def test_priors_of_focal_loss():
    bias = build("none", "retinanet").model.head.classification_head.cls_logits.bias
    assert bias.sigmoid().tolist() == pytest.approx([0.01] * len(bias))
    assert len(bias) == 3 * 9
    assert math.isclose(bias[0].item(), -math.log(99), rel_tol=1e-5)
