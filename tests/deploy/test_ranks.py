"""Shares of a batch, and seeds, of processes that train together."""

from __future__ import annotations

import pytest
import torch

from smnas.deploy.ranks import Ranks, joined
from smnas.errors import ConfigError
from smnas.quiet import QuietDevice


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8])
def test_shares_are_equally_long_and_cover_the_batch(length: int) -> None:
    batch = list(range(10, 10 + length))
    shares = [Ranks(rank, 3).share(batch) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    together = sorted(index for share in shares for index in share)
    assert set(together) == set(batch) and len(together) == -(-length // 3) * 3


def test_one_process_has_the_whole_batch() -> None:
    assert Ranks().share([5, 3, 4]) == [5, 3, 4] and Ranks().first
    assert Ranks().agreed("mine") == "mine"


def test_seeds_differ_by_number_and_process() -> None:
    seeds = {Ranks(rank, 2).seed(7, epoch) for rank in range(2) for epoch in range(50)}
    assert len(seeds) == 100 and Ranks(1, 2).seed(7, 3) == Ranks(1, 2).seed(7, 3)


def test_processes_of_one_cpu_take_the_quiet_window_once() -> None:
    assert type(Ranks(0, 2, 0).quiet()) is QuietDevice
    follower = Ranks(1, 2, 1).quiet()
    assert type(follower) is not QuietDevice
    with follower.working():
        pass
    assert type(Ranks(1, 2, 1, torch.device("cuda", 1)).quiet()) is QuietDevice


def test_batches_have_to_be_divisible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--batch: wanted a multiple of the 2 processes, got 3"):
        with joined(torch.device("cpu"), 3):
            pass
    monkeypatch.delenv("WORLD_SIZE")
    with joined(torch.device("cpu"), 3) as ranks:
        assert ranks == Ranks()
