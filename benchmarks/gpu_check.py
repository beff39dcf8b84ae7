"""Everything that only a GPU can show, in one command of under 8 minutes on a modern one.

    python benchmarks/gpu_check.py

Runs the GPU-marked tests; times detectors by CUDA events in fp32 and in mixed precision, twice, at
real sizes; trains in both precisions; and searches 12 detectors from 512x512 upwards on generated
scenes. Prints tables, writes benchmarks/results/gpu_check.json. `--device cpu --sizes 96x96` tries
the script itself where there is no GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from common import write_results
from rich.console import Console
from rich.table import Table

from smnas.data.coco import CocoDataset, DataFolder, collate
from smnas.data.digits import make_digits
from smnas.detectors.components import parse_input_size
from smnas.display import SearchDisplay
from smnas.experiment import load_experiment
from smnas.journal import read
from smnas.objectives.cost import measure_cost
from smnas.objectives.latency import measure_latency
from smnas.quiet import QuietDevice
from smnas.records import Measured
from smnas.report.tables import front_rows
from smnas.search import Overrides, search
from smnas.spaces import open_space
from smnas.training.loop import train
from smnas.training.recipe import Recipe

SPACE = "search_spaces.structural:StructuralSpace"
BASE = {
    "backbone": "resnet50", "neck": "fpn", "neck_start": 2, "neck_end": 6,
    "neck_width": 256, "rpn": "rpn", "head": "rcnn",
}  # fmt: skip
DETECTORS = {
    "faster_rcnn_r18": {**BASE, "backbone": "resnet18"},
    "faster_rcnn_r50": BASE,
    "cascade_r50": {**BASE, "head": "cascade3"},
    "ga_faster_rcnn_r50": {**BASE, "rpn": "ga_rpn"},
    "retinanet_r50": {**BASE, "neck_start": 3, "rpn": "none", "head": "retinanet"},
    "cascade_x101": {**BASE, "backbone": "resnext101", "head": "cascade3"},
}


def main() -> None:
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_check: wanted a CUDA device, torch finds none")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_digits(folder / "data", train=64, val=8, size=(640, 640))
        results: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "tests": run_tests() if device.type == "cuda" else "not run without a GPU",
            "latency": time_detectors(arguments.sizes, device),
            "training": time_training(folder / "data", arguments.sizes[0], device),
            "search": run_search(folder, arguments.sizes, arguments.trials, device),
        }
    results["seconds"] = time.monotonic() - began
    name = "gpu_check" if device.type == "cuda" else "gpu_check_on_cpu"
    print(f"{results['seconds']:.0f} s in all; written to {write_results(name, results)}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["512x512", "800x600", "1333x800"])
    parser.add_argument("--trials", type=int, default=12)
    return parser.parse_args()


def run_tests() -> str:
    """The last line that pytest prints for the GPU-marked tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--no-header"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    print(done.stdout[-3000:])
    return done.stdout.strip().splitlines()[-1]


def build(sample: dict[str, Any], size: str, num_classes: int = 80) -> torch.nn.Module:
    space = open_space(SPACE, num_classes=num_classes, input_sizes=[size])
    torch.manual_seed(0)
    return space.freeze({**sample, "input_size": size})


def time_detectors(sizes: list[str], device: torch.device) -> list[dict[str, Any]]:
    """Each detector at each size, fp32 and mixed, measured twice: median, spread, and how well it
    repeats."""
    quiet, rows = QuietDevice(str(device)), []
    precisions = ["fp32", "amp"] if device.type == "cuda" else ["fp32"]
    for size in sizes:
        for name, sample in DETECTORS.items():
            if fits(sample, size):
                rows.append(time_detector(name, sample, size, precisions, device, quiet))
    show("Latency, batch 1, whole detector", rows)
    return rows


def fits(sample: dict[str, Any], size: str) -> bool:
    return min(parse_input_size(size)) > 128 or sample["neck_end"] < 6


def time_detector(
    name: str,
    sample: dict[str, Any],
    size: str,
    precisions: list[str],
    device: torch.device,
    quiet: QuietDevice,
) -> dict[str, Any]:
    model = build(sample, size).to(device)
    pixels = parse_input_size(size)
    cost = measure_cost(model, pixels)
    row: dict[str, Any] = {"detector": name, "size": size, **cost.to_metrics()}
    for precision in precisions:
        first, second = (
            measure_latency(
                model,
                pixels,
                device=device,
                quiet=quiet,
                precision=precision,
                channels_last=device.type == "cuda",
            )
            for _ in range(2)
        )
        row |= {
            f"{precision}_ms": first.median_ms,
            f"{precision}_iqr_ms": first.iqr_ms,
            f"{precision}_repeat": second.median_ms / first.median_ms,
        }
    if len(precisions) == 2:
        row["amp_to_fp32"] = row["amp_ms"] / row["fp32_ms"]
    return row


def time_training(data: Path, size: str, device: torch.device) -> list[dict[str, Any]]:
    """One epoch of 64 pictures in each precision, on the same weights and order."""
    dataset = CocoDataset(DataFolder.open(data).train, input_size=parse_input_size(size))
    examples = [dataset[i] for i in range(len(dataset))]
    batches = [collate(examples[i : i + 8]) for i in range(0, len(examples), 8)]
    rows = []
    for amp in [False, True] if device.type == "cuda" else [False]:
        sample = BASE if fits(BASE, size) else {**BASE, "neck_end": 5}
        model = build(sample, size, dataset.num_classes)
        stats = train(
            model,
            lambda epoch: batches,
            Recipe(epochs=2, batch=8, lr=0.005),
            device=device,
            generator=torch.Generator().manual_seed(0),
            quiet=QuietDevice(str(device)),
            on_epoch=lambda epoch, stats: None,
            amp=amp,
            channels_last=device.type == "cuda",
        )
        last = stats.epochs[-1]
        speed = len(examples) / last.seconds
        rows.append(
            {"amp": str(amp), "images_per_s": speed, "loss": last.loss, "parts": stats.parts}
        )
    show(f"Training Faster R-CNN R50-FPN at {size}, batch 8", rows)
    return rows


def run_search(folder: Path, sizes: list[str], trials: int, device: torch.device) -> dict[str, Any]:
    """A whole search through the embedded runner, one worker."""
    path = folder / "check.yml"
    path.write_text(yaml.safe_dump(experiment(folder, sizes, trials, device)))
    began, checked = time.monotonic(), load_experiment(path)
    with SearchDisplay(checked.search.objective_vector(), Console(force_terminal=False)) as display:
        reason = search([checked], folder / "run", Overrides(), display)
    history = read(folder / "run")
    rows = front_rows(history)
    show(
        "Front",
        [{k: row[k] for k in ("id", "latency_ms", "map")} | row["sample"] for row in rows],
    )
    outcomes = [t.outcome for t in history.trials()]
    return {
        "reason": reason,
        "seconds": time.monotonic() - began,
        "measured": sum(isinstance(o, Measured) for o in outcomes),
        "failed": [
            f"{o.reason}: {o.detail[:200]}" for o in outcomes if o and not isinstance(o, Measured)
        ],
        "front": rows,
    }


def experiment(folder: Path, sizes: list[str], trials: int, device: torch.device) -> dict[str, Any]:
    return {
        "experimentName": "gpu_check",
        "searchSpace": {"input_size": {"_type": "choice", "_value": sizes}},
        "trialCommand": (
            f"smnas trial check.yml --data {folder / 'data'} --epochs 2 --batch 8 --lr 0.01"
            f" --device {device.type} --no-checkpoint --flip 0"
        ),
        "trialConcurrency": 1,
        "maxTrialNumber": trials,
        "maxTrialDuration": "3m",
        "trainingService": {"platform": "local"},
        "tuner": {
            "className": "smnas.tuner.ParetoTuner",
            "codeDirectory": ".",
            "classArgs": {
                "space": SPACE,
                "space_args": {"input_sizes": sizes},
                "reference_point": {"latency_ms": 500},
                "population": 6,
            },
        },
    }


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else []:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
