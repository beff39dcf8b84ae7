"""A sample as the parts of a detector, in the order in which a picture passes them: for drawing.

Reads samples only.
"""

from __future__ import annotations

from typing import Any

from smnas.detectors.operators import INNER, STRUCTURE, string_of
from smnas.detectors.strings import STRINGS, BackboneString
from smnas.records import Sample

_PROPOSALS = {"rpn": "RPN", "ga_rpn": "guided-anchoring RPN", "none": "no proposals"}
_HEADS = {
    "rcnn": "R-CNN",
    "cascade2": "Cascade R-CNN, 2 stages",
    "cascade3": "Cascade R-CNN, 3 stages",
    "retinanet": "RetinaNet",
}
_FIRST_STRIDE = 4


def backbone_string(sample: Sample) -> str | None:
    """SM-NAS's code for the inside of the backbone; None where it has none."""
    if set(INNER) <= set(sample):
        string = string_of(sample)
        return None if string is None else str(string)
    return STRINGS.get(str(sample.get("backbone")))


def blocks_of(sample: Sample) -> list[dict[str, Any]]:
    """What to draw: `part`, `text`, and for a backbone with a string its `stages`, each a list of
    blocks (`1` keeps the width, `2` doubles it), output channels and stride.

    Samples of other spaces than smnas's give one block a choice.
    """
    if not set(STRUCTURE) <= set(sample):
        return [{"part": label, "text": str(option)} for label, option in sample.items()]
    levels = f"levels {sample['neck_start']} to {sample['neck_end']}"
    neck = f"FPN, {levels}, {sample['neck_width']} channels"
    return [
        {"part": "input", "text": str(sample["input_size"]).replace("x", " × ")},
        _backbone(sample),
        {"part": "neck", "text": "none" if sample["neck"] == "none" else neck},
        {"part": "proposals", "text": _PROPOSALS.get(str(sample["rpn"]), str(sample["rpn"]))},
        {"part": "head", "text": _HEADS.get(str(sample["head"]), str(sample["head"]))},
    ]


def _backbone(sample: Sample) -> dict[str, Any]:
    string, name = backbone_string(sample), sample.get("backbone", sample.get("block"))
    block = {"part": "backbone", "text": str(name)}
    if string is None:
        return block
    parsed = BackboneString.parse(string)
    stages = [
        [blocks, channels, _FIRST_STRIDE * 2**number]
        for number, (blocks, channels) in enumerate(
            zip(parsed.stages, parsed.channels, strict=True)
        )
    ]
    return block | {"stages": stages}
