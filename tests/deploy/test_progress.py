"""Averages by closed forms; files that are always whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from smnas.deploy.progress import MovingAverage, save_whole
from smnas.errors import DeployError


def test_the_average_by_hand() -> None:
    """The first step is copied; then the decay is (1 + n) / (10 + n) up to its final value."""
    layer = nn.BatchNorm1d(1)
    average = MovingAverage(layer, 0.25)
    for value in (1.0, 2.0, 3.0):
        layer.weight.data.fill_(value)
        layer.running_mean.fill_(value)
        layer.num_batches_tracked.fill_(int(value))
        average.update()
    second = 1 + (2 - 1) * (1 - 2 / 11)
    expected = second + (3 - second) * (1 - 0.25)  # 3 / 12 is the final decay
    assert average.detector.weight.item() == pytest.approx(expected)
    assert average.detector.running_mean.item() == pytest.approx(expected)
    assert average.detector.num_batches_tracked.item() == 3
    other = MovingAverage(nn.BatchNorm1d(1), 0.25)
    other.load_state_dict(average.state_dict())
    assert other.detector.weight.item() == average.detector.weight.item()


def test_without_a_decay_there_is_none() -> None:
    layer = nn.Linear(1, 1)
    average = MovingAverage(layer, 0.0)
    average.update()
    assert average.detector is layer and average.state_dict() is None


def test_a_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_whole({"a": 1}, path)

    class Unpicklable:
        def __reduce__(self) -> str:
            raise OSError(28, "No space left on device")

    with pytest.raises(DeployError, match="state.pt: cannot be written: No space left"):
        save_whole({"a": Unpicklable()}, path)
    assert torch.load(path, weights_only=True) == {"a": 1}
