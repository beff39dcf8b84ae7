"""What a training keeps between its epochs: checkpoints, averaged weights, scalars for TensorBoard.

A checkpoint is written whole or not at all, so a `kill -9` costs at most the epoch under way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter

from smnas.errors import DeployError


class MovingAverage:
    """An exponential moving average of a detector's weights and buffers.

    The decay grows with the number of steps, as `(1 + n) / (10 + n)` up to its final value, so that
    the first weights, which nobody has trained, are forgotten in a short training, too.

    Args:
        detector: whose weights are averaged; on its device.
        decay: in [0, 1); 0 keeps no average.
    """

    def __init__(self, detector: nn.Module, decay: float) -> None:
        self._detector, self._decay = detector, decay
        self._average = None
        if decay:
            self._average = AveragedModel(detector, multi_avg_fn=self._move, use_buffers=True)

    @property
    def detector(self) -> nn.Module:
        """The detector with the averaged weights, or the detector itself without an average."""
        return self._detector if self._average is None else self._average.module

    def update(self) -> None:
        """Takes the detector's weights of this step in."""
        if self._average is not None:
            self._average.update_parameters(self._detector)

    def state_dict(self) -> dict[str, Any] | None:
        return None if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        if self._average is not None and state is not None:
            self._average.load_state_dict(state)

    @torch.no_grad()
    def _move(self, averages: Sequence[Tensor], now: Sequence[Tensor], count: Tensor | int) -> None:
        number = int(count)
        decay = min(self._decay, (1 + number) / (10 + number))
        for average, value in zip(averages, now, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)


class Scalars:
    """Writes the curves of a training for TensorBoard.

    Args:
        folder: of the event files.
        first_step: what an interrupted training has written from there on is taken back.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        _wait_for_own_second(folder)
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Of one step: loss terms, learning rate, norm of the gradients."""
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def epoch(self, step: int, metrics: Mapping[str, float], part: str) -> None:
        """COCO metrics on a part of the data after an epoch that ended with this step."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"{part}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _wait_for_own_second(folder: Path) -> None:
    """Waits until no event file is of this second.

    TensorBoard reads files in the order of their names: the second in which they were made, then
    the number of the process. Read first, what a resumed training writes would be taken back by
    what it goes on from.
    """
    while any(folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.02)


def save_whole(state: Any, path: Path) -> None:
    """Saves with torch so that the file is always a whole one, the old or the new.

    Raises:
        DeployError: it cannot be written.
    """
    new = path.with_suffix(".new")
    try:
        with new.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        raise DeployError(f"{path}: cannot be written: {error.strerror}") from error
