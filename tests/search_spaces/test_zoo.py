"""The zoo: every architecture builds, has its published size, and belongs to its space."""

import json

import pytest
import torch
from torch import nn
from torchvision.models import detection
from typer.testing import CliRunner

from search_spaces import zoo
from smnas import cli
from smnas.detectors.components import CASCADE_STAGES
from smnas.detectors.space import load_space
from smnas.detectors.torchvision import Detector
from smnas.encoding import Encoding
from smnas.errors import SpaceError, UserError
from smnas.objectives.cost import count_parameters

# With 80 classes and gn_ws.
PARAMETERS = {
    "sm_nas_e0": 16_224_996,
    "sm_nas_e3": 52_045_222,
    "faster_rcnn_mobilenet_v2_fpn": 19_858_596,
    "faster_rcnn_r18_fpn": 28_690_404,
    "faster_rcnn_r34_fpn": 38_798_564,
    "faster_rcnn_r50_fpn": 41_759_204,
    "faster_rcnn_r101_fpn": 60_751_332,
    "faster_rcnn_x50_fpn": 41_231_076,
    "retinanet_r18_fpn": 20_823_860,
    "retinanet_r50_fpn": 33_843_508,
    "cascade_rcnn_r18_fpn": 56_328_014,
    "cascade_rcnn_r50_fpn": 69_396_814,
}
EVOLVED = ("sm_nas_e0", "sm_nas_e3")

RESNET50_NORMS = 53_120
"""Scales and shifts of a ResNet-50's norms, which torchvision's published detectors have frozen."""


def on_meta(name: str, **arguments: object) -> nn.Module:
    """Without memory or arithmetic: shapes only."""
    with torch.device("meta"):
        return zoo.build(name, library="torchvision", **arguments)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_builds_by_name_with_its_number_of_parameters(name):
    detector = on_meta(name)
    assert isinstance(detector, Detector)
    assert count_parameters(detector) == PARAMETERS[name]
    assert detector.input_size == zoo.find(name).sample["input_size"]
    assert detector.num_classes == 80


@pytest.mark.parametrize(("name", "published_m"), [("sm_nas_e0", 16.23), ("sm_nas_e3", 52.05)])
def test_sizes_published_by_sm_nas(name, published_m):
    assert zoo.find(name).published.params_m == published_m
    assert PARAMETERS[name] / 1e6 == pytest.approx(published_m, rel=4e-4)


@pytest.mark.parametrize("name", EVOLVED)
def test_backbones_of_sm_nas_are_those_of_their_strings(name):
    backbone = on_meta(name).model.backbone.backbone
    assert str(backbone.string) == zoo.find(name).note


@pytest.mark.parametrize("name", EVOLVED)
@pytest.mark.parametrize("change", ["levels", "boxes"])
def test_other_meanings_of_the_parts_miss_the_published_sizes(name, change):
    """What the sizes say beside the string: from which level on, and whose the boxes are."""
    architecture = zoo.find(name)
    other = dict(architecture.sample)
    if change == "levels":
        other["neck_start"] = 5 - other["neck_start"]
        with torch.device("meta"):
            space = load_space(architecture.space, architecture.space_args)
            found = count_parameters(space.freeze(other))
    else:
        # From boxes of each class to boxes of all together, or back.
        stages = CASCADE_STAGES[other["head"]]
        found = PARAMETERS[name] + (1 if stages > 1 else -1) * stages * 80 * 4 * 1025
    assert abs(found / 1e6 / architecture.published.params_m - 1) > 2.5e-3


@pytest.mark.parametrize(
    ("name", "classes", "weights"),
    [
        ("faster_rcnn_r50_fpn", 90, detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1),
        ("retinanet_r50_fpn", 91, detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1),
    ],
)
def test_sizes_published_by_torchvision(name, classes, weights):
    """Theirs have 91 categories, the first of them background where a head has one."""
    found = count_parameters(on_meta(name, num_classes=classes, norm="bn"))
    assert found - RESNET50_NORMS == weights.meta["num_params"]


@pytest.mark.parametrize("name", EVOLVED)
def test_evolved_samples_belong_to_their_spaces(name):
    architecture = zoo.find(name)
    with torch.device("meta"):
        space = load_space(architecture.space, architecture.space_args)
    Encoding.of(space).check(architecture.sample)


def test_hand_made_samples_belong_to_one_space():
    made = [entry for name, entry in zoo.ZOO.items() if name not in EVOLVED]
    assert len({(entry.space, json.dumps(entry.space_args)) for entry in made}) == 1
    with torch.device("meta"):
        encoding = Encoding.of(load_space(made[0].space, made[0].space_args))
    assert len({tuple(encoding.check(entry.sample)) for entry in made}) == len(made) == 10


@pytest.mark.parametrize("name", ["sm_nas_e0", "cascade_rcnn_r18_fpn"])
def test_works_at_another_size(name):
    torch.manual_seed(0)
    detector = zoo.build(name, num_classes=3, input_size="160x160").eval()
    assert detector.input_size == "160x160"
    picture = torch.rand(3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (found,) = detector([picture])
    assert set(found) == {"boxes", "labels", "scores"}
    assert zoo.find(name).sample["input_size"] != "160x160"


def test_the_same_seed_gives_the_same_detector():
    detectors = []
    for _ in range(2):
        torch.manual_seed(1)
        detectors.append(zoo.build("sm_nas_e0", num_classes=3, input_size="160x160"))
    first, second = (list(detector.parameters()) for detector in detectors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_cannot_be_built():
    with pytest.raises(
        SpaceError, match="no architecture named 'sm_nas_e9'; did you mean 'sm_nas_"
    ):
        zoo.build("sm_nas_e9")
    with pytest.raises(SpaceError, match="map of 3x3 cells on level 6, got '96x96'"):
        zoo.build("retinanet_r18_fpn", input_size="96x96")
    with pytest.raises(SpaceError, match="norm: wanted"):
        zoo.build("sm_nas_e0", norm="frozen_bn")


def test_the_command_line_prints_it(monkeypatch):
    shown = {name: zoo.find(name) for name in ("sm_nas_e3", "faster_rcnn_r18_fpn")}
    monkeypatch.setattr(zoo, "ZOO", shown)
    done = CliRunner().invoke(cli.app, ["describe", "--zoo"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    cells = [line.strip("│").split() for line in done.output.splitlines() if "│" in line]
    figures = {row[0]: row[2::2] for row in cells if row[0] in shown}
    assert figures["sm_nas_e3"] == ["52.05", "52.05", "0.427", "50.71"]
    assert figures["faster_rcnn_r18_fpn"] == ["28.69", "-", "-", "-"]
    assert "bottleneck_56_211-111111111-2111" in done.output
    done = CliRunner().invoke(cli.app, ["describe", "--zoo", "--json"])
    assert json.loads(done.stdout) == zoo.rows()


@pytest.mark.parametrize(("words", "got"), [([], "neither"), (["--zoo", "a:B"], "both")])
def test_the_command_line_wants_a_space_or_the_zoo(words, got):
    refused = CliRunner().invoke(cli.app, ["describe", *words])
    assert isinstance(refused.exception, UserError)
    assert str(refused.exception) == f"describe: wanted SPACE or --zoo, got {got}"
