"""What a search is worth: its front against hand-made detectors, trained alike, on unseen pictures.

    python benchmarks/headline.py RUN DATA [--epochs 12] [--seeds 2] [--jobs 2]

RUN is a finished search over DATA (a folder in COCO format; BCCD). The members of its front and the
usual hand-made detectors are trained from scratch with one and the same longer schedule on the
whole train part, several seeds each, and evaluated on `val`, which no search has seen. Their
latencies are measured again in this process, in turns, with the trained weights. Every training is
one line of the work file, so a rerun goes on where it was stopped; `--jobs` trains as many at a
time, each in a process of one thread. Prints tables; writes benchmarks/results/headline.json and
headline.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, Cell, measure_cells, train_once, write_results
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn

from search_spaces.zoo import find
from smnas import pareto
from smnas.data.coco import CocoDataset, DataFolder
from smnas.detectors.components import parse_input_size
from smnas.errors import TrialFailure
from smnas.journal import History, read_run
from smnas.objectives.latency import measure_latency
from smnas.quiet import QuietDevice
from smnas.records import Sample
from smnas.report.tables import describe_sample, objectives_of
from smnas.spaces import open_space
from smnas.training.recipe import Recipe

REFERENCE = "faster_rcnn_r50_fpn"
"""The hand-made detector that SM-NAS's claim is about."""

HAND_MADE = (
    "faster_rcnn_r18_fpn",
    "faster_rcnn_r34_fpn",
    "faster_rcnn_r50_fpn",
    "faster_rcnn_r101_fpn",
    "retinanet_r18_fpn",
    "retinanet_r50_fpn",
    "cascade_rcnn_r18_fpn",
    "cascade_rcnn_r50_fpn",
    "faster_rcnn_mobilenet_v2_fpn",
)
"""Names of the zoo."""

RECIPE = {"batch": 2, "lr": 0.04}
ROUNDS = 5
"""Turns in which the latencies are measured."""


def hand_made(input_size: str) -> dict[str, Sample]:
    """The usual detectors of the zoo at one input size, with the levels that it has room for."""
    # level 6 (stride 64) needs a map of 3x3, as everywhere in the space
    end = 6 if min(parse_input_size(input_size)) > 2 * 64 else 5
    samples = {}
    for known in HAND_MADE:
        sample = {**find(known).sample, "input_size": input_size}
        sample["neck_end"] = end if sample["head"] == "retinanet" else 5
        # cascades go by the shorter names that the experiments' baselines have
        samples[known.replace("cascade_rcnn", "cascade")] = sample
    return samples


def found(history: History) -> dict[str, Sample]:
    """What the search itself put on its front: `{#ID: sample}`, fastest first.

    Neither a known detector that it began with, nor that detector as the control of a later stage.
    """
    known = {t.candidate.id for t in history.trials() if t.candidate.origin == "baseline"}
    trials = pareto.front(history.trials(), objectives_of(history))
    own = [
        candidate
        for candidate in (trial.candidate for trial in trials)
        if candidate.id not in known
        and not (candidate.origin == "control" and candidate.group in known)
    ]
    return {f"#{candidate.id}": dict(candidate.sample) for candidate in own}


def build(history: History, sample: Sample, num_classes: int) -> nn.Module:
    """The detector of a sample, of whichever stage, as the run's own space and library build it."""
    stage = "modular:ModularSpace" if "block" in sample else "structural:StructuralSpace"
    arguments = dict(history.header["experiment"]["space_args"])
    if "block" not in sample:
        arguments["input_sizes"] = sorted({*arguments["input_sizes"], sample["input_size"]})
    library = (history.header["library"] or {}).get("name")
    space = open_space(f"search_spaces.{stage}", library, num_classes=num_classes, **arguments)
    return space.freeze(sample)


class Contest:
    """The detectors, their data and where their weights are kept."""

    def __init__(self, run: Path, data: Path, size: str, work: Path) -> None:
        self.history = read_run(run)
        folder = DataFolder.open(data)
        if folder.val is None:
            sys.exit(f"headline: wanted data with a val part, got none in {data}")
        self.train, self.val = CocoDataset(folder.train), CocoDataset(folder.val)
        self.hand_made, self.found = hand_made(size), found(self.history)
        self.samples = {**self.hand_made, **self.found}
        self.weights = work.parent / "weights"
        self.weights.mkdir(parents=True, exist_ok=True)

    def cells(self, epochs: int, seeds: int) -> list[Cell]:
        """One seed of all detectors before the next one."""
        return [
            {"name": name, "sample": dict(sample), "epochs": epochs, "seed": seed, **RECIPE}
            for seed in range(seeds)
            for name, sample in self.samples.items()
        ]

    def measure(self, cell: Cell) -> Cell:
        torch.manual_seed(cell["seed"])
        detector = build(self.history, cell["sample"], self.train.num_classes)
        recipe = Recipe(epochs=cell["epochs"], batch=cell["batch"], lr=cell["lr"])
        try:
            result = train_once(detector, self.train, self.val, recipe, cell["seed"])
        except TrialFailure as failure:
            return {"failed": failure.reason}
        torch.save(detector.state_dict(), self.path(cell["name"]))
        return {**result, "params_m": sum(p.numel() for p in detector.parameters()) / 1e6}

    def path(self, name: str) -> Path:
        return self.weights / f"{name.strip('#')}.pt"

    def check_weights(self, names: Sequence[str]) -> None:
        """Ends where a detector's last training was elsewhere: its latency is to be measured with
        trained weights, because what a detector finds decides how long its post-processing takes.
        """
        missing = [name for name in names if not self.path(name).exists()]
        if missing:
            sys.exit(
                f"headline: wanted trained weights in {self.weights}, got none of"
                f" {', '.join(missing)}; take a line of each out of the work file to train it again"
            )

    def latencies(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Medians in milliseconds of each round, every detector once a round, trained weights."""
        quiet, device = QuietDevice("cpu"), torch.device("cpu")
        medians: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(ROUNDS):
            for name in names:
                sample = self.samples[name]
                detector = build(self.history, sample, self.train.num_classes)
                detector.load_state_dict(torch.load(self.path(name), weights_only=True))
                size = parse_input_size(str(sample["input_size"]))
                latency = measure_latency(
                    detector.eval(), size, device=device, quiet=quiet, threads=1
                )
                medians[name].append(latency.median_ms)
        return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--size", default="160x120", help="input of the hand-made detectors")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--cell", type=int, help="train only this one, print the result, and stop")
    parser.add_argument("--work", type=Path, default=Path("runs/headline/cells.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.jobs < 1:
        parser.error(f"--jobs: wanted at least 1, got {arguments.jobs}")
    contest = Contest(arguments.run, arguments.data, arguments.size, arguments.work)
    cells = contest.cells(arguments.epochs, arguments.seeds)
    if arguments.cell is not None:
        print(json.dumps(contest.measure(cells[arguments.cell])))
        return

    def in_a_process(cell: Cell) -> Cell:
        command = [sys.executable, *sys.argv, "--cell", str(cells.index(cell))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit("headline: a training process failed; the same command goes on")
        return dict(json.loads(done.stdout.splitlines()[-1]))

    measure = contest.measure if arguments.jobs == 1 else in_a_process
    rows = measure_cells(arguments.work, cells, measure, arguments.jobs)
    trained = [
        name for name in contest.samples if any(r["name"] == name and "map" in r for r in rows)
    ]
    contest.check_weights(trained)
    report(contest, rows, contest.latencies(trained), arguments)


def report(
    contest: Contest, rows: list[Cell], latencies: dict[str, list[float]], arguments: Any
) -> None:
    entries = [_entry(contest, name, rows, latencies[name]) for name in latencies]
    entries = sorted(entries, key=lambda e: e["latency_ms"])
    verdict = compare(entries)
    show(entries, verdict)
    results = {
        "run": {"name": contest.history.header["name"], "trials": len(contest.history.trials())},
        "data": {"train": len(contest.train), "val": len(contest.val)},
        "recipe": Recipe(epochs=arguments.epochs, **RECIPE).describe(),
        "detectors": entries,
        "verdict": verdict,
    }
    figure(entries).savefig(RESULTS / "headline.png", dpi=150)
    print(f"written to {write_results('headline', results)}")


def _entry(contest: Contest, name: str, rows: list[Cell], rounds: list[float]) -> dict[str, Any]:
    own = [row for row in rows if row["name"] == name]
    maps = [row["map"] for row in own if "map" in row]
    return {
        "name": name,
        "hand_made": name in contest.hand_made,
        "detector": describe_sample(dict(contest.samples[name]), None),
        "latency_ms": statistics.median(rounds),
        "latency_rounds_ms": rounds,
        "map": statistics.fmean(maps) if maps else None,
        "maps": maps,
        "failed": [row["failed"] for row in own if "failed" in row],
        "params_m": next((row["params_m"] for row in own if "params_m" in row), None),
    }


def compare(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Our front against Faster R-CNN R50-FPN, and against all hand-made ones by hypervolume.

    The reference corner is 1.1 times the slowest detector's latency and mAP 0.
    `fastest_with_a_point_more` is the fastest of ours that is one mAP point (.01) or more above the
    reference; `best` our best.
    """
    reference = next(e for e in entries if e["name"] == REFERENCE)
    ours = [e for e in entries if not e["hand_made"]]
    theirs = [e for e in entries if e["hand_made"]]
    corner = np.array([1.1 * max(e["latency_ms"] for e in entries), 0.0])

    def volume(group: Sequence[dict[str, Any]]) -> float:
        return pareto.hypervolume(
            np.array([[e["latency_ms"], -e["map"]] for e in group]).reshape(-1, 2), corner
        )

    def against(entry: dict[str, Any] | None) -> dict[str, Any] | None:
        return entry and {
            "name": entry["name"],
            "latency_ratio": entry["latency_ms"] / reference["latency_ms"],
            "map_difference": entry["map"] - reference["map"],
        }

    better = [e for e in ours if e["map"] >= reference["map"] + 0.01]
    return {
        "reference": {k: reference[k] for k in ("name", "latency_ms", "map")},
        "fastest_with_a_point_more": against(
            min(better, key=lambda e: e["latency_ms"], default=None)
        ),
        "best": against(max(ours, key=lambda e: e["map"])),
        "hypervolume": {"ours": volume(ours), "hand_made": volume(theirs)},
        "hypervolume_ratio": volume(ours) / volume(theirs),
    }


def show(entries: Sequence[dict[str, Any]], verdict: dict[str, Any]) -> None:
    table = Table(title="trained alike, evaluated on val; latency re-measured in turns")
    for name in ("detector", "latency ms", "mAP", "seeds", "params M", "what"):
        table.add_column(name)
    for entry in entries:
        spread = f"{min(entry['latency_rounds_ms']):.0f}-{max(entry['latency_rounds_ms']):.0f}"
        table.add_row(
            entry["name"],
            f"{entry['latency_ms']:.1f} ({spread})",
            f"{entry['map']:.3f}",
            " ".join(f"{value:.3f}" for value in entry["maps"]),
            f"{entry['params_m']:.1f}",
            "hand-made" if entry["hand_made"] else entry["detector"],
        )
    console = Console(width=180)
    console.print(table)
    console.print_json(data=verdict)


def figure(entries: Sequence[dict[str, Any]]) -> Figure:
    """Latency against mAP on val: ours and the hand-made ones with their fronts, bars over seeds.

    What reaches less than a third of the best mAP is left out, and named below.

    Args:
        entries: by latency, ascending.
    """
    best = max(e["map"] for e in entries)
    worth = [e for e in entries if 3 * e["map"] >= best]
    picture = Figure(figsize=(8, 5), layout="constrained")
    axes = picture.add_subplot()
    _group(axes, [e for e in worth if e["hand_made"]], "D", "#D55E00", "hand-made")
    _group(axes, [e for e in worth if not e["hand_made"]], "o", "#0072B2", "found by the search")
    for entry in worth:
        _name(axes, entry)
    left_out = [e["name"] for e in entries if e not in worth]
    note = f"; not shown: {', '.join(left_out)}" if left_out else ""
    widest = 1.15 * worth[-1]["latency_ms"]
    axes.set(xlabel=f"latency (ms){note}", ylabel="mAP (val)", xlim=(0, widest))
    axes.margins(y=0.15)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=8)
    return picture


def _group(
    axes: Axes, group: Sequence[dict[str, Any]], marker: str, colour: str, label: str
) -> None:
    points = np.array([[e["latency_ms"], e["map"]] for e in group])
    spread = [[e["map"] - min(e["maps"]), max(e["maps"]) - e["map"]] for e in group]
    bars = {"yerr": np.transpose(spread), "capsize": 2}
    axes.errorbar(*points.T, fmt=marker, color=colour, label=label, **bars)
    front = points[pareto.non_dominated(points * (1, -1))]
    axes.step(*front.T, where="post", color=colour, linewidth=1, alpha=0.5)


def _name(axes: Axes, entry: dict[str, Any]) -> None:
    """A detector's name beside its point: above ours, aslant below the hand-made."""
    above = {"xytext": (-3, 6), "ha": "right", "va": "bottom"}
    below = {"xytext": (3, -6), "ha": "left", "va": "top", "rotation": -35}
    axes.annotate(
        entry["name"].removesuffix("_fpn").replace("_", " "),
        (entry["latency_ms"], entry["map"]),
        textcoords="offset points",
        rotation_mode="anchor",
        fontsize=7,
        **(below if entry["hand_made"] else above),
    )


if __name__ == "__main__":
    main()
