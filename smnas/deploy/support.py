"""What of a space cannot be exported, by part, known before anybody trains it (`smnas describe`).

Says what `graph` and `python_file` can do; `tests/deploy` holds it against them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smnas.detectors.backbones import Backbone
from smnas.detectors.serial import SerialBackbone

FORMATS = ("ONNX", "ONNX of any size", "Python", "LazyConfig")
"""What `smnas export` writes: `-o`, `-o --dynamic`, `--python`, `--detectron2`."""

UNSUPPORTED: Mapping[tuple[str, str], Mapping[str, str]] = {}
"""Options of torchvision's parts that formats cannot have: `{(label, option): {format: why}}`."""


def limits(space: Any) -> dict[str, str]:
    """The formats in which no detector of a space can be written, each with its reason.

    Args:
        space: built, with its default `detector`.
    """
    detector: Any = getattr(space, "detector", None)
    module = type(detector).__module__
    if module.startswith("smnas.detectors.detectron2"):
        why = "its parts are detectron2's; search with library: torchvision to have it"
        return {name: why for name in FORMATS if name != "LazyConfig"}
    if module != "smnas.detectors.torchvision":
        why = f"its detectors are of {type(detector).__name__}, which smnas does not know"
        return {name: why for name in FORMATS}
    backbone = detector.model.backbone.backbone
    if not isinstance(backbone, Backbone | SerialBackbone):
        return {"Python": f"its backbones are of {type(backbone).__name__}, not one of smnas's"}
    return {}


def option_limits(label: str, option: Any) -> Mapping[str, str]:
    """The formats that an option of a space over torchvision's parts rules out, with reasons."""
    return UNSUPPORTED.get((label, str(option)), {})


def lines(space: Any) -> list[str]:
    """For a reader: what every, what no detector of a space can be written as."""
    never = limits(space)
    possible = [name for name in FORMATS if name not in never]
    found = [f"export: {', '.join(possible) or 'nothing'}"]
    return found + [f"no export as {name}: {why}" for name, why in never.items()]
