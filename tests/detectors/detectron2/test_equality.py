"""The same sample through two libraries: sizes, maps, anchors, pooled regions, detections."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from two_libraries import (
    MODULAR,
    STRINGS,
    STRUCTURAL,
    STRUCTURES,
    build,
    count,
    detector_state,
    evolved,
    explained,
    features_state,
    fill,
    smallest_input,
)

from smnas.detectors import torchvision as theirs

pytest.importorskip("detectron2", reason="needs detectron2, see docs/detectron2.md")

from detectron2.config import instantiate  # noqa: E402
from detectron2.structures import Boxes  # noqa: E402

from smnas.detectors.detectron2 import parts as ours  # noqa: E402

pytestmark = pytest.mark.detectron2

DOCS = Path(__file__).parents[3] / "docs" / "detectron2.md"


def sizes(sample: dict, space: str = STRUCTURAL, **arguments: object) -> tuple[int, int]:
    """Parameters of both libraries' detectors, for 80 classes at 800x600."""
    with torch.device("meta"):
        built = [
            build(library, sample, "800x600", space, num_classes=80, **arguments)
            for library in ("torchvision", "detectron2")
        ]
    return count(built[0]), count(built[1])


def documented() -> list[list[str]]:
    """Rows of the equality table in the documentation."""
    rows = re.findall(
        r"^\| `([^`]+)` \| ([\d,]+) \| ([\d,]+) \| (-?[\d,]+) \|", DOCS.read_text(), re.M
    )
    return [[text.replace(",", "") for text in row] for row in rows]


def name_of(sample: dict) -> str:
    return " ".join(map(str, sample.values()))


@pytest.mark.parametrize("sample", STRUCTURES, ids=name_of)
def test_parameters_are_as_documented_and_explained(sample: dict) -> None:
    first, second = sizes(sample, head_width=1024)
    width = 256 if sample["neck"] == "none" else sample["neck_width"]
    assert first - second == explained(sample["head"], "gn_ws", 1024, width)[0]
    assert [name_of(sample), str(first), str(second), str(first - second)] in documented()


@pytest.mark.parametrize("norm", ["gn", "bn"])
@pytest.mark.parametrize("sample", [STRUCTURES[1], STRUCTURES[4], STRUCTURES[6]], ids=name_of)
def test_parameters_with_other_norms(sample: dict, norm: str) -> None:
    first, second = sizes(sample, norm=norm)
    assert first - second == explained(sample["head"], norm, 64, sample["neck_width"])[0]


def test_the_table_has_every_structural_option() -> None:
    from search_spaces.structural import structure_options
    from smnas.detectors.components import BACKBONES

    options = {"backbone": BACKBONES, **structure_options(["800x600"], [5, 6, 7])}
    del options["input_size"]
    for label, listed in options.items():
        assert {sample[label] for sample in STRUCTURES} == set(listed)


def features(
    body: tuple[str, str], norm: str = "gn_ws", kind: str = "fpn", **neck: object
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """torchvision's backbone and neck, and detectron2's two in one with the same weights."""
    part, name = body
    torch.manual_seed(0)
    first = getattr(theirs, part)(name, norm=norm)
    maps = theirs.Neck(kind, first.stages, norm=norm, **neck)
    fill(first)
    fill(maps)
    with torch.device("meta"):
        second = getattr(ours, part)(name, norm=norm)
        config = ours.Neck(kind, second.stages, norm=norm, **neck).on(second.config)
    config = ours.configs.L(ours.configs.standardized)(module=config) if norm == "gn_ws" else config
    both = instantiate(config)
    left = both.load_state_dict(features_state(first, maps), strict=False)
    assert not left.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in left.missing_keys)
    return first.eval(), maps.eval(), both.eval()


def assert_same_maps(first: nn.Module, maps: nn.Module, both: nn.Module, side: int = 64) -> None:
    pictures = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted, found = maps(first(pictures)), both(pictures)
    assert [f"p{level}" for level in wanted] == list(found)
    for level, values in wanted.items():
        assert values.std() > 1e-3
        assert torch.allclose(values, found[f"p{level}"], atol=1e-4, rtol=1e-4)
    shapes = both.output_shape()
    assert {n: (s.channels, s.stride) for n, s in shapes.items()} == {
        f"p{level}": tuple(stage) for level, stage in maps.stages.items()
    }


@pytest.mark.parametrize("sample", STRUCTURES, ids=name_of)
def test_backbone_and_neck_give_the_same_maps(sample: dict) -> None:
    neck = {"start": sample["neck_start"], "end": sample["neck_end"]}
    neck |= {"width": sample["neck_width"], "one_stage": sample["rpn"] == "none"}
    made = features(("Backbone", str(sample["backbone"])), kind=str(sample["neck"]), **neck)
    assert_same_maps(*made, side=128 if sample["neck_end"] == 7 else 64)


@pytest.mark.parametrize("string", STRINGS)
def test_strings_give_the_same_maps(string: str) -> None:
    assert_same_maps(*features(("SerialBackbone", string), width=64))


@pytest.mark.parametrize("norm", ["gn", "bn", "frozen_bn"])
def test_other_norms_give_the_same_maps(norm: str) -> None:
    assert_same_maps(*features(("Backbone", "resnet18"), norm, width=64))


@pytest.mark.parametrize("norm", ["gn_ws", "bn"])
def test_widths_that_32_does_not_divide(norm: str) -> None:
    assert_same_maps(*features(("SerialBackbone", STRINGS[2]), norm, width=80))


@pytest.mark.parametrize("string", STRINGS)
def test_modular_samples_have_the_same_parameters(string: str) -> None:
    first, second = theirs.SerialBackbone(string), ours.SerialBackbone(string)
    assert first.stages == second.stages
    assert count(first) == count(instantiate(second.config))


@pytest.mark.parametrize(("one_stage", "level"), [(False, 6), (True, 5), (True, None)])
def test_anchors_agree_but_for_torchvisions_rounding(one_stage: bool, level: int | None) -> None:
    stages = theirs.Backbone("resnet18").stages
    kind, end = ("none", 5) if level is None else ("fpn", level)
    maps = theirs.Neck(kind, stages, start=3, end=end, width=8, one_stage=one_stage).stages
    cells = [torch.zeros(1, 8, 192 // stage.stride, 192 // stage.stride) for stage in maps.values()]
    pictures = ImageList(torch.zeros(1, 3, 192, 192), [(192, 192)])
    (wanted,) = theirs._Anchors(maps, "192x192", one_stage=one_stage)(pictures, cells)
    generator = instantiate(ours.configs._anchors(maps, "192x192", one_stage=one_stage))
    found = Boxes.cat(generator(cells)).tensor
    scales = len(generator.cell_anchors._buffers["0"]) // 3
    # a cell's anchors: torchvision's by ratio and size, detectron2's by size and ratio
    found = found.view(-1, scales, 3, 4).transpose(1, 2).reshape(-1, 4)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 0.5


def test_rois_are_pooled_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    stages = theirs.Neck("fpn", theirs.Backbone("resnet18").stages, width=8).stages
    cells = {
        level: torch.randn(2, 8, 160 // stage.stride, 160 // stage.stride, generator=generator)
        for level, stage in stages.items()
    }
    corners = torch.rand(2, 20, 2, generator=generator) * 100
    sides = torch.rand(2, 20, 2, generator=generator) ** 2 * 150 + 2
    boxes = list(torch.cat((corners, corners + sides), dim=2).clamp(max=160))
    wanted = theirs._RoIPool(stages, "160x160")(cells, boxes, [(160, 160)] * 2)
    values = theirs.training_values("160x160", "rpn", "rcnn")
    pooler = instantiate(ours.configs.roi_heads(stages, "160x160", 3, 8, values).box_pooler)
    found = pooler(list(cells.values()), [Boxes(own) for own in boxes])
    assert torch.allclose(found, wanted, atol=1e-5)


WHOLE = [
    ("rpn", "rcnn", "fpn"),
    ("rpn", "cascade3", "none"),
    ("ga_rpn", "cascade2", "fpn"),
    ("none", "retinanet", "fpn"),
    ("none", "retinanet", "none"),
]


@pytest.mark.parametrize(("rpn", "head", "neck"), WHOLE)
def test_the_same_weights_detect_the_same(rpn: str, head: str, neck: str) -> None:
    """Whole detectors, with detectron2's anchors in both: those that are not rounded."""
    sample = {"backbone": "resnet18", "neck": neck, "neck_start": 2, "neck_end": 5}
    sample |= {"neck_width": 64, "rpn": rpn, "head": head}
    first, second = (build(library, sample, "128x128") for library in ("torchvision", "detectron2"))
    tell_boxes_apart(first)
    second.model.load_state_dict(detector_state(first))
    share_anchors(first, second)
    for detector in (first.eval(), second.eval()):
        for module in detector.modules():
            loosen(module, one_stage=rpn == "none")
    pictures = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for wanted, found in zip(first(list(pictures)), second(list(pictures)), strict=True):
            assert_same_detections(wanted, found)


def loosen(module: nn.Module, one_stage: bool) -> None:
    """Lets untrained boxes through. RetinaNets go without NMS: torchvision's sees boxes that are
    clipped to the picture, detectron2's sees them whole.
    """
    changes = {"score_thresh": 0.0, "test_score_thresh": 0.0}
    if one_stage:
        changes |= {"nms_thresh": 1.0, "test_nms_thresh": 1.0}
    for name, value in changes.items():
        if hasattr(module, name):
            setattr(module, name, value)


@torch.no_grad()
def tell_boxes_apart(detector: nn.Module) -> None:
    """Spreads the scores: among equals, rounding would decide whom NMS keeps."""
    for name, parameter in detector.named_parameters():
        if name.endswith(("cls_score.weight", "cls_logits.weight")):
            parameter.mul_(30)


def assert_same_detections(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    # torchvision's RetinaNet keeps boxes that lie outside of the picture and are cut to nothing
    sides = wanted["boxes"][:, 2:] - wanted["boxes"][:, :2]
    wanted = {name: value[sides.amin(dim=1) > 0.01] for name, value in wanted.items()}
    assert len(wanted["boxes"]) >= 20
    assert torch.allclose(wanted["scores"][:20], found["scores"][:20], atol=1e-4)
    # what is equally likely may stand in any order
    for box, label in zip(wanted["boxes"][:20], wanted["labels"][:20], strict=True):
        same = found["boxes"][found["labels"] == label]
        assert (same - box).abs().amax(dim=1).min() < 0.05


def share_anchors(first: nn.Module, second: nn.Module) -> None:
    for module in second.modules():
        if type(module).__name__ == "DefaultAnchorGenerator":
            cells = [
                own.view(-1, 3, 4).transpose(0, 1).reshape(-1, 4) for own in module.cell_anchors
            ]
            for own in first.modules():
                if isinstance(own, theirs._Anchors):
                    own.cell_anchors = cells


@pytest.mark.parametrize("library", ["torchvision", "detectron2"])
@pytest.mark.parametrize("sample", STRUCTURES, ids=name_of)
def test_every_option_trains_a_step_and_infers(sample: dict, library: str) -> None:
    trains_a_step_and_infers(build(library, sample, smallest_input(sample)))


@pytest.mark.parametrize("library", ["torchvision", "detectron2"])
def test_an_evolved_detector_trains_a_step_and_infers(library: str) -> None:
    trains_a_step_and_infers(evolved(library))


def trains_a_step_and_infers(detector: nn.Module) -> None:
    picture = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(4))
    boxes = torch.tensor([[2.0, 2, 12, 12], [20, 4, 40, 24], [40, 10, 90, 50], [0, 0, 96, 96]])
    losses = detector([picture], [{"boxes": boxes, "labels": torch.tensor([1, 2, 3, 1])}])
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    sum(losses.values()).backward()
    optimizer.step()
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    assert all(parameter.grad.any() for parameter in detector.parameters())
    with torch.no_grad():
        (found,) = detector.eval()([picture])
    assert set(found) == {"boxes", "labels", "scores"}


def test_a_modular_sample_builds_through_both() -> None:
    from search_spaces.zoo import find

    architecture = find("sm_nas_e3").at("160x160")
    arguments = {**architecture.space_args, "blocks_range": [5, 35], "neck_ends": [5, 6]}
    del arguments["input_sizes"]
    with torch.device("meta"):
        first, second = (
            build(library, architecture.sample, "160x160", MODULAR, **arguments)
            for library in ("torchvision", "detectron2")
        )
    assert count(first) == count(second)
