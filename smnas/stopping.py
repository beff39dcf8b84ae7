"""Which trials need not go on: partial order pruning before training, early stopping at rungs.

One decision for both runners: the embedded runner and NNI's assessor show it the lines that a trial
has reported; what it answers follows from these and the journal alone. Imports no torch, NNI or
pymoo.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.special import stdtr

from smnas.errors import ConfigError, check_names
from smnas.journal import Trial, read
from smnas.objectives.vector import Objectives
from smnas.records import Candidate, Measured, Monotone, Option, Sample, Stopped

Line = Mapping[str, Any]
"""What a trial reports: before training (`epoch` 0, with `epochs` and what is known by then, such
as `latency_ms`), and after each epoch (with what is known since, such as `map`).
"""

Watch = Callable[[Candidate, Sequence[Line]], Stopped | None]
"""A running candidate and its lines so far -> why it need not go on; None to let it."""

FEWEST = 6
"""Finished curves before anything is predicted. Few ones make a wide distribution by themselves,
but four may lie on a line by chance (benchmarks/early_stopping.py).
"""

MOST = 300
"""Trained networks, the newest ones, that are compared in pairs: it takes a quarter of a second."""


@dataclass(frozen=True)
class Pruning:
    """Partial order pruning (Li et al. 2019): what is smaller is at most as accurate.

    How well that holds depends on the recipe: short trainings favour small networks. So nothing is
    pruned until enough pairs of trained networks are there to show it, and what the worst of them
    shows goes before a narrower margin.

    Args:
        margin: by how much a smaller network may exceed a larger one, in the unit of the objective
            that training decides; at least 0. Never less than trained networks of the run do.
        pairs: trained networks of which one is no larger than the other, before anything is pruned;
            at least 0.

    Raises:
        ConfigError: a value is out of range.
    """

    margin: float = 0.02
    pairs: int = 15

    def __post_init__(self) -> None:
        _check("margin", self.margin, lambda v: v >= 0, "a number of at least 0")
        whole = "a whole number of at least 0"
        _check("pairs", self.pairs, lambda v: v >= 0 and isinstance(v, int), whole)


@dataclass(frozen=True)
class EarlyStopping:
    """When a training may be stopped.

    Args:
        rungs: epochs after which it is decided, ascending, at least 1.
        confidence: a trial is stopped when it will be dominated with this probability, in (0.5, 1).

    Raises:
        ConfigError: a value is out of range.
    """

    rungs: tuple[int, ...]
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if isinstance(self.rungs, list):  # experiment files have no tuples
            object.__setattr__(self, "rungs", tuple(self.rungs))
        if not _are_rungs(self.rungs):
            wanted = "whole numbers of at least 1, ascending"
            raise ConfigError(f"rungs: wanted {wanted}, got {self.rungs!r}")
        _check("confidence", self.confidence, lambda v: 0.5 < v < 1, "a number in (0.5, 1)")


def pruning_from(values: Mapping[str, Any] | None, where: str) -> Pruning | None:
    """The experiment file's `pruning`; None where it has none.

    Raises:
        ConfigError: a name is unknown or a value out of range; with the place.
    """
    return None if values is None else _from_mapping(Pruning, values, f"{where}: pruning")


def early_stopping_from(
    values: Mapping[str, Any] | None, where: str, epochs: int | None = None
) -> EarlyStopping | None:
    """The experiment file's `early_stopping`; None where it has none.

    Args:
        values: `{argument: value}`.
        where: the place that holds it, for messages.
        epochs: of the training, which the rungs have to be below; None where it is not known.

    Raises:
        ConfigError: a name is unknown, `rungs` is missing, or a value is out of range; with the
            place.
    """
    if values is None:
        return None
    where = f"{where}: early_stopping"
    if "rungs" not in values:
        raise ConfigError(f"{where}: wanted rungs: [epochs], got none")
    settings = _from_mapping(EarlyStopping, values, where)
    if epochs is not None and settings.rungs[-1] >= epochs:
        raise ConfigError(
            f"{where}: rungs: wanted epochs before the last of {epochs}, got {settings.rungs[-1]}"
        )
    return settings


def no_larger(sample: Sample, other: Sample, chains: Monotone) -> bool:
    """Whether a sample is no larger than another one in every choice.

    Options of a choice compare if one of its lists has both; what does not compare has to be equal.

    Args:
        sample: of a search space.
        other: likewise; samples with other labels do not compare.
        chains: what a search space says about sizes.
    """
    return sample.keys() == other.keys() and all(
        option == other[label] or _precedes(option, other[label], chains.get(label, ()))
        for label, option in sample.items()
    )


def excesses(trained: Sequence[tuple[Sample, float]], chains: Monotone) -> list[float]:
    """By how much the smaller network is the better one, of all pairs that compare.

    Args:
        trained: each network's sample and what training gave, minimised.
        chains: what a search space says about sizes, see `no_larger`.
    """
    return [
        larger_value - smaller_value
        for (smaller, smaller_value), (larger, larger_value) in permutations(trained, 2)
        if no_larger(smaller, larger, chains)
    ]


def _precedes(option: Option, other: Option, chains: Sequence[Sequence[Option]]) -> bool:
    return any(
        option in chain and other in chain and chain.index(option) < chain.index(other)
        for chain in chains
    )


@dataclass(frozen=True)
class _Known:
    """A trained candidate: what it had before training and what training gave, minimised."""

    trial: Trial
    before: Mapping[str, float]
    learned: float


class Judge:
    """Decides from the journal and a trial's lines whether the trial may go on.

    One objective has to be decided by training (mAP), the others known before it. A trial's rivals
    are the measured candidates that are no worse in all that is known before training: those of its
    own latency band and below. A rival that is at least as good as the trial can get, or will
    probably get, dominates it.

    Args:
        objectives: of the study.
        pruning: None for none.
        early_stopping: None for none.
        chains: what the search space says about sizes, see `no_larger`.
    """

    def __init__(
        self,
        objectives: Objectives,
        pruning: Pruning | None = None,
        early_stopping: EarlyStopping | None = None,
        chains: Monotone = MappingProxyType({}),
    ) -> None:
        self._objectives, self._chains = objectives, chains
        self._pruning, self._early = pruning, early_stopping

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> Judge | None:
        """The judge that a journal's header describes; None where it asks for none.

        Raises:
            ConfigError: a setting is wrong, or pruning is wanted in a space that says nothing about
                sizes.
        """
        settings = header["experiment"]
        pruning = pruning_from(settings.get("pruning"), "experiment")
        early = early_stopping_from(settings.get("early_stopping"), "experiment")
        chains = header["space"].get("monotone", {})
        if pruning is None and early is None:
            return None
        if pruning is not None and not chains:
            raise ConfigError(
                "pruning: wanted a search space that says what is larger (monotone), got one that"
                " does not"
            )
        objectives = Objectives(settings["objectives"], settings["reference_point"])
        return cls(objectives, pruning, early, chains)

    def is_due(self, lines: Sequence[Line]) -> bool:
        """Whether the last line is one that a decision may follow."""
        epoch = lines[-1].get("epoch")
        if epoch == 0:
            return self._pruning is not None
        early = self._early is not None and epoch in self._early.rungs
        return early and lines[0].get("epoch") == 0 and epoch != lines[0].get("epochs")

    def verdict(
        self, candidate: Candidate, lines: Sequence[Line], trials: Sequence[Trial]
    ) -> Stopped | None:
        """Why a running trial need not go on; None to let it.

        Args:
            candidate: that is running.
            lines: what its trial has reported so far, at least one.
            trials: of the run by now.
        """
        if not self.is_due(lines):
            return None
        metrics = _numbers(lines[0])
        learned = self._objectives.missing(metrics)
        if len(learned) != 1:
            return None
        known = self._known(trials, learned[0])
        before = self._objectives.known(metrics)
        rivals = [k for k in known if all(k.before[name] <= before[name] for name in before)]
        if not rivals:
            return None
        best = min(rivals, key=lambda rival: rival.learned)
        if len(lines) == 1:
            return self._prune(candidate, metrics, learned[0], best, known)
        return self._stop(candidate, lines, learned[0], best, known)

    def _known(self, trials: Sequence[Trial], learned: str) -> list[_Known]:
        result = []
        for trial in trials:
            outcome = trial.outcome
            if isinstance(outcome, Measured) and not self._objectives.missing(outcome.metrics):
                values = self._objectives.known(outcome.metrics)
                result.append(_Known(trial, values, values.pop(learned)))
        return result

    # -- before training ------------------------------------------------------------------------

    def _prune(
        self,
        candidate: Candidate,
        metrics: Mapping[str, float],
        learned: str,
        best: _Known,
        known: Sequence[_Known],
    ) -> Stopped | None:
        assert self._pruning is not None
        larger = [
            k for k in known if no_larger(candidate.sample, k.trial.candidate.sample, self._chains)
        ]
        if not larger:
            return None
        worst = max(larger, key=lambda one: one.learned)
        bound = worst.learned - self._pruning.margin
        if best.learned > bound:
            return None
        # only now, because it takes the longest
        newest = [(one.trial.candidate.sample, one.learned) for one in known[-MOST:]]
        above = excesses(newest, self._chains)
        bound = worst.learned - max(self._pruning.margin, *above, 0.0)
        if best.learned > bound or len(above) < self._pruning.pairs:
            return None
        limit, ceiling, rival = (
            self._natural(learned, value) for value in (bound, worst.learned, best.learned)
        )
        detail = (
            f"{learned} {limit:.4g} at best: no larger than {worst.trial.candidate.id}, which has"
            f" {ceiling:.4g}, and {best.trial.candidate.id} has {rival:.4g} and is no worse in"
            f" {self._others(learned)}"
        )
        return Stopped("pruned", detail, metrics, {learned: limit})

    # -- at a rung ------------------------------------------------------------------------------

    def _stop(
        self,
        candidate: Candidate,
        lines: Sequence[Line],
        learned: str,
        best: _Known,
        known: Sequence[_Known],
    ) -> Stopped | None:
        assert self._early is not None
        epoch, epochs = lines[-1]["epoch"], lines[0].get("epochs")
        own = self._at(lines[1:], epoch, learned)
        if own is None:
            return None
        pairs = [
            (value, k.learned)
            for k in known
            if k.trial.candidate.stage == candidate.stage
            and (value := self._at(_curve(k.trial, epochs), epoch, learned)) is not None
        ]
        if len(pairs) < FEWEST:
            return None
        mean, deviation, freedom = predict(np.array(pairs), own)
        # minimised: dominated where the end is no lower than the rival's
        probability = float(stdtr(freedom, (mean - best.learned) / deviation))
        if probability < self._early.confidence:
            return None
        now, end, rival = (self._natural(learned, v) for v in (own, mean, best.learned))
        detail = (
            f"after {epoch} of {epochs} epochs {learned} {now:.4g}, at the end {end:.4g} +-"
            f" {deviation:.2g}; {best.trial.candidate.id} has {rival:.4g} and is no worse in"
            f" {self._others(learned)}: dominated with probability {probability:.3f}"
        )
        info = {"curve": [dict(line) for line in lines[1:]], "epochs": epochs}
        return Stopped("early_stopped", detail, _numbers(lines[0]), {learned: end}, info)

    def _at(self, curve: Sequence[Line], epoch: int, learned: str) -> float | None:
        """Minimised value of the learned objective after an epoch, None where it is not known."""
        values = [self._objectives.known(_numbers(x)) for x in curve if x.get("epoch") == epoch]
        return values[-1].get(learned) if values else None

    def _natural(self, name: str, minimised: float) -> float:
        row = np.array([minimised if n == name else 0.0 for n in self._objectives.names])
        return self._objectives.named(row)[name]

    def _others(self, learned: str) -> str:
        return ", ".join(name for name in self._objectives.names if name != learned)


def predict(pairs: np.ndarray, value: float) -> tuple[float, float, int]:
    """What a trial will end with, by those that have: a straight line from a rung to the end.

    Args:
        pairs: `n x 2`: at the rung, at the end; `n` at least 3.
        value: at the rung.

    Returns:
        Mean, scale and degrees of freedom of Student's t distribution of a new value (the
        prediction interval of least squares); where all pairs have the same value at the rung, the
        line is flat.
    """
    x, y = pairs.T
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread if spread > 0 else 0.0
    freedom = len(x) - 2
    residual = y - y.mean() - slope * centred
    leverage = (value - x.mean()) ** 2 / spread if spread > 0 else 0.0
    scale = math.sqrt(float(residual @ residual) / freedom * (1 + 1 / len(x) + leverage))
    return float(y.mean() + slope * (value - x.mean())), max(scale, 1e-9), freedom


def watch(judge: Judge, journal: Path, earlier: Sequence[Trial] = ()) -> Watch:
    """The judge's decision by what a journal holds at the moment.

    Args:
        judge: of the study.
        journal: file or run folder; read only when a decision is due.
        earlier: trials of the stages before, which do not change any more.
    """

    def decide(candidate: Candidate, lines: Sequence[Line]) -> Stopped | None:
        if not judge.is_due(lines):
            return None
        return judge.verdict(candidate, lines, [*earlier, *read(journal).trials()])

    return decide


def _curve(trial: Trial, epochs: int | None) -> Sequence[Line]:
    """Of a trial that trained for so many epochs: another length has another learning rate."""
    curve = trial.outcome.info.get("curve", []) if isinstance(trial.outcome, Measured) else []
    return curve if curve and curve[-1].get("epoch") == epochs else []


def _numbers(line: Line) -> dict[str, float]:
    """The metrics of a line."""
    return {
        name: value
        for name, value in line.items()
        if name not in ("epoch", "epochs", "default") and _is_number(value)
    }


def _from_mapping(cls: type[Any], values: Mapping[str, Any], where: str) -> Any:
    check_names(values, [field.name for field in dataclasses.fields(cls)], where)
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check(name: str, value: object, accepts: Callable[[Any], bool], wanted: str) -> None:
    if not _is_number(value) or not accepts(value):
        raise ConfigError(f"{name}: wanted {wanted}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_rungs(rungs: object) -> bool:
    if not isinstance(rungs, tuple) or not rungs:
        return False
    whole = all(isinstance(r, int) and not isinstance(r, bool) and r >= 1 for r in rungs)
    return whole and all(a < b for a, b in zip(rungs, rungs[1:], strict=False))
