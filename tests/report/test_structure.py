from __future__ import annotations

from smnas.detectors.operators import labels_of
from smnas.detectors.strings import BackboneString
from smnas.report.structure import backbone_string, blocks_of

REST = {
    "neck": "fpn",
    "neck_start": 2,
    "neck_end": 5,
    "neck_width": 64,
    "rpn": "ga_rpn",
    "head": "cascade2",
    "input_size": "192x144",
}


def test_a_structural_detector_in_the_order_of_its_parts() -> None:
    assert blocks_of({"backbone": "resnet18", **REST}) == [
        {"part": "input", "text": "192 × 144"},
        {
            "part": "backbone",
            "text": "resnet18",
            "stages": [["11", 64, 4], ["21", 128, 8], ["21", 256, 16], ["21", 512, 32]],
        },
        {"part": "neck", "text": "FPN, levels 2 to 5, 64 channels"},
        {"part": "proposals", "text": "guided-anchoring RPN"},
        {"part": "head", "text": "Cascade R-CNN, 2 stages"},
    ]


def test_the_inside_of_a_modular_backbone() -> None:
    code = "bottleneck_24_1-21-1-122"
    sample = {**labels_of(BackboneString.parse(code)), **REST}
    assert backbone_string(sample) == code
    backbone = blocks_of(sample)[1]
    assert backbone["text"] == "bottleneck"
    assert backbone["stages"] == [["1", 96, 4], ["21", 192, 8], ["1", 192, 16], ["122", 768, 32]]


def test_a_mobilenet_has_no_string_and_no_neck_is_said() -> None:
    blocks = blocks_of({"backbone": "mobilenet_v2", **REST, "neck": "none", "rpn": "none"})
    assert blocks[1] == {"part": "backbone", "text": "mobilenet_v2"}
    assert [block["text"] for block in blocks[2:4]] == ["none", "no proposals"]


def test_a_sample_of_another_space_is_its_choices() -> None:
    blocks = blocks_of({"d0": 3, "kind": "a"})
    assert blocks == [{"part": "d0", "text": "3"}, {"part": "kind", "text": "a"}]
    assert backbone_string({"d0": 3}) is None
