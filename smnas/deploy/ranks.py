"""The processes of one training: one by itself, or those that `torchrun` has started.

Sets up torch's process group. Knows nothing of detectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from smnas.errors import ConfigError
from smnas.quiet import QuietDevice

T = TypeVar("T")

PATIENCE = timedelta(hours=6)
"""How long processes wait for the first one, which evaluates alone."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training.

    Args:
        rank: its number, from 0.
        count: of the processes.
        local_rank: its number on this machine.
        device: that it trains on.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this process writes, prints and evaluates."""
        return self.rank == 0

    def quiet(self) -> QuietDevice:
        """The quiet window of this process.

        Processes that share a device wait for each other in every step. If each took the lock by
        itself, one could wait outside for a measurement that waits for another one inside. So the
        first one takes it for all: the others wait for its gradients.
        """
        if self.device.type == "cuda" or self.local_rank == 0:
            return QuietDevice(str(self.device))
        return _Accompanied()

    def together(self, detector: nn.Module) -> nn.Module:
        """The detector, or what averages its gradients over the processes."""
        if self.count == 1:
            return detector
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(detector, device_ids=devices)

    def agreed(self, value: T) -> T:
        """The first process's value, in all of them; waits for it."""
        if self.count == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def share(self, batch: Sequence[int]) -> list[int]:
        """This process's part of a batch, as long as everybody's: a short one is filled up with its
        first members.
        """
        short = -len(batch) % self.count
        whole = [*batch, *(batch[k % len(batch)] for k in range(short))]
        return whole[self.rank :: self.count]

    def seed(self, *numbers: int) -> int:
        """A seed that follows from numbers and this process's own, for torch."""
        return int(np.random.SeedSequence([*numbers, self.rank]).generate_state(1)[0])


class _Accompanied(QuietDevice):
    """Stands for a lock that another process holds for this one."""

    def __init__(self) -> None:
        pass

    @contextmanager
    def working(self) -> Iterator[None]:
        yield


@contextmanager
def joined(device: torch.device, batch: int) -> Iterator[Ranks]:
    """Takes part in the training that `torchrun` has started this process for, if it has.

    Args:
        device: what the user wants; on CUDA each process of a machine takes one of its own.
        batch: pictures of a step, in all processes together.

    Raises:
        ConfigError: the batch cannot be divided among the processes.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(device=device)
        return
    if batch % count:
        raise ConfigError(f"--batch: wanted a multiple of the {count} processes, got {batch}")
    local_rank = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), count, local_rank, device)
    finally:
        distributed.destroy_process_group()
