"""From a search to a file that runs elsewhere: train, evaluate, export, parity.

For a member of a run's front of each kind of head:

    python benchmarks/deploy_chain.py RUN DATA [--epochs N] [--work DIR] [--no-compile]

The member is the fastest one. Where no member of the front has some kind of head, the fastest
measured detector with it is taken, and the record says so. It goes on where it was stopped. Writes
`benchmarks/results/deploy_chain.json`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import write_results

from smnas import pareto
from smnas.deploy.export import parity_line, to_onnx, to_python_file
from smnas.deploy.ranks import Ranks
from smnas.deploy.saved import Opened, candidate, open_detector
from smnas.deploy.score import open_val, score
from smnas.deploy.settings import Training
from smnas.deploy.train import train_detector
from smnas.detectors.components import HEADS
from smnas.journal import History, Trial, read_run
from smnas.quiet import QuietDevice
from smnas.records import Measured
from smnas.report.tables import objectives_of

CPU = torch.device("cpu")


def members(history: History) -> dict[str, tuple[Trial, bool]]:
    """One trial for each kind of head that the run has, and whether it is on the front: the fastest
    of the front's, else of all.
    """
    trials = history.trials()
    front = pareto.front(trials, objectives_of(history))
    measured = [trial for trial in trials if isinstance(trial.outcome, Measured)]
    found = {}
    for head in HEADS:
        for candidates, on_front in ((front, True), (measured, False)):
            own = [trial for trial in candidates if trial.candidate.sample.get("head") == head]
            if own and head not in found:
                found[head] = min(own, key=_metric("latency_ms")), on_front
    return found


def _metric(name: str) -> Callable[[Trial], float]:
    def of(trial: Trial) -> float:
        assert isinstance(trial.outcome, Measured)
        return trial.outcome.metrics[name]

    return of


def chain(target: str, data: Path, epochs: int, folder: Path, compiled: bool) -> dict[str, Any]:
    """Trains a candidate and takes it out of smnas; what came out at each step."""
    found, recipe = candidate(target)
    plan = found.plan
    training = Training(data.resolve(), recipe({"epochs": epochs}), seed=plan.seed, every=0)
    result = train_detector(plan, training, folder, Ranks())
    opened = open_detector(str(folder))
    again = evaluated(opened, data, training.recipe.batch)
    if again != result["metrics"]:
        sys.exit(f"deploy_chain: wanted the training's metrics {result['metrics']}, got {again}")
    onnx = to_onnx(opened, folder / "model.onnx", dynamic=False, compiled=compiled)
    whole = to_onnx(opened, folder / "any_size.onnx", dynamic=True, compiled=False)
    python = to_python_file(opened, folder / "exported.py")
    for record in (onnx, whole, python):
        for parity in record["parity"]:
            print(f"  {parity_line(parity)}", flush=True)
    return {
        "sample": dict(plan.sample),
        "training": training.to_json() | {"data": data.name},
        "metrics_on_val": result["metrics"],
        "train_seconds": result["seconds"],
        "onnx": onnx,
        "onnx_any_size": whole["parity"],
        "python": python["parity"],
    }


def evaluated(opened: Opened, data: Path, batch: int) -> dict[str, float]:
    """What `smnas evaluate` says of the folder's weights."""
    detector = opened.load(CPU)
    val = open_val(opened, data, str(detector.input_size))
    found = score(detector, val, device=CPU, batch=batch, quiet=QuietDevice("cpu"))
    return dict(found.metrics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--work", type=Path, default=Path("runs/deploy_chain"))
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for head, (trial, on_front) in members(read_run(arguments.run)).items():
        number = trial.candidate.id
        print(f"{head}: candidate {number}", flush=True)
        folder = arguments.work / str(number)
        out = chain(
            f"{arguments.run}#{number}",
            arguments.data,
            arguments.epochs,
            folder,
            not arguments.no_compile,
        )
        found = {"head": head, "candidate": number, "on_front": on_front}
        found["map_in_run"] = _metric("map")(trial)
        rows.append(found | out)
        print(f"  mAP on val {out['metrics_on_val']['map']:.3f}", flush=True)
    print(write_results("deploy_chain", {"run": arguments.run.name, "detectors": rows}))


if __name__ == "__main__":
    main()
