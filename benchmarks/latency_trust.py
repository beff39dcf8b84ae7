"""Whether latencies repeat: test and retest, alone and beside a trial that trains.

    python benchmarks/latency_trust.py

Detectors drawn by chance from the structural space, at sizes for a CPU, are timed by three methods
again and again, all of them once a round: `smnas` as a trial measures (warm-up, median, quiet
window), `no window` the same without asking others for quiet, `plain` the mean of ten calls by
`time.time()` on the detector as it was built. First with nothing else of ours on the machine, then
beside `smnas trial` training on all of its cores. For each pair of rounds: Kendall's tau between
the two orders of the detectors, and the median over detectors of |a - b| / ((a + b) / 2).

A machine whose own speed drifts, as virtual ones do, makes every method look bad. So a reference
detector is timed in a quiet window just before and after each detector; the table says how far it
strayed, and both numbers again with each time divided by the reference's at that moment.
One thread a measurement; about 10 minutes on two cores, which nothing else should use.
Prints a table and writes benchmarks/results/latency_trust.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from common import write_results
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau
from torch import nn

from smnas.data.digits import make_digits
from smnas.detectors.components import parse_input_size
from smnas.encoding import Encoding
from smnas.objectives.latency import evaluating, measure_latency
from smnas.quiet import QuietDevice
from smnas.records import Sample, identity
from smnas.runner import CURVE
from smnas.spaces import open_space
from smnas.trial import fresh_detector

SPACE = "search_spaces.structural:StructuralSpace"
SPACE_ARGUMENTS = {
    "num_classes": 10,
    "input_sizes": ["96x72", "128x96", "160x120"],
    "head_width": 256,
}
BUSY = {
    "backbone": "resnet18", "neck": "fpn", "neck_start": 2, "neck_end": 5, "neck_width": 128,
    "rpn": "rpn", "head": "rcnn", "input_size": "160x120",
}  # fmt: skip
"""The detector that trains meanwhile."""

REFERENCE = {**BUSY, "neck_width": 64, "input_size": "96x72"}
"""Timed around each detector, to see how fast the machine is."""

SEED, CALLS = 0, 10
METHODS = ("smnas", "no window", "plain")
START_SECONDS = 600
"""How long the other trial may take until it trains."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detectors", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3, help="rounds, at least 2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    samples = draw(arguments.detectors)
    began, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found["alone"] = measure(samples, arguments.repeats, folder)
        with training(folder, len(os.sched_getaffinity(0))):
            found["beside a trial"] = measure(samples, arguments.repeats, folder)
    rows = [
        {
            "situation": situation,
            "method": method,
            **agreement(np.array(methods[method])),
            "drift_taken_out": agreement(np.array(methods[method]) / speed(methods)),
        }
        for situation, methods in found.items()
        for method in METHODS
    ]
    drift = {situation: strayed(speed(methods)) for situation, methods in found.items()}
    show(rows, drift)
    results = {
        "detectors": [dict(sample) for sample in samples],
        "reference": REFERENCE,
        "agreement": rows,
        "drift": drift,
        "times_ms": found,
        "seconds": time.monotonic() - began,
    }
    print(write_results("latency_trust", results))


def draw(count: int) -> list[Sample]:
    """Different legal samples by chance."""
    encoding = Encoding.of(open_space(SPACE, None, **SPACE_ARGUMENTS))
    rng, found = np.random.default_rng(SEED), {}
    while len(found) < count:
        sample = encoding.sample(encoding.random(rng))
        found.setdefault(identity(sample), sample)
    return list(found.values())


def measure(samples: list[Sample], repeats: int, folder: Path) -> dict[str, list[list[float]]]:
    """Milliseconds by method: a row a round, a column a detector; those of the reference before and
    after each detector, a column more.
    """
    shared, own = QuietDevice("cpu"), QuietDevice("cpu", folder / "nobody_else")
    times: dict[str, list[list[float]]] = {method: [] for method in (*METHODS, "reference")}
    reference = build(REFERENCE)
    for number in range(repeats):
        for column in times.values():
            column.append([])
        times["reference"][-1].append(as_in_a_trial(reference, shared, quick=True))
        for sample in samples:
            detector = build(sample)
            # first, because it is to meet the detector as it was built
            times["plain"][-1].append(plain_loop(detector))
            times["no window"][-1].append(as_in_a_trial(detector, own))
            times["smnas"][-1].append(as_in_a_trial(detector, shared))
            times["reference"][-1].append(as_in_a_trial(reference, shared, quick=True))
        print(f"round {number + 1} of {repeats}: {json.dumps(times['smnas'][-1])}", flush=True)
    return times


def build(sample: Sample) -> nn.Module:
    return fresh_detector(lambda: open_space(SPACE, None, **SPACE_ARGUMENTS), sample, SEED)


def as_in_a_trial(detector: nn.Module, quiet: QuietDevice, quick: bool = False) -> float:
    size = parse_input_size(str(detector.input_size))
    options: dict[str, Any] = {"device": torch.device("cpu"), "quiet": quiet, "threads": 1}
    if quick:
        options["min_seconds"] = 0.5
    return measure_latency(detector, size, **options).median_ms


def plain_loop(detector: nn.Module) -> float:
    """What most scripts do."""
    width, height = parse_input_size(str(detector.input_size))
    picture = torch.rand(3, height, width, generator=torch.Generator().manual_seed(SEED))
    with evaluating(detector), torch.no_grad():
        start = time.time()
        for _ in range(CALLS):
            detector([picture])
        return (time.time() - start) / CALLS * 1e3


@contextmanager
def training(folder: Path, threads: int) -> Iterator[None]:
    """A trial that trains on this machine until the block ends."""
    make_digits(folder / "data", train=64, val=4, size=(160, 120))
    class_args = {
        "space": SPACE,
        "space_args": {k: v for k, v in SPACE_ARGUMENTS.items() if k != "num_classes"},
        "reference_point": {"latency_ms": 1000},
        "recipe": {"epochs": 10000, "batch": 4},
    }
    (folder / "busy.yml").write_text(yaml.safe_dump({"tuner": {"classArgs": class_args}}))
    (folder / "busy.json").write_text(json.dumps(BUSY))
    command = [
        sys.executable, "-m", "smnas.cli", "trial", folder / "busy.yml", "--data", folder / "data",
        "--sample", folder / "busy.json", "--out", folder / "trial", "--threads", str(threads),
        "--device", "cpu", "--no-checkpoint",
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    with (folder / "busy.log").open("w") as log:
        trial = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], env=environment, stdout=log, stderr=log
        )
    try:
        wait_until_it_trains(trial, folder)
        yield
        if trial.poll() is not None:
            sys.exit(f"the other trial ended early:\n{(folder / 'busy.log').read_text()[-2000:]}")
    finally:
        trial.kill()
        trial.wait()


def wait_until_it_trains(trial: subprocess.Popen[bytes], folder: Path) -> None:
    """Its first line comes after its own measurement of latency."""
    until = time.monotonic() + START_SECONDS
    while not (folder / "trial" / CURVE).exists():
        if trial.poll() is not None or time.monotonic() > until:
            sys.exit(f"the other trial did not start:\n{(folder / 'busy.log').read_text()[-2000:]}")
        time.sleep(0.2)


def agreement(times: np.ndarray) -> dict[str, Any]:
    """How well rounds agree, over all pairs of them: mean, lowest and highest.

    Args:
        times: `rounds x detectors`, at least 2 rounds.
    """
    pairs = list(combinations(times, 2))
    taus = [float(kendalltau(a, b).statistic) for a, b in pairs]
    deviations = [float(np.median(np.abs(a - b) / ((a + b) / 2))) for a, b in pairs]
    return {
        "tau": float(np.mean(taus)),
        "tau_range": [min(taus), max(taus)],
        "deviation": float(np.mean(deviations)),
        "deviation_range": [min(deviations), max(deviations)],
        "median_ms": float(np.median(times)),
    }


def speed(methods: dict[str, list[list[float]]]) -> np.ndarray:
    """The reference's time around each measurement, over its median; above 1 where it is slow."""
    around = np.array(methods["reference"])
    return (around[:, :-1] + around[:, 1:]) / 2 / np.median(around)


def strayed(speeds: np.ndarray) -> dict[str, float]:
    """How far the reference strayed from its own median, and between neighbouring detectors."""
    steps = np.abs(np.diff(speeds, axis=1))
    return {
        "slowest": float(speeds.max()),
        "fastest": float(speeds.min()),
        "median_step": float(np.median(steps)),
    }


def show(rows: list[dict[str, Any]], drift: dict[str, dict[str, float]]) -> None:
    words = [
        f"{situation}: the reference took {one['fastest']:.2f} to {one['slowest']:.2f} x its median"
        for situation, one in drift.items()
    ]
    table = Table(
        title="Test and retest (mean over pairs of rounds, lowest to highest)",
        caption="\n".join(words),
        caption_justify="left",
    )
    names = ("situation", "method", "Kendall's tau", "deviation %", "median ms")
    for name in (*names, "tau without drift", "deviation % without drift"):
        table.add_column(name)
    for row in rows:
        tau, deviation = row["tau_range"], [100 * value for value in row["deviation_range"]]
        table.add_row(
            row["situation"],
            row["method"],
            f"{row['tau']:.3f} ({tau[0]:.3f} to {tau[1]:.3f})",
            f"{100 * row['deviation']:.2f} ({deviation[0]:.2f} to {deviation[1]:.2f})",
            f"{row['median_ms']:.1f}",
            f"{row['drift_taken_out']['tau']:.3f}",
            f"{100 * row['drift_taken_out']['deviation']:.2f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
