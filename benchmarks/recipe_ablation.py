"""Which norm and learning rate train best from scratch, for how many epochs.

    python benchmarks/recipe_ablation.py DATA

One detector in the middle of the structural space (Faster R-CNN, ResNet-18, FPN of 128 channels) is
trained on DATA (a folder in COCO format; BCCD) with every norm, learning rate, number of epochs and
seed; each training has its own warm-up and cosine. Ranked on the search split; val is never read.
One thread. Each training is one line of the work file, and a rerun goes on where it was stopped.
Prints tables and writes benchmarks/results/recipe_ablation.json.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from common import Cell, measure_cells, time_once, train_once, write_results
from rich.console import Console
from rich.table import Table
from torch import nn

from smnas.errors import TrialFailure
from smnas.spaces import open_space
from smnas.training.recipe import Recipe
from smnas.trial import Settings, open_data

SPACE = "search_spaces.structural:StructuralSpace"
NORMS = ("bn", "gn", "gn_ws")
RATES = (0.02, 0.04, 0.08)
"""At a batch of 4, as `Recipe.lr`."""

EPOCHS = (1, 2, 4, 8)
SEEDS = (0, 1)
BATCH = 2
SAMPLE = {
    "backbone": "resnet18",
    "neck": "fpn",
    "neck_start": 2,
    "neck_end": 5,
    "neck_width": 128,
    "rpn": "rpn",
    "head": "rcnn",
    "input_size": "128x96",
}
HEAD_WIDTH = 256
ROUNDS = 5
"""Of timing; latency is their median."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/recipe_ablation.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    training, held_out = open_data(Settings(space=SPACE, data=arguments.data))

    def build(norm: str, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        arguments = {"input_sizes": [SAMPLE["input_size"]], "head_width": HEAD_WIDTH}
        space = open_space(SPACE, num_classes=training.num_classes, norm=norm, **arguments)
        return space.freeze(SAMPLE)

    def fit(cell: Cell) -> Cell:
        recipe = Recipe(epochs=cell["epochs"], batch=BATCH, lr=cell["lr"])
        detector = build(cell["norm"], cell["seed"])
        try:
            return train_once(detector, training, held_out, recipe, cell["seed"])
        except TrialFailure as failure:
            return {"failed": failure.reason}

    def latency(cell: Cell) -> Cell:
        return time_once(build(cell["latency_of"], SEEDS[0]))

    rows = measure_cells(arguments.work, all_cells(), fit)
    # in turns, so that a busy moment of the machine meets all of them
    turns = [{"latency_of": norm, "round": r} for r in range(ROUNDS) for norm in NORMS]
    times = measure_cells(arguments.work, turns, latency)
    latency_ms = {
        norm: statistics.median(t["latency_ms"] for t in times if t["latency_of"] == norm)
        for norm in NORMS
    }
    show(rows, latency_ms)
    results = {
        "data": {"training": len(training), "search_split": len(held_out)},
        "sample": SAMPLE,
        "head_width": HEAD_WIDTH,
        "recipe": Recipe(epochs=EPOCHS[-1], batch=BATCH, lr=RATES[0]).describe(),
        "rows": rows,
        "latency_ms": latency_ms,
        "summary": summary(rows),
        "verdict": verdict(rows),
    }
    print(f"written to {write_results('recipe_ablation', results)}")


def all_cells() -> list[Cell]:
    """The short trainings first, and one seed of them before the next."""
    cells = itertools.product(SEEDS, EPOCHS, NORMS, RATES)
    return [
        {"norm": norm, "lr": lr, "epochs": epochs, "seed": seed} for seed, epochs, norm, lr in cells
    ]


def summary(rows: Iterable[Cell]) -> list[dict[str, Any]]:
    """Mean and spread (half the range) of mAP over the seeds, by norm, rate and epochs.

    A setting of which a training failed has the reason instead.
    """
    groups: dict[tuple[str, float, int], list[Cell]] = {}
    for row in rows:
        groups.setdefault((row["norm"], row["lr"], row["epochs"]), []).append(row)
    return [
        {"norm": norm, "lr": lr, "epochs": epochs, **_mean(group)}
        for (norm, lr, epochs), group in groups.items()
    ]


def _mean(group: list[Cell]) -> dict[str, Any]:
    failed = [row["failed"] for row in group if "failed" in row]
    if failed:
        return {"failed": failed[0]}
    values = [row["map"] for row in group]
    return {"map": statistics.fmean(values), "spread": (max(values) - min(values)) / 2}


def verdict(rows: list[Cell]) -> dict[str, Any]:
    """The best setting over all epochs and seeds, and how far it is above each other one.

    A setting of which a training failed is not compared.
    """
    settings: dict[tuple[str, float], dict[tuple[int, int], float]] = {}
    failed = {(row["norm"], row["lr"]) for row in rows if "failed" in row}
    for row in rows:
        key = row["norm"], row["lr"]
        if key not in failed:
            settings.setdefault(key, {})[row["epochs"], row["seed"]] = row["map"]
    means = {key: statistics.fmean(values.values()) for key, values in settings.items()}
    best, *others = sorted(means, key=lambda key: -means[key])
    return {
        "norm": best[0],
        "lr": best[1],
        "map": means[best],
        "others": [
            {"norm": norm, "lr": lr, **paired(settings[best], settings[norm, lr])}
            for norm, lr in others
        ],
        "failed": sorted(failed),
    }


def paired(one: dict[Any, float], other: dict[Any, float]) -> dict[str, float]:
    """How far `one` is above `other`, pair by pair (same epochs, same seed).

    Returns:
        `difference`, their mean; `error`, the standard error of it; `wins`, how many are above 0;
        `pairs`, how many there are (at least two).
    """
    differences = [one[key] - other[key] for key in one if key in other]
    return {
        "difference": statistics.fmean(differences),
        "error": statistics.stdev(differences) / len(differences) ** 0.5,
        "wins": sum(difference > 0 for difference in differences),
        "pairs": len(differences),
    }


def show(rows: list[Cell], latency_ms: dict[str, float]) -> None:
    table = Table(title="mAP on the search split: mean ± half the range over seeds")
    for name in ("norm", "lr at batch 4", *(f"{epochs} epochs" for epochs in EPOCHS)):
        table.add_column(name, justify="right")
    cells = {(row["norm"], row["lr"], row["epochs"]): row for row in summary(rows)}
    for norm, lr in itertools.product(NORMS, RATES):
        table.add_row(norm, f"{lr:g}", *(_shown(cells[norm, lr, epochs]) for epochs in EPOCHS))
    console = Console(width=100)
    console.print(table)
    console.print("latency: " + ", ".join(f"{n} {ms:.1f} ms" for n, ms in latency_ms.items()))
    best = verdict(rows)
    console.print(f"best over all epochs and seeds: {best['norm']} lr {best['lr']:g}")
    for other in best["others"]:
        behind = f"{other['difference']:.3f} ± {other['error']:.3f} behind"
        beaten = f"beaten in {other['wins']} of {other['pairs']} pairs"
        console.print(f"  {other['norm']} lr {other['lr']:g}: {behind}, {beaten}")


def _shown(cell: dict[str, Any]) -> str:
    return cell["failed"] if "failed" in cell else f"{cell['map']:.3f} ± {cell['spread']:.3f}"


if __name__ == "__main__":
    main()
