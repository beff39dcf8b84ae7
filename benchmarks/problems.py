"""Search problems whose every sample is known, so that the true front is: for benchmarks.

Each has two objectives, log10 of a cost and a quality, both scaled to the range of all legal
samples, minimised, and measured from the worst corner (1, 1).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from smnas import pareto
from smnas.encoding import Encoding
from smnas.journal import read
from smnas.objectives.vector import Objectives
from smnas.records import Measured, Sample
from smnas.regression import Features, Model, choose
from smnas.spaces import open_space

STRUCTURAL = "search_spaces.structural:StructuralSpace"
BCCD = Path(__file__).parent / "results" / "bccd"


@dataclass(frozen=True)
class Problem:
    """A search space with the outcome of every legal sample.

    Args:
        name: of the problem.
        about: what it is, in a sentence.
        encoding: of the space.
        rows: `{index vector: cost and quality}` of all legal samples, minimised, 0 to 1.
    """

    name: str
    about: str
    encoding: Encoding
    rows: Mapping[tuple[int, ...], np.ndarray]

    objectives = Objectives(
        {"cost": "minimize", "quality": "maximize"}, {"cost": 1.0, "quality": 0.0}
    )

    def row(self, index: np.ndarray) -> np.ndarray:
        return self.rows[tuple(int(i) for i in index)]

    def outcome(self, sample: Sample) -> Measured:
        cost, loss = self.row(self.encoding.index(sample))
        return Measured({"cost": float(cost), "quality": float(1 - loss)})

    @cached_property
    def volume(self) -> float:
        """Hypervolume of the exact front."""
        rows = np.array(list(self.rows.values()))
        return volume(rows[pareto.non_dominated(rows)])


def volume(rows: np.ndarray) -> float:
    """Hypervolume from the worst corner."""
    return pareto.hypervolume(rows, np.ones(2))


def macro(path: Path) -> Problem:
    """NAS-Bench-Macro (Su et al. 2021): flops and mean accuracy of 3^8 networks on CIFAR-10."""
    with path.open() as file:
        table = {
            row["arch"]: (float(row["flops"]), float(row["acc_mean"]))
            for row in csv.DictReader(file)
        }
    encoding = Encoding.from_choices({f"layer{k}": [0, 1, 2] for k in range(8)})
    about = "NAS-Bench-Macro: log10 flops and accuracy on CIFAR-10, 6,561 networks, measured"
    return _problem("macro", about, encoding, lambda s: table["".join(map(str, s.values()))])


_BACKBONES = {  # milliseconds at 1333x800, and what it adds to mAP
    "resnet18": (10.0, 0.040),
    "resnet34": (16.0, 0.072),
    "resnet50": (22.0, 0.090),
    "resnet101": (36.0, 0.113),
    "resnext50": (30.0, 0.106),
    "resnext101": (55.0, 0.128),
    "mobilenet_v2": (6.0, 0.015),
}
_RPNS = {"none": (0.0, 0.0), "rpn": (3.0, 0.0), "ga_rpn": (7.0, 0.012)}
_HEADS = {
    "rcnn": (5.0, 0.030),
    "cascade2": (9.0, 0.048),
    "cascade3": (13.0, 0.056),
    "retinanet": (0.0, 0.015),
}


def detector() -> Problem:
    """Detectors of `StructuralSpace` in closed forms, `analytic_latency_ms` and `analytic_map`."""
    encoding = Encoding.of(open_space(STRUCTURAL))
    about = "closed forms over the 2,548 legal samples of StructuralSpace"
    return _problem(
        "detector", about, encoding, lambda s: (analytic_latency_ms(s), analytic_map(s))
    )


def analytic_latency_ms(sample: Sample) -> float:
    """3 + a (body + pyramid + dense head) + proposals + RoI head, a: area by that of 1333x800.

    Maps cost by their area, RoI heads by their proposals. The pyramid costs 6 (width/256)^1.5 at
    strides 8 and above, and three times as much with stride 4.
    """
    area, width = _area(sample), float(sample["neck_width"]) / 256
    fine = 3.0 if sample["neck_start"] == 2 else 1.0
    pyramid = (
        6 * width**1.5 * fine + 0.4 * (sample["neck_end"] == 6) if sample["neck"] == "fpn" else 0.0
    )
    dense = 14 * width * fine**0.7 if sample["head"] == "retinanet" else 0.0
    body = _BACKBONES[str(sample["backbone"])][0]
    return (
        3
        + area * (body + pyramid + dense)
        + _RPNS[str(sample["rpn"])][0]
        + _HEADS[str(sample["head"])][0]
    )


def analytic_map(sample: Sample) -> float:
    """0.5 (1 - exp(-3 q)), q: what the parts add, with what they mean to each other.

    Pixels count by their logarithm, more for larger backbones; stride 4 helps small inputs most; a
    cascade needs good features; without a pyramid a dense head loses more.
    """
    area, body = _area(sample), _BACKBONES[str(sample["backbone"])][1]
    quality = 0.12 + body + _RPNS[str(sample["rpn"])][1] + _HEADS[str(sample["head"])][1]
    quality += (0.045 + 0.25 * body) * math.log(area / 0.25)
    if sample["neck"] == "fpn":
        width = float(sample["neck_width"]) / 256
        quality += 0.06 + 0.012 * math.log2(width) + 0.004 * (sample["neck_end"] == 6)
        quality += 0.018 * (sample["neck_start"] == 2) * (1.4 - area)
    elif sample["head"] == "retinanet":
        quality -= 0.03
    if str(sample["head"]).startswith("cascade"):
        quality += 0.15 * (body - 0.07)
    return 0.5 * (1 - math.exp(-3 * max(quality, 0.0)))


def _area(sample: Sample) -> float:
    width, height = str(sample["input_size"]).split("x")
    return int(width) * int(height) / (1333 * 800)


def bccd() -> Problem:
    """What models make of our recorded search on blood cells: an emulation, no table.

    24 trials are far too few to look samples up. Ridge regression with pairwise interactions or a
    Gaussian process, whichever ranks better in cross-validation, extends them to all legal samples;
    its front is the emulation's, not that of real detectors.
    """
    history = read(BCCD)
    arguments = history.header["experiment"]["space_args"]
    encoding = Encoding.of(open_space(STRUCTURAL, **arguments))
    known = [t for t in history.trials() if isinstance(t.outcome, Measured)]
    x = Features(encoding)(np.array([encoding.index(t.candidate.sample) for t in known]))
    legal = encoding.legal()
    latency, quality = (
        [t.outcome.metrics[name] for t in known if isinstance(t.outcome, Measured)]
        for name in ("latency_ms", "map")
    )
    columns, trust = [], []
    for y in (np.log10(latency), np.array(quality)):
        choice = choose(x, y, ["gp", "ridge"], seed=0)
        trust.append(f"{choice.tau:.2f}")
        model = Model(choice, x, y)
        columns.append(model.natural(model.predict(Features(encoding)(legal))[0]))
    emulated = np.stack([10 ** columns[0], columns[1]], axis=1)
    values = dict(zip(map(tuple, legal.tolist()), emulated, strict=True))
    about = (
        f"emulation fitted to the {len(known)} measured trials of our search on blood cells;"
        f" cross-validated Kendall's tau of latency and mAP: {' and '.join(trust)}"
    )
    return _problem("bccd", about, encoding, lambda s: values[tuple(encoding.index(s).tolist())])


def _problem(
    name: str,
    about: str,
    encoding: Encoding,
    measure: Callable[[Sample], tuple[float, float]],
) -> Problem:
    """Scales cost and quality of all legal samples."""
    legal = encoding.legal()
    values = np.array([measure(encoding.sample(index)) for index in legal])
    rows = np.stack([np.log10(values[:, 0]), -values[:, 1]], axis=1)
    rows = (rows - rows.min(axis=0)) / np.ptp(rows, axis=0)
    return Problem(name, about, encoding, dict(zip(map(tuple, legal.tolist()), rows, strict=True)))
