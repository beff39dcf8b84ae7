"""The frozen values that travel through everything: a `Candidate` goes out, an `Outcome` comes
back.

Light: imports no torch, NNI or pymoo. Records turn into plain JSON objects and back here and
nowhere else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Option = str | int | float | bool
"""One option of one choice, as JSON can hold it."""

Sample = Mapping[str, Option]
"""`{label: option}`, as NNI uses the word."""

Monotone = Mapping[str, Sequence[Sequence[Option]]]
"""`{label: lists of options from small to large}`, for choices whose larger options are expected to
be at least as accurate; two options compare if one list has both.
"""

ORIGINS = ("baseline", "control", "mutant", "random", "mating", "model")
"""Where a candidate came from: the experiment's list of known detectors, the detector that a group
starts from, a mutant of one of these, chance, the algorithm, or a surrogate's models.
"""

FAILURE_REASONS = {
    "over_latency": "latency is over the bound, so it was not trained",
    "nan_loss": "the training loss became NaN or infinite",
    "out_of_memory": "the device ran out of memory, also with half the batch",
    "timeout": "the trial ran longer than its time limit",
    "crash": "the trial's process ended without an outcome",
    "error": "the trial raised an error",
}

STOP_REASONS = {
    "pruned": "not trained: by its size it cannot be better than one that is no slower",
    "early_stopped": "training stopped: it would probably be dominated",
    "untimed": "not compared: its latency on the device of this view is not known",
}
"""The last one is no journal's: views of a run on another device have it, see
`smnas.report.devices`.
"""


def identity(sample: Sample) -> str:
    """Canonical JSON of a sample (sorted keys, no spaces): equal samples have equal identities."""
    return json.dumps(dict(sample), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(mapping))


@dataclass(frozen=True)
class Candidate:
    """A sample that the optimiser has asked to be measured.

    Args:
        id: number within the run, from 0, in the order of asking; later stages count on.
        stage: `structural` or `modular`.
        sample: `{label: option}`; member of the stage's search space.
        origin: one of `ORIGINS`.
        parents: ids that it was made from: mates, or the detector that it is a mutant of.
        generation: 0 without parents of its own stage, else one more than the youngest of them.
        group: id of the earlier stage's detector whose inside is searched; None in a first stage.
        knowledge: of the surrogate's models when it was proposed, by them or, while they were no
            better than chance, without them: `{objective: Kendall's tau in cross-validation}`.
    """

    id: int
    stage: str
    sample: Sample
    origin: str = "random"
    parents: tuple[int, ...] = ()
    generation: int = 0
    group: int | None = None
    knowledge: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample", _frozen(self.sample))
        object.__setattr__(self, "knowledge", _frozen(self.knowledge))

    @property
    def identity(self) -> str:
        """Canonical JSON of the sample."""
        return identity(self.sample)

    def to_json(self) -> dict[str, Any]:
        record = {
            "id": self.id,
            "stage": self.stage,
            "sample": dict(self.sample),
            "origin": self.origin,
            "parents": list(self.parents),
            "generation": self.generation,
            "group": self.group,
        }
        return record | ({"knowledge": dict(self.knowledge)} if self.knowledge else {})

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Candidate:
        # journals of the first release have no lineage
        return cls(
            record["id"],
            record["stage"],
            record["sample"],
            record["origin"],
            tuple(record.get("parents", ())),
            record.get("generation", 0),
            record.get("group"),
            record.get("knowledge", {}),
        )


@dataclass(frozen=True)
class Measured:
    """A candidate that was built, timed and trained.

    Args:
        metrics: `{name with its unit: finite number}`, for instance `latency_ms`, `map` (0 to 1),
            `params_m`.
        info: what else is worth keeping: device, per-epoch curve, batch size, library versions.

    Raises:
        ValueError: a metric is not a finite number.
    """

    metrics: Mapping[str, float]
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"metric {name}: wanted a number, got {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"metric {name}: wanted a finite number, got {value!r}")
        object.__setattr__(self, "metrics", _frozen(self.metrics))
        object.__setattr__(self, "info", _frozen(self.info))

    def to_json(self) -> dict[str, Any]:
        return {"state": "measured", "metrics": dict(self.metrics), "info": dict(self.info)}


@dataclass(frozen=True)
class Failed:
    """A candidate without objectives: a reason, never a number.

    Args:
        reason: a key of `FAILURE_REASONS`.
        detail: what happened, with the log's tail where there is one.
        metrics: what had been measured before it failed (latency and cost, usually).

    Raises:
        ValueError: the reason is not a known one.
    """

    reason: str
    detail: str
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reason not in FAILURE_REASONS:
            raise ValueError(
                f"failure reason: wanted one of {sorted(FAILURE_REASONS)}, got {self.reason!r}"
            )
        object.__setattr__(self, "metrics", _frozen(self.metrics))

    def to_json(self) -> dict[str, Any]:
        return {
            "state": "failed",
            "reason": self.reason,
            "detail": self.detail,
            "metrics": dict(self.metrics),
        }


@dataclass(frozen=True)
class Stopped:
    """A candidate that was ended on purpose, because another one is better: no failure, and never
    on the front.

    Args:
        reason: a key of `STOP_REASONS`.
        detail: which candidates it was compared with, and how.
        metrics: what had been measured before training (latency and cost, usually).
        estimate: `{objective: value}` of what was not measured: what algorithms learn from.
        info: what else is worth keeping: the curve up to there.

    Raises:
        ValueError: the reason is not a known one.
    """

    reason: str
    detail: str
    metrics: Mapping[str, float]
    estimate: Mapping[str, float]
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reason not in STOP_REASONS:
            raise ValueError(
                f"stop reason: wanted one of {sorted(STOP_REASONS)}, got {self.reason!r}"
            )
        for name in ("metrics", "estimate", "info"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))

    def to_json(self) -> dict[str, Any]:
        return {
            "state": "stopped",
            "reason": self.reason,
            "detail": self.detail,
            "metrics": dict(self.metrics),
            "estimate": dict(self.estimate),
            "info": dict(self.info),
        }


Outcome = Measured | Failed | Stopped


def expected(outcome: Outcome) -> Mapping[str, float]:
    """Metrics of an outcome; with the estimate of what was not measured, if it was stopped."""
    if isinstance(outcome, Stopped):
        return {**outcome.metrics, **outcome.estimate}
    return outcome.metrics


def outcome_from_json(record: Mapping[str, Any]) -> Outcome:
    """The inverse of `to_json` of all outcomes.

    Raises:
        ValueError: `state` is not `measured`, `failed` or `stopped`.
    """
    match record.get("state"):
        case "measured":
            return Measured(record["metrics"], record["info"])
        case "failed":
            return Failed(record["reason"], record["detail"], record["metrics"])
        case "stopped":
            return Stopped(
                record["reason"],
                record["detail"],
                record["metrics"],
                record["estimate"],
                record["info"],
            )
        case other:
            wanted = "'measured', 'failed' or 'stopped'"
            raise ValueError(f"outcome state: wanted {wanted}, got {other!r}")
