"""Backbone strings such as `basicblock_64_11-21-21-21`: SM-NAS's code for the inside of a backbone.

Spaces write them, `SerialBackbone` builds them. This module imports no torch of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

from smnas.detectors.components import check_count
from smnas.errors import SpaceError, nearest

KINDS = ("basicblock", "bottleneck", "resnext")
EXPANSIONS = {"basicblock": 1, "bottleneck": 4, "resnext": 4}
"""Output channels of a block over its width."""

STRINGS = {
    "resnet18": "basicblock_64_11-21-21-21",
    "resnet34": "basicblock_64_111-2111-211111-211",
    "resnet50": "bottleneck_64_111-2111-211111-211",
    "resnet101": f"bottleneck_64_111-2111-2{'1' * 22}-211",
    "resnext50": "resnext_64_111-2111-211111-211",
    "resnext101": f"resnext_64_111-2111-2{'1' * 22}-211",
}
"""The structural space's backbones as strings; its MobileNet has none."""

FEWEST_STAGES = 3
MOST_STAGES = 6
FORM = "KIND_BASEWIDTH_STAGES such as 'basicblock_64_11-21-21-21'"


@dataclass(frozen=True)
class BackboneString:
    """The inside of a backbone: kind and width of its blocks, stages, where the width doubles.

    Stages follow a stem of stride 4. Each but the first begins with a block of stride 2; in a stage
    a `1` is a block that keeps the width and a `2` one that doubles it, so that doubling does not
    depend on down-sampling (Yao et al. 2020, SM-NAS, modular level).

    Args:
        kind: one of `KINDS`.
        base_width: width of the first block if it does not double, 2 to 9999; even for `resnext`,
            which has half as many groups.
        stages: 3 to 6, each of at least one `1` or `2`.

    Raises:
        SpaceError: an argument is out of range; says at which character of the string.
    """

    kind: str
    base_width: int
    stages: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            near = nearest(str(self.kind), KINDS)
            raise self._error(1, f"wanted a block kind, got {self.kind!r}{near}")
        self._check_base_width()
        if not FEWEST_STAGES <= len(self.stages) <= MOST_STAGES:
            wanted = f"{FEWEST_STAGES} to {MOST_STAGES} stages"
            raise self._error(self._stages_at, f"wanted {wanted}, got {len(self.stages)}")
        self._check_stages()

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `KIND_BASEWIDTH_STAGES`; the inverse of `str`.

        Raises:
            SpaceError: malformed; says what was wanted, what was got and at which character.
        """
        fields = text.split("_") if isinstance(text, str) else []
        if len(fields) != 3:
            raise SpaceError(f"backbone string: wanted {FORM}, got {text!r}")
        kind, width, stages = fields
        if not re.fullmatch("[1-9][0-9]{0,3}", width):
            raise _error(text, len(kind) + 2, f"wanted a base width of 2 to 9999, got {width!r}")
        return cls(kind, int(width), tuple(stages.split("-")))

    @classmethod
    def from_numbers(
        cls, kind: str, base_width: int, depths: Sequence[int], doublings: Sequence[int]
    ) -> Self:
        """From blocks per stage and the places of the blocks that double.

        Args:
            kind: one of `KINDS`.
            base_width: as in the class.
            depths: blocks of each stage, at least 1.
            doublings: indices of the `2`s among all blocks, from 0, ascending.

        Raises:
            SpaceError: depths or doublings, or what they make, are out of range.
        """
        for number, depth in enumerate(depths, 1):
            check_count(f"depth of stage {number}", depth)
        count = sum(depths)
        if sorted(set(doublings) & set(range(count))) != list(doublings):
            wanted = f"different indices of blocks from 0 to {count - 1}, ascending"
            raise SpaceError(f"doublings: wanted {wanted}, got {list(doublings)}")
        blocks = "".join("2" if block in doublings else "1" for block in range(count))
        ends = list(accumulate(depths))
        starts = [0, *ends][:-1]
        stages = tuple(blocks[start:end] for start, end in zip(starts, ends, strict=True))
        return cls(kind, base_width, stages)

    def __str__(self) -> str:
        return f"{self.kind}_{self.base_width}_{'-'.join(self.stages)}"

    @property
    def blocks(self) -> str:
        """All blocks, a `1` or a `2` each, without the bounds of stages."""
        return "".join(self.stages)

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return tuple(len(stage) for stage in self.stages)

    @property
    def doublings(self) -> tuple[int, ...]:
        """Indices of the `2`s among all blocks, from 0, ascending."""
        return tuple(index for index, block in enumerate(self.blocks) if block == "2")

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of each stage: base x expansion x 2^(`2`s up to its end)."""
        doubled = accumulate(stage.count("2") for stage in self.stages)
        return tuple(self.base_width * EXPANSIONS[self.kind] * 2**count for count in doubled)

    @property
    def _stages_at(self) -> int:
        return len(f"{self.kind}_{self.base_width}_") + 1

    def _check_base_width(self) -> None:
        width, at = self.base_width, len(self.kind) + 2
        if isinstance(width, bool) or not isinstance(width, int) or not 2 <= width <= 9999:
            raise self._error(at, f"wanted a base width of 2 to 9999, got {width!r}")
        if self.kind == "resnext" and width % 2:
            raise self._error(at, f"wanted an even base width for resnext, got {width}")

    def _check_stages(self) -> None:
        at = self._stages_at
        for number, stage in enumerate(self.stages, 1):
            if not stage:
                raise self._error(at, f"wanted at least one block in stage {number}, got none")
            for offset, block in enumerate(stage):
                if block not in "12":
                    raise self._error(at + offset, f"wanted a block 1 or 2, got {block!r}")
            at += len(stage) + 1

    def _error(self, at: int, complaint: str) -> SpaceError:
        return _error(str(self), at, complaint)


def _error(text: str, at: int, complaint: str) -> SpaceError:
    """An error at a character of the text, counted from 1."""
    return SpaceError(f"backbone string {text!r}, character {at}: {complaint}")
