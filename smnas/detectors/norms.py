"""Norm layers by name, and the weight-standardised convolution that trains without BatchNorm.

Backbones, necks and heads take their norm layers from here. Imports torch and torchvision's frozen
norm, nothing of smnas but the names of the options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from smnas.detectors.components import NORMS, check_option

NormLayer = Callable[[int], nn.Module]

EPSILON = 1e-5
"""Keeps a filter of equal weights finite; adds to the variance."""


def group_count(channels: int) -> int:
    """Groups of a GroupNorm: 32 (Wu and He 2018), or the next smaller divisor of the channels.

    A group has at least two channels: groups of one are an instance norm, which would erase a map
    of a single cell.
    """
    most = min(32, max(1, channels // 2))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(group_count(channels), channels)


def norm_layer(name: str) -> NormLayer:
    """What builds the norm of that name from a number of channels.

    Raises:
        SpaceError: no norm of that name.
    """
    check_option("norm", name, NORMS)
    layers: dict[str, NormLayer] = {"bn": nn.BatchNorm2d, "frozen_bn": FrozenBatchNorm2d}
    return layers.get(name, _group_norm)


def head_norm_layer(name: str) -> NormLayer | None:
    """The same for necks and heads, which have a norm only if it is a GroupNorm, as torchvision's.

    Raises:
        SpaceError: no norm of that name.
    """
    layer = norm_layer(name)
    return layer if name.startswith("gn") else None


class _Standardized(NamedTuple):
    """A standardised weight and what it was made of.

    The source is an alias of the parameter: while it is held, nothing else can get its address.
    """

    source: Tensor
    version: int
    weight: Tensor

    def is_of(self, weight: Tensor) -> bool:
        return (
            self.source.data_ptr() == weight.data_ptr()
            and self.version == weight._version
            and self.source.device == weight.device
            and self.source.dtype == weight.dtype
        )


class WeightStandardizedConv2d(nn.Conv2d):
    """Convolution by filters of mean 0 and variance 1 (Qiao et al. 2019, Weight Standardization).

    Takes `nn.Conv2d`'s arguments and has its state dict. In eval mode and without gradients the
    standardised weight is kept until the parameter changes: to standardise the filters anew would
    take most of a small picture's time. Only a change through `weight.data` goes unseen, until
    `train()` or `eval()` is called.
    """

    _kept: _Standardized | None = None

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.standardized_weight(), self.bias)

    def standardized_weight(self) -> Tensor:
        """The weight that convolves: `weight`, its mean taken away, divided by its deviation."""
        # A graph being captured must not depend on what is kept; tensors made in inference mode do
        # not count their changes.
        if torch.compiler.is_compiling() or self.weight.is_inference():
            return self._standardize()
        if self.training or torch.is_grad_enabled():
            # Fused optimisers do not count their changes either, but they need a backward pass.
            self._kept = None
            return self._standardize()
        if self._kept is None or not self._kept.is_of(self.weight):
            source = self.weight.detach()
            self._kept = _Standardized(source, self.weight._version, self._standardize())
        return self._kept.weight

    def _standardize(self) -> Tensor:
        # A layer norm over each filter is the same, and several times as fast as mean and variance.
        filters = F.layer_norm(self.weight, self.weight.shape[1:], eps=EPSILON)
        if self.weight.is_contiguous(memory_format=torch.channels_last):
            return filters.contiguous(memory_format=torch.channels_last)
        return filters

    def train(self, mode: bool = True) -> WeightStandardizedConv2d:
        self._kept = None
        super().train(mode)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


def describe_norm(module: nn.Module) -> str:
    """What a detector normalises with, in words, whichever library it is built with."""
    modules = list(module.modules())
    groups = any(isinstance(one, nn.GroupNorm) for one in modules)
    if any(isinstance(one, WeightStandardizedConv2d) for one in modules):
        return "GroupNorm with weight standardisation"
    if any("FrozenBatchNorm" in type(one).__name__ for one in modules):
        return "frozen BatchNorm"
    return "GroupNorm" if groups else "BatchNorm"


def standardize_weights(module: nn.Module, norm: str) -> None:
    """Replaces the convolutions in front of a norm, those without bias, if the norm is `gn_ws`.

    The weights stay the same parameters. Changes the module in place.
    """
    if norm != "gn_ws":
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d and child.bias is None:
                setattr(parent, name, _standardized_twin(child))


def _standardized_twin(conv: nn.Conv2d) -> WeightStandardizedConv2d:
    twin = WeightStandardizedConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=False,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    twin.weight = conv.weight
    return twin
