"""A small search space with known outcomes, for tests that need no detectors."""

from __future__ import annotations

from nni.mutable import Categorical, ExpressionConstraint, MutableList

from smnas.records import Failed, Measured, Outcome, Sample


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
