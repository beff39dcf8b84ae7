"""detectron2's detectors behind our calls: what they take, give and refuse; plain configs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from two_libraries import STRINGS, build, count

from smnas.detectors import backbones as theirs
from smnas.errors import SpaceError, TrialFailure

pytest.importorskip("detectron2", reason="needs detectron2, see docs/detectron2.md")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import build_backbone, build_model  # noqa: E402

from smnas.detectors.detectron2 import backbones, parts  # noqa: E402
from smnas.detectors.detectron2.registry import add_config  # noqa: E402

pytestmark = pytest.mark.detectron2

HEADS = [("rpn", "rcnn"), ("ga_rpn", "cascade2"), ("none", "retinanet")]


def make(rpn: str = "rpn", head: str = "rcnn", **arguments: object) -> nn.Module:
    sample = {"backbone": "resnet18", "neck": "fpn", "neck_start": 3, "neck_end": 5}
    return build(
        "detectron2", {**sample, "neck_width": 64, "rpn": rpn, "head": head}, "96x96", **arguments
    )


def let_all_through(detector: nn.Module) -> nn.Module:
    for module in detector.modules():
        if hasattr(module, "test_score_thresh"):
            module.test_score_thresh = 0.0
    return detector.eval()


def picture(height: int = 96, width: int = 96) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def target(*labels: int) -> dict[str, Tensor]:
    boxes = torch.tensor([[8.0, 8, 40, 44], [30, 20, 90, 92], [60, 4, 76, 20]])[: len(labels)]
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64)}


def detect(detector: nn.Module, *pictures: Tensor) -> list[dict[str, Tensor]]:
    with torch.no_grad():
        return detector(list(pictures))


@pytest.mark.parametrize(("rpn", "head"), HEADS)
def test_the_call_convention(rpn: str, head: str) -> None:
    detector = make(rpn, head)
    given = target(1, 2, 3)
    losses = detector([picture(), picture(120, 200)], [given, target()])
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    assert torch.equal(given["boxes"], target(1, 2, 3)["boxes"]) and given["labels"][0] == 1
    with pytest.raises(ValueError, match="targets"):
        detector([picture()])
    (quiet,) = detect(detector.eval(), picture())
    assert len(quiet["boxes"]) == 0, "an untrained detector says background"
    small, large = picture(), picture().repeat_interleave(2, 1).repeat_interleave(2, 2)
    (of_small,), (of_large,) = detect(let_all_through(detector), small), detect(detector, large)
    assert 0 < len(of_small["boxes"]) <= 100 and set(of_small["labels"].tolist()) <= {1, 2, 3}
    assert (of_small["scores"].diff() <= 0).all() and of_small["labels"].dtype == torch.int64
    assert of_small["boxes"].min() >= 0 and of_small["boxes"].max() <= 96
    assert torch.allclose(of_large["boxes"], 2 * of_small["boxes"], atol=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (half,) = detect(detector, picture())
    assert half["boxes"].dtype == half["scores"].dtype == torch.float32


def test_labels_count_from_one() -> None:
    """The target's class is the one that the classification loss raises; background is last."""
    detector = make("none", "retinanet")
    detector([picture()], [target(3)])["loss_cls"].backward()
    assert detector.model.head.cls_score.bias.grad.view(-1, 3).sum(dim=0).argmin() == 2
    detector = make()
    detector([picture()], [target(3)])["loss_cls"].backward()
    slopes = detector.model.roi_heads.box_predictor.cls_score.bias.grad
    assert slopes[:3].argmin() == 2
    prior = detector.model.roi_heads.box_predictor.cls_score.bias.softmax(0)
    assert prior[-1].item() == pytest.approx(0.99)


def test_a_diverged_training_is_a_nan_loss() -> None:
    detector = make()
    with torch.no_grad():
        detector.model.proposal_generator.rpn_head.conv.weight.fill_(float("nan"))
    with pytest.raises(TrialFailure) as failure:
        detector([picture()], [target(1)])
    assert failure.value.reason == "nan_loss"


def test_all_weights_in_front_of_norms_are_standardised() -> None:
    for arguments in ({}, {"rpn": "none", "head": "retinanet"}):
        plain = [
            name
            for name, module in make(**arguments).model.named_modules()
            if isinstance(module, nn.Conv2d) and not hasattr(module, "standardized_weight")
        ]
        assert all(("rpn_head" in n) or n in ("head.cls_score", "head.bbox_pred") for n in plain)


def test_imagenet_weights_go_to_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = theirs.Backbone, {}

    def without_download(name: str, *, norm: str, pretrained: bool) -> nn.Module:
        assert pretrained
        made["last"] = real(name, norm=norm)
        return made["last"]

    monkeypatch.setattr(backbones.backbones, "Backbone", without_download)
    sample = {"backbone": "resnet50", "neck": "none", "neck_start": 2, "neck_end": 5}
    sample |= {"neck_width": 64, "rpn": "rpn", "head": "rcnn"}
    built = build("detectron2", sample, "96x96", pretrained=True, norm="frozen_bn")
    weight = built.model.backbone.bottom_up.res4[0].shortcut.weight
    assert torch.equal(weight, made["last"].body.layer3[0].downsample[0].weight)


@pytest.mark.parametrize(
    ("part", "arguments", "message"),
    [
        (parts.Backbone, {"name": "vgg"}, "backbone: wanted one of"),
        (parts.Backbone, {"name": "resnet18", "norm": "ln"}, "norm: wanted one of"),
        (parts.Backbone, {"name": "resnext101", "norm": "bn", "pretrained": True}, "ImageNet"),
        (parts.SerialBackbone, {"string": STRINGS[0], "norm": "frozen_bn"}, "norm: wanted"),
        (parts.SerialBackbone, {"string": "basic_64_1"}, "backbone string"),
    ],
)
def test_refusals(part: type, arguments: dict, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        part(**arguments)


def test_our_parts_in_a_plain_config() -> None:
    """yacs, as detectron2's own train_net.py reads it."""
    cfg = get_cfg()
    add_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_serial_fpn_backbone"
    cfg.MODEL.SERIAL.STRING = STRINGS[0]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "GuidedAnchorRPN"
    cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    model = build_model(cfg)
    assert type(model.proposal_generator).__name__ == "GuidedAnchorRPN"
    assert count(model.backbone.bottom_up) == count(backbones.SerialBackbone(STRINGS[0]))
    with torch.no_grad():
        (found,) = model.eval()([{"image": 255 * picture()}])
    assert found["instances"].image_size == (96, 96)
    cfg.MODEL.BACKBONE.NAME = "build_mobilenet_v2_backbone"
    assert build_backbone(cfg).output_shape()["res5"].stride == 32
