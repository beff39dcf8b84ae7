"""Names, wiring and the numbers that come with a structure."""

import subprocess
import sys

import pytest

from smnas.detectors import components
from smnas.detectors.components import (
    BACKBONES,
    PRETRAINED_BACKBONES,
    Stage,
    anchor_share,
    anchor_sizes,
    check_count,
    check_list,
    check_option,
    guided_anchor_scale,
    load_library,
    map_side,
    parse_input_size,
    training_values,
)
from smnas.errors import MissingLibraryError, SpaceError

PYRAMID = {level: Stage(64, 2**level) for level in (2, 3, 4, 5)}
SINGLE = {5: Stage(256, 32)}


def test_input_size():
    assert parse_input_size("1333x800") == (1333, 800)


@pytest.mark.parametrize("text", ["800", "800x", "x800", "0x10", "-1x5", "800X600", "8 x6", "", 5])
def test_malformed_input_size(text):
    with pytest.raises(SpaceError, match="wanted WIDTHxHEIGHT"):
        parse_input_size(text)


@pytest.mark.parametrize(
    ("size", "level", "side"),
    [
        ("96x96", 5, 3),
        ("97x200", 5, 4),
        ("160x160", 6, 3),
        ("128x128", 6, 2),
        ("288x288", 7, 3),
        ("256x300", 7, 2),
        ("1333x800", 5, 25),
        ("1333x800", 6, 13),
    ],
)
def test_map_side(size, level, side):
    assert map_side(size, level) == side


@pytest.mark.parametrize("size", ["512x512", "800x600", "1080x720", "1333x800"])
def test_the_papers_sizes_have_the_papers_values(size):
    plain = training_values(size, "rpn", "rcnn")
    assert plain.pre_nms_top_n == plain.post_nms_top_n == {"training": 2000, "testing": 1000}
    assert (plain.rpn_batch, plain.roi_batch) == (256, 512)
    assert plain.iou_thresholds == (0.5,)
    assert plain.loss_weights == (1.0,)


def test_cascade_values():
    assert training_values("512x512", "rpn", "cascade2").iou_thresholds == (0.5, 0.6)
    three = training_values("512x512", "rpn", "cascade3")
    assert three.iou_thresholds == (0.5, 0.6, 0.7)
    assert three.loss_weights == (1.0, 0.5, 0.25)


def test_guided_anchoring_values():
    values = training_values("512x512", "ga_rpn", "cascade3")
    assert values.post_nms_top_n == {"training": 300, "testing": 300}
    assert values.pre_nms_top_n == {"training": 2000, "testing": 1000}
    assert values.iou_thresholds == (0.6, 0.7, 0.75)
    assert training_values("512x512", "ga_rpn", "cascade2").iou_thresholds == (0.6, 0.7)
    assert training_values("512x512", "ga_rpn", "rcnn").iou_thresholds == (0.5,)


def test_values_shrink_with_the_area_down_to_floors():
    quarter = training_values("256x256", "rpn", "rcnn")
    assert quarter.post_nms_top_n == {"training": 500, "testing": 250}
    assert (quarter.rpn_batch, quarter.roi_batch) == (64, 128)
    tiny = training_values("96x96", "ga_rpn", "rcnn")
    assert tiny.pre_nms_top_n == tiny.post_nms_top_n == {"training": 100, "testing": 100}
    assert (tiny.rpn_batch, tiny.roi_batch) == (64, 64)


def test_anchors_of_full_sized_inputs():
    assert anchor_sizes(PYRAMID, "800x600", one_stage=False) == ((32,), (64,), (128,), (256,))
    one_stage = anchor_sizes(PYRAMID, "800x600", one_stage=True)
    assert one_stage[1] == pytest.approx((32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)))
    for both in (True, False):
        assert anchor_sizes(SINGLE, "512x512", one_stage=both) == ((32, 64, 128, 256, 512),)
    assert guided_anchor_scale(PYRAMID, "512x512") == 8
    assert guided_anchor_scale(SINGLE, "512x512") == 4


def test_anchors_shrink_with_the_side_to_a_half():
    assert anchor_share("384x384") == 0.75
    assert anchor_share("256x256") == anchor_share("96x96") == 0.5
    assert anchor_sizes(PYRAMID, "160x160", one_stage=False) == ((16,), (32,), (64,), (128,))
    assert anchor_sizes(SINGLE, "160x160", one_stage=True) == ((16, 32, 64, 128, 256),)
    assert guided_anchor_scale(PYRAMID, "160x160") == 4


@pytest.mark.parametrize("stages", [PYRAMID, SINGLE])
@pytest.mark.parametrize("one_stage", [True, False])
@pytest.mark.parametrize("side", [16, 40, 100])
def test_small_pictures_have_an_anchor_near_every_object(stages, one_stage, side):
    """Of objects of 16 to 100 pixels in 160, none is off by more than an octave's half."""
    sizes = [
        size for level in anchor_sizes(stages, "160x160", one_stage=one_stage) for size in level
    ]
    best = max(min(size, side) ** 2 / max(size, side) ** 2 for size in sizes)
    assert best >= 0.5


def test_options_are_checked_by_name():
    check_option("backbone", "resnet18", BACKBONES)
    with pytest.raises(SpaceError, match="backbone: wanted one of .* got 'resnet81'.*'resnet18'"):
        check_option("backbone", "resnet81", BACKBONES)


@pytest.mark.parametrize("number", [0, -1, 1.5, "3", True, None])
def test_counts_are_positive_integers(number):
    with pytest.raises(SpaceError, match="num_classes: wanted a positive integer"):
        check_count("num_classes", number)


@pytest.mark.parametrize("options", [[], (), "96x96", ["96x96", "96x96"], 5, None])
def test_lists_have_different_options(options):
    with pytest.raises(SpaceError, match="sizes: wanted a list of different WIDTHxHEIGHT"):
        check_list("sizes", options, "WIDTHxHEIGHT")


def test_pretrained_backbones_are_backbones():
    assert set(BACKBONES) - set(PRETRAINED_BACKBONES) == {"resnext101"}


def test_torchvision_is_the_library_where_detectron2_is_not(monkeypatch):
    monkeypatch.setattr(components, "_has_detectron2", lambda: False)
    assert load_library("auto") is load_library("torchvision")
    assert load_library("auto").__name__ == "smnas.detectors.torchvision"
    with pytest.raises(MissingLibraryError, match=r"smnas\[detectron2\]"):
        load_library("detectron2")


def test_auto_is_detectron2_where_it_is(monkeypatch):
    monkeypatch.setattr(components, "_has_detectron2", lambda: True)
    assert components.resolve_library("auto") == "detectron2"
    assert components.resolve_library("torchvision") == "torchvision"


def test_unknown_library():
    with pytest.raises(SpaceError, match="library: wanted one of .*'torchvision'"):
        load_library("torchvison")


def test_importing_the_parts_warns_of_nothing():
    """NNI's import warns about names in torch.nn; users should not have to read that."""
    code = "import smnas.detectors.space"
    run = subprocess.run(
        [sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True
    )
    assert "nn.Module" not in run.stderr
