"""Two libraries on the same samples: training pictures/s and inference latency, as ratios.

    python benchmarks/libraries.py [--side 128] [--rounds 5] [--batch 2]

Detectors take turns, library by library and round after round in one process, so that a machine
that slows down does so for both. Each turn is one training step and one detection. Prints a table
and writes `results/libraries.json`. Needs detectron2.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import write_results
from torch import Tensor, nn

from smnas.detectors.space import load_space

SPACE = "search_spaces.structural:StructuralSpace"
LIBRARIES = ("torchvision", "detectron2")
_LABELS = ("backbone", "neck", "neck_start", "neck_end", "neck_width", "rpn", "head")
SAMPLES = [
    dict(zip(_LABELS, row, strict=True))
    for row in (
        ("resnet18", "fpn", 2, 5, 64, "rpn", "rcnn"),
        ("resnet50", "fpn", 3, 5, 128, "rpn", "cascade3"),
        ("mobilenet_v2", "fpn", 3, 5, 64, "ga_rpn", "rcnn"),
        ("resnet18", "fpn", 3, 5, 64, "none", "retinanet"),
    )
]
"""Every kind of backbone and head, once."""

CLASSES = 3
SHARES = ((0.02, 0.02, 0.12, 0.12), (0.2, 0.04, 0.4, 0.24), (0.4, 0.1, 0.9, 0.5))
"""Objects of each picture, as parts of its side."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=128, help="of the pictures, in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each detector")
    parser.add_argument("--batch", type=int, default=2, help="pictures in a training step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [compare(sample, options.side, options.rounds, options.batch) for sample in SAMPLES]
    for row in rows:
        name = " ".join(map(str, row["sample"].values()))
        print(f"{name}: detectron2 / torchvision: training {row['training_ratio']:.2f} pictures/s,")
        print(f"    latency {row['latency_ratio']:.2f}")
    settings = {"side": options.side, "rounds": options.rounds, "batch": options.batch}
    print(write_results("libraries", {"settings": settings, "rows": rows}))


def compare(sample: dict[str, Any], side: int, rounds: int, batch: int) -> dict[str, Any]:
    """Medians of both libraries, and detectron2's over torchvision's."""
    detectors = {library: build(library, sample, side) for library in LIBRARIES}
    pictures = list(torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)))
    training: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    latency: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    for turn in range(rounds + 1):
        for library, detector in detectors.items():
            seconds = step(detector, pictures, side), detect(detector, pictures[0])
            if turn:  # the first one warms up
                training[library].append(seconds[0])
                latency[library].append(seconds[1])
    per_second = {name: batch / statistics.median(s) for name, s in training.items()}
    latency_ms = {name: 1000 * statistics.median(s) for name, s in latency.items()}
    return {
        "sample": sample,
        "training_pictures_per_s": per_second,
        "latency_ms": latency_ms,
        "training_ratio": per_second["detectron2"] / per_second["torchvision"],
        "latency_ratio": latency_ms["detectron2"] / latency_ms["torchvision"],
    }


def build(library: str, sample: dict[str, Any], side: int) -> nn.Module:
    """The detector of a sample, from one seed."""
    size = f"{side}x{side}"
    arguments = {"num_classes": CLASSES, "input_sizes": [size], "head_width": 256}
    with torch.device("meta"):
        space = load_space(SPACE, {**arguments, "library": library})
    torch.manual_seed(0)
    return space.freeze({**sample, "input_size": size})


def step(detector: nn.Module, pictures: list[Tensor], side: int) -> float:
    """CPU seconds of losses and gradients of a batch: what else runs here does not count."""
    target = {"boxes": torch.tensor(SHARES) * side, "labels": torch.arange(1, CLASSES + 1)}
    detector.train()
    started = time.process_time()
    sum(detector(pictures, [target] * len(pictures)).values()).backward()
    seconds = time.process_time() - started
    detector.zero_grad()
    return seconds


@torch.inference_mode()
def detect(detector: nn.Module, picture: Tensor) -> float:
    """CPU seconds of one picture."""
    detector.eval()
    started = time.process_time()
    detector([picture])
    return time.process_time() - started


if __name__ == "__main__":
    main()
