"""What goes into detectron2's layers: norms through its hooks, standardised weights, two necks.

The parts name these in their configs. Imports detectron2 and torch.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import Backbone
from torch import Tensor, nn

from smnas.detectors.components import NORMS, check_option
from smnas.detectors.necks import TOP_LEVEL, linear_conv
from smnas.detectors.norms import WeightStandardizedConv2d, group_count

Norm = str | Callable[[int], nn.Module]
"""What detectron2 takes for a norm: one of its names, or what builds one from channels."""

STOCK_GROUPS = 32
"""Of the GroupNorm that detectron2 calls `GN`."""

TOP_MAP = f"res{TOP_LEVEL}"


class GroupNorm(nn.GroupNorm):
    """A norm hook: as many groups as `norms.group_count` says, for widths that 32 does not divide.

    Args:
        channels: of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(group_count(channels), channels)


class StandardizingGroupNorm(GroupNorm):
    """The same, and the mark of a convolution whose weights `standardized` has to standardise."""


def norm_hook(name: str, *widths: int) -> Norm:
    """What to give to detectron2 for a norm of ours.

    Args:
        name: one of `NORMS`.
        widths: that it will have to do with; detectron2's own `GN` will do for most.

    Raises:
        SpaceError: no norm of that name.
    """
    check_option("norm", name, NORMS)
    if name == "gn" and all(group_count(width) == STOCK_GROUPS for width in widths):
        return "GN"
    hooks: dict[str, Norm] = {"gn_ws": StandardizingGroupNorm, "gn": GroupNorm, "bn": "BN"}
    return hooks.get(name, "FrozenBN")


def head_norm_hook(name: str, width: int) -> Norm:
    """The same for necks and heads, which have a norm only if it is a GroupNorm; `""` is none.

    Raises:
        SpaceError: no norm of that name.
    """
    hook = norm_hook(name, width)
    return hook if name.startswith("gn") else ""


class StandardizedConv2d(WeightStandardizedConv2d, Conv2d):
    """detectron2's convolution, norm and activation included, by standardised filters."""

    norm: nn.Module | None
    activation: Callable[[Tensor], Tensor] | None

    def forward(self, x: Tensor) -> Tensor:
        hidden = super().forward(x)
        hidden = hidden if self.norm is None else self.norm(hidden)
        return hidden if self.activation is None else self.activation(hidden)


def standardized(module: nn.Module) -> nn.Module:
    """Standardises the weights of all convolutions in front of a `StandardizingGroupNorm`.

    A norm hook sees what a convolution gives and not its weights, so this comes after building: a
    LazyConfig wraps its model into it. Parameters keep their names.

    Returns:
        The same module, changed in place.
    """
    for child in module.modules():
        if isinstance(child, Conv2d) and isinstance(child.norm, StandardizingGroupNorm):
            # detectron2's pyramid also keeps its convolutions in a plain list, in which a twin
            # could not take their place
            child.__class__ = StandardizedConv2d
        elif isinstance(child, nn.Sequential):
            _standardize_row(child)
    return module


def _standardize_row(row: nn.Sequential) -> None:
    for layer, norm in pairwise(row):
        if type(layer) is nn.Conv2d and isinstance(norm, StandardizingGroupNorm):
            layer.__class__ = WeightStandardizedConv2d


class SingleMap(Backbone):
    """No pyramid: the backbone's last map, narrowed by one 1x1 convolution (see `necks.Neck`).

    Args:
        bottom_up: with a map `res5`.
        out_channels: of the only map, `p5`.
        norm: as detectron2 takes it.
    """

    def __init__(self, bottom_up: Backbone, out_channels: int, norm: Norm = "") -> None:
        super().__init__()
        self.bottom_up = bottom_up
        shape = bottom_up.output_shape()[TOP_MAP]
        own_norm = get_norm(norm, out_channels)
        conv = Conv2d(shape.channels, out_channels, 1, bias=own_norm is None, norm=own_norm)
        self.narrow = linear_conv(conv)
        self._stride = shape.stride
        name = f"p{TOP_LEVEL}"
        self._out_features = [name]
        self._out_feature_channels = {name: out_channels}
        self._out_feature_strides = {name: shape.stride}

    @property
    def size_divisibility(self) -> int:
        """Pictures are padded to whole cells."""
        return self._stride

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {self._out_features[0]: self.narrow(self.bottom_up(x)[TOP_MAP])}


class LastLevelP6(nn.Module):
    """Level 6 alone, learned: what detectron2's `LastLevelP6P7` is for two levels.

    Args:
        width: channels of all levels.
    """

    num_levels = 1
    in_feature = f"p{TOP_LEVEL}"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.p6 = linear_conv(nn.Conv2d(width, width, 3, 2, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of the new levels."""
        return [self.p6(x)]
