"""What a detector costs whatever the device: its parameters, its multiply-adds; and peak memory.

The trial measures it before latency. Knows nothing of spaces, data or training.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torchvision  # noqa: F401  (brings the operator that is counted below)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from smnas.objectives.latency import evaluating


@dataclass(frozen=True)
class Cost:
    """Size and work of a whole detector.

    Args:
        params_m: millions of parameters, trained or frozen.
        macs_g: billions of multiply-adds (MACs) for one picture, forward pass and post-processing.
        uncounted: operators of other libraries than torch that ran and have no formula.
    """

    params_m: float
    macs_g: float
    uncounted: tuple[str, ...] = ()

    def to_metrics(self) -> dict[str, float]:
        """The numbers that a trial reports."""
        return {"params_m": self.params_m, "macs_g": self.macs_g}


def measure_cost(model: nn.Module, input_size: tuple[int, int], *, seed: int = 0) -> Cost:
    """Count a detector's parameters and its multiply-adds on one random picture.

    One multiply-add is one MAC. Counted are convolutions (deformable ones without the interpolation
    of their inputs), linear layers, matrix products and attention. Not counted are norms,
    activations, pooling, resizing, softmax, `roi_align` and `nms`. A two-stage detector works as
    much as it has proposals for this picture, so its count depends a little on its weights.

    Args:
        model: in evaluation mode, `model([image])` gives detections; stays where it is, in its
            mode.
        input_size: (width, height) of the picture, in pixels.
        seed: of the picture.
    """
    generator = torch.Generator().manual_seed(seed)
    picture = torch.rand(3, input_size[1], input_size[0], generator=generator)
    picture = picture.to(next(model.parameters()).device)
    with evaluating(model), torch.no_grad():
        macs, uncounted = count_macs(lambda: model([picture]))
    return Cost(count_parameters(model) / 1e6, macs / 1e9, uncounted)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, trained or frozen, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(call: Callable[[], object]) -> tuple[int, tuple[str, ...]]:
    """Multiply-adds of all torch operators in a call, and operators of others without a formula."""
    formulas = {torch.ops.torchvision.deform_conv2d: _deform_conv2d_flops}
    seen = _ForeignOperators()
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with counter, seen:
        call()
    uncounted = seen.names - {"torchvision::deform_conv2d"}
    # The counter counts a multiplication and an addition as two operations.
    return counter.get_total_flops() // 2, tuple(sorted(uncounted))


def peak_memory_mb(device: torch.device) -> float:
    """Most memory that this process has held so far, in millions of bytes.

    On a GPU what torch allocated there; else the resident memory of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _deform_conv2d_flops(
    input_shape: torch.Size, weight_shape: torch.Size, *_: Any, out_shape: torch.Size
) -> int:
    """As for a convolution: every output takes a product with each weight of its channel."""
    return 2 * prod(out_shape) * prod(weight_shape[1:])


class _ForeignOperators(TorchDispatchMode):
    """Notes the names of operators that come from other libraries than torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace not in ("aten", "prim", "prims"):
            self.names.add(f"{func.namespace}::{func._opname}")
        return func(*args, **(kwargs or {}))
