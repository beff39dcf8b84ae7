"""Whether short training ranks detectors as long training does.

    python benchmarks/proxy_trust.py DATA

Detectors spread over the latencies of the structural space (four hand-made ones, the rest drawn by
chance, one from each of equal strata of the faster ones' latency) are trained on DATA (a folder in
COCO format; BCCD) from scratch, for the few epochs of a search and for at least five times as many,
and ranked on the search split; val is never read. Long trainings have a seed of their own, as a
later training would. Kendall's tau with its bootstrap interval over detectors, the share of the
long training's front that the short one finds, and the hypervolume that its front is worth after
long training.
One thread. Each measurement is one line of the work file, and a rerun goes on where it was stopped.
Prints tables and writes benchmarks/results/proxy_trust.json.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Cell, measure_cells, time_once, train_once, write_results
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

from smnas.encoding import Encoding
from smnas.errors import TrialFailure
from smnas.pareto import hypervolume, non_dominated
from smnas.records import Sample, identity
from smnas.report.tables import describe_sample
from smnas.spaces import open_space
from smnas.training.recipe import Recipe
from smnas.trial import Settings, open_data

SPACE = "search_spaces.structural:StructuralSpace"
SPACE_ARGUMENTS = {"input_sizes": ["96x72", "128x96", "160x120"], "head_width": 256}
SHORT, LONG = (2, 3), 15
SHORT_SEED, LONG_SEED = 0, 1
RECIPE = Recipe(batch=2, lr=0.04)
DRAWN, STRATA, DRAW_SEED = 40, 8, 0
FASTEST = 0.4
"""Of those drawn, this share takes part; the others would take too long to train on a CPU."""

ROUNDS = 5
"""The strata are cut by one measurement, the fronts by the median of as many in turns."""

RESAMPLES = 2000

_FPN = {"neck": "fpn", "neck_end": 5, "neck_width": 128, "input_size": "128x96"}
HAND_MADE: dict[str, Sample] = {
    "faster_rcnn_r18": _FPN
    | {"backbone": "resnet18", "neck_start": 2, "rpn": "rpn", "head": "rcnn"},
    "faster_rcnn_r34": _FPN
    | {"backbone": "resnet34", "neck_start": 2, "rpn": "rpn", "head": "rcnn"},
    "retinanet_r18": _FPN
    | {"backbone": "resnet18", "neck_start": 3, "rpn": "none", "head": "retinanet"},
    "cascade_mobilenet_v2": _FPN
    | {"backbone": "mobilenet_v2", "neck_start": 2, "rpn": "rpn", "head": "cascade3"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/proxy_trust.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = open_data(Settings(SPACE, arguments.data))
    space = open_space(SPACE, num_classes=data[0].num_classes, **SPACE_ARGUMENTS)
    encoding = Encoding.of(space)

    def latency(cell: Cell) -> Cell:
        torch.manual_seed(SHORT_SEED)
        return time_once(space.freeze(cell["latency_of"]))

    def training(cell: Cell) -> Cell:
        torch.manual_seed(cell["seed"])
        detector = space.freeze(cell["sample"])
        try:
            return train_once(detector, *data, Recipe(**cell["recipe"]), cell["seed"])
        except TrialFailure as failure:
            return {"failed": failure.reason}

    hand_made = [encoding.sample(encoding.check(sample)) for sample in HAND_MADE.values()]
    cells = [{"latency_of": dict(sample)} for sample in (*hand_made, *draw(encoding))]
    timed = measure_cells(arguments.work, cells, latency)
    chosen = choose(timed)
    maps = [
        _maps(measure_cells(arguments.work, training_cells(row["latency_of"]), training))
        for row in chosen
    ]
    again = measure_cells(arguments.work, timing_cells(chosen), latency)
    rows = [
        row
        | one
        | {"latency_ms": statistics.median(t["latency_ms"] for t in again[k :: len(maps)])}
        for k, (row, one) in enumerate(zip(chosen, maps, strict=True))
    ]
    report(rows, {"training": len(data[0]), "search_split": len(data[1])})


def draw(encoding: Encoding) -> list[Sample]:
    """Legal samples by chance, all different from each other and from the hand-made ones."""
    rng = np.random.default_rng(DRAW_SEED)
    found = {identity(sample): sample for sample in HAND_MADE.values()}
    while len(found) < len(HAND_MADE) + DRAWN:
        sample = encoding.sample(encoding.random(rng))
        found.setdefault(identity(sample), sample)
    return list(found.values())[len(HAND_MADE) :]


def choose(timed: list[Cell]) -> list[Cell]:
    """The hand-made ones, and of those drawn the first in each stratum of latency."""
    hand_made, drawn = timed[: len(HAND_MADE)], timed[len(HAND_MADE) :]
    order = np.argsort([row["latency_ms"] for row in drawn], kind="stable")
    strata = np.array_split(order[: round(FASTEST * len(drawn))], STRATA)
    return [*hand_made, *(drawn[min(stratum)] for stratum in strata)]


def training_cells(sample: Sample) -> list[Cell]:
    seeds = {**{epochs: SHORT_SEED for epochs in SHORT}, LONG: LONG_SEED}
    recipe = {"batch": RECIPE.batch, "lr": RECIPE.lr}
    return [
        {"sample": dict(sample), "recipe": {"epochs": epochs, **recipe}, "seed": seed}
        for epochs, seed in seeds.items()
    ]


def timing_cells(chosen: list[Cell]) -> list[Cell]:
    """Each detector once a round, so that a busy moment of the machine meets all of them."""
    samples = [row["latency_of"] for row in chosen]
    return [{"latency_of": s, "round": r} for r in range(ROUNDS) for s in samples]


def _maps(trained: list[Cell]) -> Cell:
    """`{"map": {epochs: mAP}}`; a failed training has its reason under `failed`."""
    failed = [row["failed"] for row in trained if "failed" in row]
    maps = {row["recipe"]["epochs"]: row["map"] for row in trained if "map" in row}
    return {"map": maps} | ({"failed": failed[0]} if failed else {})


def trust(
    short: np.ndarray, long: np.ndarray, latency_ms: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    """How far mAP after short training stands for mAP after long training, over `n` detectors.

    Args:
        short: `n` mAP after short training.
        long: `n` mAP after long training.
        latency_ms: `n`.
        rng: of the bootstrap.

    Returns:
        `tau` with its interval `low`, `high`; `front`, the share of the long training's front that
        is in the short one's; `hypervolume`, what the detectors of the short one's front are worth
        after long training, over the worth of all (up to 1.1 times the highest latency).
    """
    low, high = bootstrap(short, long, rng)
    fronts = [set(non_dominated(_rows(latency_ms, values)).tolist()) for values in (short, long)]
    rows, reference = _rows(latency_ms, long), np.array([1.1 * latency_ms.max(), 0.0])
    reached = hypervolume(rows[sorted(fronts[0])], reference) / hypervolume(rows, reference)
    return {
        "tau": float(kendalltau(short, long).statistic),
        "low": low,
        "high": high,
        "front": len(fronts[0] & fronts[1]) / len(fronts[1]),
        "hypervolume": reached,
    }


def bootstrap(short: np.ndarray, long: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The 95 % percentile interval of Kendall's tau over detectors drawn with replacement."""
    drawn = rng.integers(len(short), size=(RESAMPLES, len(short)))
    taus = [kendalltau(short[index], long[index]).statistic for index in drawn]
    low, high = np.nanquantile(taus, [0.025, 0.975])
    return float(low), float(high)


def _rows(latency_ms: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.stack([latency_ms, -values], axis=1)


def report(rows: list[Cell], data: dict[str, int]) -> None:
    whole = sorted((row for row in rows if "failed" not in row), key=lambda r: r["latency_ms"])
    latency_ms = np.array([row["latency_ms"] for row in whole])
    maps = {e: np.array([row["map"][e] for row in whole]) for e in (*SHORT, LONG)}
    rng = np.random.default_rng(DRAW_SEED)
    figures = [{"epochs": e, **trust(maps[e], maps[LONG], latency_ms, rng)} for e in SHORT]
    show(whole, figures)
    results = {
        "data": data,
        "space_arguments": SPACE_ARGUMENTS,
        "recipe": RECIPE.describe().partition(", ")[2],
        "long_epochs": LONG,
        "trust": figures,
        "rows": [{k: v for k, v in row.items() if k != "latency_of"} | _named(row) for row in rows],
    }
    print(f"written to {write_results('proxy_trust', results)}")


def _named(row: Cell) -> Cell:
    names = {identity(sample): name for name, sample in HAND_MADE.items()}
    return {"name": names.get(identity(row["latency_of"])), "sample": row["latency_of"]}


def show(rows: list[Cell], figures: list[dict[str, Any]]) -> None:
    console = Console(width=160)
    table = Table(title="mAP on the search split by epochs")
    for name in ("latency_ms", *(str(epochs) for epochs in (*SHORT, LONG))):
        table.add_column(name, justify="right")
    table.add_column("detector")
    for row in rows:
        values = [f"{row['map'][epochs]:.3f}" for epochs in (*SHORT, LONG)]
        name = describe_sample(row["latency_of"], _named(row)["name"])
        table.add_row(f"{row['latency_ms']:.1f}", *values, name)
    console.print(table)
    table = Table(title=f"Short training against {LONG} epochs, {len(rows)} detectors")
    for name in ("epochs", "Kendall's tau (95 %)", "front found", "hypervolume reached"):
        table.add_column(name, justify="right")
    for row in figures:
        tau = f"{row['tau']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        shares = f"{row['front']:.0%}", f"{row['hypervolume']:.1%}"
        table.add_row(str(row["epochs"]), tau, *shares)
    console.print(table)


if __name__ == "__main__":
    main()
