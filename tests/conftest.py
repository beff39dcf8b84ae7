"""What several tests share: a small space, made-up objectives, a journal of made-up outcomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy import toy_outcome, toy_space

from smnas.encoding import Encoding
from smnas.journal import FILE_NAME, Journal
from smnas.objectives.vector import Objectives
from smnas.optimizer import Optimizer
from smnas.records import Outcome, Sample


@pytest.fixture
def encoding() -> Encoding:
    return Encoding.of(toy_space())


@pytest.fixture
def objectives() -> Objectives:
    return Objectives(
        {"latency_ms": "minimize", "map": "maximize"}, {"latency_ms": 50.0, "map": 0.0}
    )


@pytest.fixture
def toy_header(encoding: Encoding, objectives: Objectives) -> dict:
    """A journal header as a search writes it."""
    return {
        "name": "toy",
        "experiment": {
            "objectives": dict(objectives.directions),
            "reference_point": dict(objectives.reference),
            "baselines": {"flat": {"d0": 0, "d1": 0, "d2": 0, "d3": 0, "kind": "a"}},
            "population": 8,
            "seed": 0,
        },
        "space": encoding.describe(),
    }


@pytest.fixture
def toy_run(
    tmp_path: Path, encoding: Encoding, objectives: Objectives, toy_header: dict
) -> Callable[..., Path]:
    """Writes a run folder with a journal of made-up outcomes; returns the folder."""

    def make(trials: int = 30, outcome: Callable[[Sample], Outcome] = toy_outcome) -> Path:
        run = tmp_path / "run"
        baselines = toy_header["experiment"]["baselines"]
        optimizer = Optimizer(encoding, objectives, population=8, baselines=baselines)
        journal = Journal.open(run / FILE_NAME, toy_header)
        for _ in range(trials):
            candidate = optimizer.ask()
            assert candidate is not None
            journal.asked(candidate)
            journal.told(candidate.id, outcome(candidate.sample))
            optimizer.tell(candidate.id, outcome(candidate.sample))
        journal.close()
        return run

    return make


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Threads of several test processes on few cores wait for each other (60 times the time)."""
    torch.set_num_threads(1)
