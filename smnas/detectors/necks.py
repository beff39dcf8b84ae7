"""Necks: from a backbone's maps to maps of one width that RPN and head read.

The torchvision parts build them between the stages of a backbone and the proposals and the head.
Imports torch and torchvision.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from smnas.detectors.components import NECKS, Stage, Stages, check_count, check_option
from smnas.detectors.norms import head_norm_layer, standardize_weights
from smnas.errors import SpaceError

TOP_LEVEL = 5
"""The coarsest level of a backbone; a neck makes those above it."""

SINGLE_MAP_WIDTH = 256
"""Width of the only map of a detector without a pyramid."""


class LearnedLevels(ExtraFPNBlock):
    """Levels above the pyramid's top by convolutions of stride 2 (Lin et al. 2017, RetinaNet).

    Args:
        width: channels of all levels.
        count: how many levels, at least 1.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            linear_conv(nn.Conv2d(width, width, 3, 2, 1)) for _ in range(count)
        )

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Appends the new levels to the pyramid's maps, and names for them."""
        top = results[-1]
        for index, conv in enumerate(self.convs):
            top = conv(F.relu(top) if index else top)
            results.append(top)
            names.append(f"extra{index}")
        return results, names


class Neck(nn.Module):
    """Maps of one width: a feature pyramid, or the backbone's last map alone.

    Without a pyramid (`none`) that map is narrowed to 256 channels by one 1x1 convolution, as YOLOF
    does (Chen et al. 2021): heads on the 2048 channels of a ResNet-50 would have up to 300 million
    parameters, and would compare head widths rather than a pyramid with none.

    Args:
        kind: one of `NECKS`. The arguments from `start` to `width` are the pyramid's.
        stages: what the backbone states.
        start: finest level, 2 or 3.
        end: coarsest level: 5, 6, or with `one_stage` 7.
        width: channels of every map.
        norm: one of `NORMS`; a GroupNorm follows every convolution, others stay in the backbone.
        one_stage: learn the levels above 5 by convolutions; otherwise level 6 is a subsampled 5 and
            serves the RPN only.

    Attributes:
        stages: channels and stride of each map, finest first.

    Raises:
        SpaceError: unknown kind or norm, levels or a width that are out of range, or levels that
            the backbone does not have.
    """

    def __init__(
        self,
        kind: str,
        stages: Stages,
        *,
        start: int = 2,
        end: int = 5,
        width: int = 256,
        norm: str = "gn_ws",
        one_stage: bool = False,
    ) -> None:
        super().__init__()
        self.stages = neck_stages(
            kind, stages, start=start, end=end, width=width, one_stage=one_stage
        )
        self.inputs = neck_inputs(self.stages)
        channels = [stages[level].channels for level in self.inputs]
        self.maps = (
            _narrowing(channels[-1], norm)
            if kind == "none"
            else FeaturePyramidNetwork(
                channels, width, _extra_levels(width, end, one_stage), head_norm_layer(norm)
            )
        )
        standardize_weights(self.maps, norm)

    def forward(self, levels: dict[int, Tensor]) -> dict[int, Tensor]:
        """Maps by level, finest first, from a backbone's maps by level."""
        if isinstance(self.maps, FeaturePyramidNetwork):
            named = OrderedDict((str(level), levels[level]) for level in self.inputs)
            return dict(zip(self.stages, self.maps(named).values(), strict=True))
        return {TOP_LEVEL: self.maps(levels[TOP_LEVEL])}


def neck_stages(
    kind: str, stages: Stages, *, start: int, end: int, width: int, one_stage: bool
) -> Stages:
    """What a neck of these arguments states; see `Neck`.

    Raises:
        SpaceError: as `Neck`.
    """
    check_option("neck", kind, NECKS)
    if kind == "none":
        start = end = TOP_LEVEL
        width = SINGLE_MAP_WIDTH
    _check_levels(start, end, one_stage)
    check_count("neck_width", width)
    made = {level: Stage(width, 2**level) for level in range(start, end + 1)}
    _check_stages(stages, neck_inputs(made))
    return made


def neck_inputs(made: Stages) -> tuple[int, ...]:
    """The backbone's levels that a neck with these levels reads."""
    return tuple(level for level in made if level <= TOP_LEVEL)


def _check_levels(start: int, end: int, one_stage: bool) -> None:
    last = 7 if one_stage else 6
    if start not in (2, 3, TOP_LEVEL) or not TOP_LEVEL <= end <= last:
        kind = "one-stage" if one_stage else "two-stage"
        raise SpaceError(
            f"neck levels of a {kind} detector: wanted a start of 2 or 3 and an end of 5 to {last},"
            f" got {start} to {end}"
        )


def _check_stages(stages: Stages, inputs: tuple[int, ...]) -> None:
    if not set(inputs) <= set(stages):
        raise SpaceError(
            f"neck: wanted a backbone with maps of the levels {list(inputs)}, got {list(stages)}"
        )


def _extra_levels(width: int, end: int, one_stage: bool) -> ExtraFPNBlock | None:
    if end == TOP_LEVEL:
        return None
    return LearnedLevels(width, end - TOP_LEVEL) if one_stage else LastLevelMaxPool()


def _narrowing(channels: int, norm: str) -> nn.Sequential:
    layer = head_norm_layer(norm)
    conv = linear_conv(nn.Conv2d(channels, SINGLE_MAP_WIDTH, 1, bias=layer is None))
    return nn.Sequential(conv) if layer is None else nn.Sequential(conv, layer(SINGLE_MAP_WIDTH))


def linear_conv(conv: nn.Conv2d) -> nn.Conv2d:
    """Initialises it as torchvision does in its pyramids: no activation follows."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
