"""What tests of found detectors share: runs with one candidate of each kind of head, small data,
detectors that have really been trained, a little.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from smnas.data.digits import make_digits
from smnas.deploy.saved import Plan
from smnas.journal import Journal
from smnas.records import Candidate, Measured, Sample

SPACE = "search_spaces.modular:ModularSpace"
SPACE_ARGS = {
    "input_sizes": ["96x72"],
    "neck_ends": [5],
    "neck_widths": [16],
    "base_widths": [8],
    "blocks": ["basicblock"],
    "blocks_range": [4, 5],
    "head_width": 32,
}
CLASSES = 10

HEADS = {
    "rcnn": ("rpn", "rcnn"),
    "cascade2": ("rpn", "cascade2"),
    "cascade3": ("ga_rpn", "cascade3"),
    "retinanet": ("none", "retinanet"),
}
"""A kind of proposals for each kind of head; together all of both."""

IDS = {name: number for number, name in enumerate(HEADS, 3)}
"""Of the candidates in the run that `write_run` writes."""


def sample_of(head: str, neck: str = "fpn") -> Sample:
    """The smallest detector with that kind of head (a key of `HEADS`)."""
    rpn, kind = HEADS[head]
    string = {"block": "basicblock", "base_width": 8}
    depths = {f"depth{k}": 1 for k in range(1, 5)}
    doubles = {f"double{k}": k + 1 for k in range(1, 4)}
    levels = {"neck": neck, "neck_start": 3 if neck == "fpn" else 2, "neck_end": 5}
    rest = {"neck_width": 16, "rpn": rpn, "head": kind, "input_size": "96x72"}
    return {**string, **depths, **doubles, **levels, **rest}


def plan_of(head: str, neck: str = "fpn", num_classes: int = CLASSES) -> Plan:
    """The plan of that detector, by itself."""
    sample = sample_of(head, neck)
    names = f"run#{IDS[head]}", f"Detector {IDS[head]} of toy"
    return Plan(*names, SPACE, SPACE_ARGS, "torchvision", 0, sample, num_classes)


def write_run(folder: Path, **experiment: object) -> Path:
    """A run folder with a measured candidate for each kind of head."""
    settings = {
        "space": SPACE,
        "space_args": SPACE_ARGS,
        "library": "torchvision",
        "stage": "modular",
        "seed": 0,
        "recipe": {"epochs": 1, "batch": 2, "lr": 0.02, "flip": 0.0},
    }
    journal = Journal.open(
        folder / "journal.jsonl", {"name": "toy", "experiment": {**settings, **experiment}}
    )
    for head, number in IDS.items():
        journal.asked(Candidate(number, "modular", sample_of(head)))
        metrics = {"latency_ms": 1.0, "map": 0.1}
        journal.told(number, Measured(metrics, {"num_classes": CLASSES}))
    journal.close()
    return folder


def keep_weights(run: Path, head: str) -> Path:
    """Leaves weights in the run where a trial does; those of `spread`."""
    folder = run / "trials" / str(IDS[head])
    folder.mkdir(parents=True)
    torch.save(spread(plan_of(head).build()).state_dict(), folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


def spread(detector: nn.Module) -> nn.Module:
    """The detector in evaluation mode with scores that are far from each other, on noise too.

    Scores of untrained layers are nearly equal: rounding decides which comes first.
    """
    generator = torch.Generator().manual_seed(1)
    for name, value in detector.named_parameters():
        if any(layer in name for layer in ("cls_score", "cls_logits", "objectness")):
            noise = torch.randn(value.shape, generator=generator)
            # a RetinaNet's maps are large, and its scores would all be 1
            scale = 0.05 if "classification_head" in name else 0.5
            value.data = noise * (scale if value.dim() > 1 else 0.1)
    return detector.eval()


def noise(count: int, size: tuple[int, int] = (96, 72)) -> list[torch.Tensor]:
    """Pictures of noise at (width, height)."""
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(3, size[1], size[0], generator=generator) for _ in range(count)]


def write_digits(folder: Path, train: int = 6, val: int = 3) -> Path:
    """Digit scenes of 96x72, in COCO format."""
    make_digits(folder, train=train, val=val, size=(96, 72), seed=0)
    return folder
