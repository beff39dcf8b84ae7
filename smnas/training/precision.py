"""Mixed precision in one place: training, evaluation and latency all compute in the same types."""

from __future__ import annotations

import torch

from smnas.errors import ConfigError


def half_type() -> torch.dtype:
    """bfloat16 where the GPU computes it natively, which needs no loss scaling; else float16."""
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def autocast(device: torch.device, amp: bool) -> torch.autocast:
    """The context in which a detector runs: mixed precision with `amp`, else what the weights are.

    Raises:
        ConfigError: mixed precision on a device that is not a CUDA one.
    """
    if not amp:
        return torch.autocast(device.type, enabled=False)
    if device.type != "cuda":
        raise ConfigError(f"mixed precision: wanted a CUDA device, got {device}")
    return torch.autocast(device.type, dtype=half_type())
