"""The structural stage: which modules make up a detector, and how large its input is.

An NNI model space over the parts of a detector library: first the choices, then the rules, then the
wiring. `smnas.detectors.space.load_space` finds it; copy it to write one of your own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

from nni.mutable import Categorical, MutableExpression
from torch import nn

from smnas.detectors.components import (
    BACKBONES,
    HEADS,
    NECKS,
    PRETRAINED_BACKBONES,
    RPNS,
    check_list,
    load_library,
    map_side,
    parse_input_size,
)
from smnas.detectors.space import DetectorSpace
from smnas.errors import SpaceError
from smnas.records import Option

SMALLEST_MAP = 3
"""Cells on the shorter side of the coarsest map, at least (SM-NAS)."""


BACKBONE_SIZES = (
    ("resnet18", "resnet34", "resnet50", "resnet101", "resnext101"),
    ("resnet50", "resnext50", "resnext101"),
)
"""From small to large; a MobileNet compares with none."""


class StructuralSpace(DetectorSpace):
    """Backbone x neck x RPN x head x input size (Yao et al. 2020, SM-NAS, structural level).

    Args:
        num_classes: without background.
        input_sizes: WIDTHxHEIGHT each; pictures are scaled to fit.
        neck_ends: coarsest levels of the pyramid: 5, 6, and 7 for one-stage detectors only.
        norm: `gn_ws`, `gn`, `bn` or `frozen_bn`.
        pretrained: start backbones from ImageNet weights; wants a BatchNorm.
        head_width: of the two fully connected layers of R-CNN heads.
        library: `torchvision`, `detectron2`, or `auto`.

    Raises:
        SpaceError: an argument is out of range.
    """

    def __init__(
        self,
        num_classes: int = 80,
        input_sizes: Sequence[str] = ("512x512", "800x600", "1080x720", "1333x800"),
        neck_ends: Sequence[int] = (5, 6),
        norm: str = "gn_ws",
        pretrained: bool = False,
        head_width: int = 1024,
        library: str = "auto",
    ) -> None:
        super().__init__()
        if norm == "frozen_bn" and not pretrained:
            raise SpaceError("norm: 'frozen_bn' wants pretrained weights, got pretrained: false")
        parts = load_library(library)

        backbone = self.choice("backbone", PRETRAINED_BACKBONES if pretrained else BACKBONES)
        options = structure_options(input_sizes, neck_ends)
        self.monotone = {"backbone": BACKBONE_SIZES, **structure_sizes(options)}
        structure = {label: self.choice(label, listed) for label, listed in options.items()}
        for label, expression in structure_rules(structure).items():
            self.rule(label, expression)

        body = parts.MutableBackbone(backbone, norm=norm, pretrained=pretrained)
        self.detector = wire_detector(
            parts, body, structure, num_classes=num_classes, head_width=head_width, norm=norm
        )


def structure_options(
    input_sizes: Sequence[str],
    neck_ends: Sequence[int],
    neck_widths: Sequence[int] = (64, 128, 256),
) -> dict[str, Sequence[Option]]:
    """What may be chosen of everything but the backbone: `{label: options}`.

    Raises:
        SpaceError: an argument is out of range.
    """
    _check(input_sizes, neck_ends)
    return {
        "neck": NECKS,
        "neck_start": (2, 3),
        "neck_end": neck_ends,
        "neck_width": neck_widths,
        "rpn": RPNS,
        "head": HEADS,
        "input_size": input_sizes,
    }


def structure_sizes(
    options: Mapping[str, Sequence[Option]],
) -> dict[str, Sequence[Sequence[Option]]]:
    """What is larger in a structure: `{label: lists of options from small to large}`.

    More levels, a wider pyramid, more stages of a cascade; an input that is larger in both
    directions. Necks, kinds of proposals and kinds of heads do not compare.

    Args:
        options: of `structure_options`.
    """
    sizes = [str(size) for size in options["input_size"]]
    return {
        "neck_start": [sorted(options["neck_start"], reverse=True)],
        "neck_end": [sorted(options["neck_end"])],
        "neck_width": [sorted(options["neck_width"])],
        "head": [("rcnn", "cascade2", "cascade3")],
        "input_size": [(a, b) for a in sizes for b in sizes if a != b and _fits_into(a, b)],
    }


def _fits_into(size: str, other: str) -> bool:
    pairs = zip(parse_input_size(size), parse_input_size(other), strict=True)
    return all(own <= its for own, its in pairs)


def structure_rules(structure: Mapping[str, Categorical]) -> dict[str, MutableExpression]:
    """What fits together: `{what is ruled: expression}`, for choices of `structure_options`."""
    neck, start, end, width, rpn, head, size = structure.values()
    one_stage = rpn == "none"
    first = (start == start.values[0]) & (end == end.values[0]) & (width == width.values[0])
    rules = {
        "one-stage heads and no others go without an RPN": one_stage == (head == "retinanet"),
        "without a neck its levels and width are the first ones": (neck != "none") | first,
    }
    if 7 in end.values:
        rules["level 7 is for one-stage detectors"] = (end != 7) | one_stage
    for text in size.values:
        for level in end.values:
            if map_side(text, level) < SMALLEST_MAP:
                rules[f"{text} is too small for level {level}"] = (size != text) | (end != level)
    return rules


def wire_detector(
    parts: ModuleType,
    body: nn.Module,
    structure: Mapping[str, Categorical],
    *,
    num_classes: int,
    head_width: int,
    norm: str,
) -> nn.Module:
    """A backbone and everything that a structure has besides, as one detector of that library."""
    neck, start, end, width, rpn, head, size = structure.values()
    levels = parts.MutableNeck(
        neck, body.stages, start=start, end=end, width=width, norm=norm, one_stage=rpn == "none"
    )
    proposals = parts.MutableProposals(rpn, levels.stages, input_size=size, head=head)
    heads = parts.MutableHead(
        head,
        levels.stages,
        num_classes=num_classes,
        input_size=size,
        rpn=rpn,
        width=head_width,
        norm=norm,
    )
    return parts.Detector(body, levels, proposals, heads)


def _check(input_sizes: Sequence[str], neck_ends: Sequence[int]) -> None:
    check_list("input_sizes", input_sizes, "WIDTHxHEIGHT")
    check_list("neck_ends", neck_ends, "levels from 5 to 7")
    if not set(neck_ends) <= {5, 6, 7} or neck_ends[0] == 7:
        raise SpaceError(f"neck_ends: wanted levels from 5 to 7, 7 not first, got {neck_ends!r}")
    for text in input_sizes:
        if map_side(text, neck_ends[0]) < SMALLEST_MAP:
            raise SpaceError(
                f"input_sizes: wanted a map of {SMALLEST_MAP}x{SMALLEST_MAP} cells on level"
                f" {neck_ends[0]}, got {text!r}, which is too small for it"
            )
