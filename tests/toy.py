"""A small search space with known outcomes, for tests that need no detectors."""

from __future__ import annotations

import numpy as np
from nni.mutable import Categorical, ExpressionConstraint, MutableList

from smnas.records import Failed, Measured, Option, Outcome, Sample

TOY_SIZES = {f"d{i}": [list(range(5))] for i in range(4)}
"""What is larger in the toy space, and never worse in `toy_outcome`."""


def toy_space() -> MutableList:
    """Four ordinal and one nominal choice; 'c' needs the first choice below 3."""
    depth = [Categorical(list(range(5)), label=f"d{i}") for i in range(4)]
    kind = Categorical(["a", "b", "c"], label="kind")
    rule = ExpressionConstraint((kind != "c") | (depth[0] <= 2), label="c_is_shallow")
    return MutableList([*depth, kind, rule])


def toy_outcome(sample: Sample) -> Outcome:
    """More depth is slower and better with falling returns; 'b' costs a little for more."""
    depth = [float(sample[f"d{i}"]) for i in range(4)]
    bonus = {"a": 0.0, "b": 0.1, "c": 0.05}[str(sample["kind"])]
    latency = 1 + sum((i + 1) * d for i, d in enumerate(depth)) + 20 * bonus
    quality = sum(d * (9 - d) for d in depth) / 80 * 0.8 + bonus
    return Measured({"latency_ms": latency, "map": quality})


def toy_outcome_with_failures(sample: Sample) -> Outcome:
    """As `toy_outcome`, but the deepest first choice always crashes."""
    return Failed("crash", "too deep") if sample["d0"] == 4 else toy_outcome(sample)


class WalkingSpace(MutableList):
    """Five by five numbers with operators of its own, as a modular space has them: a mutation moves
    `x` one up, round the corner into `y`; a crossover takes `x` of one and `y` of the other.
    """

    def __init__(self) -> None:
        super().__init__([Categorical(list(range(5)), label=label) for label in ("x", "y")])

    def mutate(self, sample: Sample, rng: np.random.Generator) -> dict[str, Option]:
        place = (int(sample["x"]) + 5 * int(sample["y"]) + 1) % 25
        return {"x": place % 5, "y": place // 5}

    def crossover(
        self, first: Sample, second: Sample, rng: np.random.Generator
    ) -> dict[str, Option]:
        return {"x": first["x"], "y": second["y"]}
