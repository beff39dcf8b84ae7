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
from common import Cell, measure_cells, train_once, write_results
from rich.console import Console
from rich.table import Table

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/recipe_ablation.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    training, held_out = open_data(Settings(space=SPACE, data=arguments.data))

    def measure(cell: Cell) -> Cell:
        recipe = Recipe(epochs=cell["epochs"], batch=BATCH, lr=cell["lr"])
        torch.manual_seed(cell["seed"])
        arguments = {"input_sizes": [SAMPLE["input_size"]], "head_width": HEAD_WIDTH}
        classes = training.num_classes
        space = open_space(SPACE, num_classes=classes, norm=cell["norm"], **arguments)
        try:
            return train_once(space.freeze(SAMPLE), training, held_out, recipe, cell["seed"])
        except TrialFailure as failure:
            return {"failed": failure.reason}

    rows = measure_cells(arguments.work, all_cells(), measure)
    show(rows)
    results = {
        "command": "python benchmarks/recipe_ablation.py DATA",
        "data": {"training": len(training), "search_split": len(held_out)},
        "sample": SAMPLE,
        "head_width": HEAD_WIDTH,
        "recipe": Recipe(epochs=EPOCHS[-1], batch=BATCH, lr=RATES[0]).describe(),
        "rows": rows,
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
    """The best setting over all epochs and seeds, and by how much it beats each other one.

    The differences are paired: same epochs, same seed. `error` is the standard error of their mean
    and `wins` how many of them are above 0.
    """
    settings = {(row["norm"], row["lr"]): {} for row in rows}
    for row in rows:
        settings[row["norm"], row["lr"]][row["epochs"], row["seed"]] = row.get("map", 0.0)
    means = {key: statistics.fmean(values.values()) for key, values in settings.items()}
    best = max(means, key=lambda key: means[key])
    others = [
        {"norm": norm, "lr": lr, **paired(settings[best], settings[norm, lr])}
        for norm, lr in sorted(means, key=lambda key: -means[key])
        if (norm, lr) != best
    ]
    return {"norm": best[0], "lr": best[1], "map": means[best], "others": others}


def paired(one: dict[Any, float], other: dict[Any, float]) -> dict[str, float]:
    """How far `one` is above `other`, over the keys that both have (at least two)."""
    differences = [one[key] - other[key] for key in one if key in other]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return {
        "behind": statistics.fmean(differences),
        "error": error,
        "wins": sum(difference > 0 for difference in differences),
        "pairs": len(differences),
    }


def show(rows: list[Cell]) -> None:
    table = Table(title="mAP on the search split: mean ± half the range over seeds")
    for name in ("norm", "lr at batch 4", *(f"{epochs} epochs" for epochs in EPOCHS)):
        table.add_column(name, justify="right")
    cells = {(row["norm"], row["lr"], row["epochs"]): row for row in summary(rows)}
    for norm, lr in itertools.product(NORMS, RATES):
        table.add_row(norm, f"{lr:g}", *(_shown(cells[norm, lr, epochs]) for epochs in EPOCHS))
    console = Console(width=100)
    console.print(table)
    best = verdict(rows)
    console.print(f"best over all epochs and seeds: {best['norm']} lr {best['lr']:g}")
    for other in best["others"]:
        console.print(
            f"  {other['norm']} lr {other['lr']:g}: {other['behind']:.3f} ± {other['error']:.3f}"
            f" behind, beaten in {other['wins']} of {other['pairs']} pairs"
        )


def _shown(cell: dict[str, Any]) -> str:
    return cell["failed"] if "failed" in cell else f"{cell['map']:.3f} ± {cell['spread']:.3f}"


if __name__ == "__main__":
    main()
