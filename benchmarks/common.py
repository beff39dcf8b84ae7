"""What benchmarks share: cells that are measured once, one training, results with their origin."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smnas import machine
from smnas.data.coco import CocoDataset, collate
from smnas.detectors.components import parse_input_size
from smnas.objectives.latency import measure_latency
from smnas.quiet import QuietDevice
from smnas.training.evaluation import evaluate
from smnas.training.loop import epoch_batches, train
from smnas.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results"

Cell = dict[str, Any]
"""What is measured, or what came out, as plain JSON."""


def write_results(name: str, results: dict[str, Any]) -> Path:
    """Writes `results/NAME.json`: the results, the command, and what they were made with."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    origin = {"time": when, "command": command(), "machine": machine.describe()}
    record = {"benchmark": name, **origin, **results}
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def command() -> str:
    """How this benchmark was called; of absolute paths the last part, whose machine it was is
    nobody's business.
    """
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def measure_cells(
    work: Path, cells: Sequence[Cell], measure: Callable[[Cell], Cell], jobs: int = 1
) -> list[Cell]:
    """Measures what the work file does not hold yet; one line a cell, so that a rerun goes on.

    Args:
        work: JSON Lines; made if it is not there.
        cells: each described completely, for its description is what a rerun knows it by.
        measure: gives what came out, to be added to the cell.
        jobs: how many are measured at a time, each in a thread where there are several.

    Returns:
        The cells with what came out, in their order.
    """
    work.parent.mkdir(parents=True, exist_ok=True)
    done = {_key(line["cell"]): line["result"] for line in _whole_lines(work)}
    left = [cell for cell in cells if _key(cell) not in done]
    for cell, result in _measured(left, measure, jobs):
        done[_key(cell)] = result
        with work.open("a") as file:
            file.write(json.dumps({"cell": cell, "result": result}) + "\n")
        print(json.dumps(cell | result), flush=True)
    return [cell | done[_key(cell)] for cell in cells]


def _measured(
    cells: Sequence[Cell], measure: Callable[[Cell], Cell], jobs: int
) -> Iterator[tuple[Cell, Cell]]:
    """Cells with what came out, as it comes."""
    if jobs == 1:
        yield from ((cell, measure(cell)) for cell in cells)
        return
    pool = ThreadPoolExecutor(jobs)
    waiting = {pool.submit(measure, cell): cell for cell in cells}
    try:
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def train_once(
    detector: nn.Module,
    training: CocoDataset,
    held_out: CocoDataset,
    recipe: Recipe,
    seed: int,
) -> dict[str, float]:
    """Trains as a trial on a CPU does, but evaluates only after the last epoch.

    Args:
        detector: with its `input_size`, freshly initialised.
        training: pictures to train on, at any size.
        held_out: pictures to evaluate on.
        seed: of order and augmentation; the caller seeds the initialisation.

    Returns:
        COCO metrics and `train_seconds`.

    Raises:
        TrialFailure: the training diverged.
    """
    size = parse_input_size(str(detector.input_size))
    device, quiet = torch.device("cpu"), QuietDevice("cpu")
    generator = torch.Generator().manual_seed(seed)
    view = training.view(training.image_ids, size)
    examples = [view[index] for index in range(len(view))]

    def batches(epoch: int) -> list[Any]:
        order = epoch_batches(len(examples), recipe.batch, generator)
        return [collate([examples[index] for index in part]) for part in order]

    stats = train(
        detector,
        batches,
        recipe,
        device=device,
        generator=generator,
        quiet=quiet,
        on_epoch=lambda epoch, stats: None,
    )
    view = held_out.view(held_out.image_ids, size)
    metrics = evaluate(detector, view, device=device, batch=recipe.batch, quiet=quiet)
    return metrics | {"train_seconds": stats.seconds}


def time_once(detector: nn.Module) -> dict[str, float]:
    """Latency as a trial on a CPU measures it, one thread: `latency_ms`, its spread and count.

    Args:
        detector: with its `input_size`.
    """
    return measure_latency(
        detector,
        parse_input_size(str(detector.input_size)),
        device=torch.device("cpu"),
        quiet=QuietDevice("cpu"),
        threads=1,
    ).to_metrics()


def _key(cell: Cell) -> str:
    return json.dumps(cell, sort_keys=True)


def _whole_lines(work: Path) -> list[dict[str, Cell]]:
    """The lines of the work file; cuts off one that a killed process left unfinished."""
    text = work.read_text() if work.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        work.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]
