"""The same optimiser as an NNI tuner, for `nnictl create --config experiments/structural.yml`.

At the edge: NNI's dispatcher calls it with parameter ids of its own; outcomes are matched by them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import nni
from nni.tuner import Tuner

from smnas.errors import ConfigError, SpaceExhausted
from smnas.experiment import SearchSettings
from smnas.optimizer import Optimizer
from smnas.records import Candidate, Failed, Measured, Outcome, identity
from smnas.search import make_optimizer

_logger = logging.getLogger(__name__)


class ParetoTuner(Tuner):
    """Multi-objective NNI tuner; steady state, so a free worker never waits.

    Args:
        class_args: the experiment's `tuner.classArgs`, see `smnas.experiment.SearchSettings`.

    Raises:
        ConfigError: an argument is unknown, misspelt or of the wrong kind, or `generational` is
            set: NNI has no word for "wait", only for "finished".
        SpaceError: the search space cannot be built.
    """

    def __init__(self, **class_args: Any) -> None:
        settings = SearchSettings.from_class_args(class_args, "classArgs")
        if settings.generational:
            raise ConfigError("classArgs: generational: wanted false under NNI, got true")
        self._objectives = settings.objective_vector()
        self._optimizer: Optimizer = make_optimizer(settings)
        self._candidates: dict[int, Candidate] = {}
        self._told: set[int] = set()

    def update_search_space(self, search_space: Mapping[str, Any]) -> None:
        """Checks NNI's search-space file against the space that is searched.

        Raises:
            ConfigError: the file has been made from another space.
        """
        wanted = self._optimizer.encoding.nni_search_space()
        if dict(search_space) != wanted:
            labels = {k for k in {*search_space, *wanted} if search_space.get(k) != wanted.get(k)}
            raise ConfigError(
                f"searchSpaceFile: differs from the space in {sorted(labels)};"
                " make it again with: smnas describe EXPERIMENT.yml --json"
            )

    def generate_parameters(self, parameter_id: int, **_: Any) -> dict[str, Any]:
        """The next sample.

        Raises:
            nni.NoMoreTrialError: every legal sample has been proposed.
        """
        try:
            candidate = self._optimizer.ask()
        except SpaceExhausted as end:
            raise nni.NoMoreTrialError(str(end)) from end
        if candidate is None:
            raise RuntimeError("the optimiser waits although it is in steady state")
        self._candidates[parameter_id] = candidate
        return dict(candidate.sample)

    def receive_trial_result(
        self, parameter_id: int, parameters: Mapping[str, Any], value: Any, **_: Any
    ) -> None:
        """Takes a trial's final result, a dict with every objective; anything else counts as a
        failure.
        """
        self._tell(parameter_id, self._outcome(parameter_id, value))

    def trial_end(self, parameter_id: int, success: bool, **_: Any) -> None:
        """Counts a trial that ended without a final result as failed."""
        if parameter_id in self._candidates and parameter_id not in self._told:
            words = "ended without a final result" if success else "failed; see its log"
            self._tell(parameter_id, Failed("error" if success else "crash", words))

    def import_data(self, data: list[Mapping[str, Any]]) -> None:
        """Takes results of earlier trials, as NNI hands them over when an experiment is resumed."""
        known = {c.identity for c in self._candidates.values()}
        for entry in data:
            if identity(entry["parameter"]) in known:
                continue
            # NNI's own ids start behind those of the earlier trials; ours must not meet them
            key = -1 - len(self._candidates)
            candidate = Candidate(
                len(self._candidates), self._optimizer.stage, entry["parameter"], "random"
            )
            self._optimizer.replay(candidate)
            self._candidates[key] = candidate
            self._tell(key, self._outcome(key, entry["value"]))

    def _outcome(self, parameter_id: int, value: Any) -> Outcome:
        if not isinstance(value, dict):
            detail = f"wanted a dict with {list(self._objectives.names)}, got {value!r}"
            _logger.error("result of parameters %s: %s", parameter_id, detail)
            return Failed("error", detail)
        metrics = {k: v for k, v in value.items() if k != "default" and _is_number(v)}
        if missing := self._objectives.missing(metrics):
            detail = f"wanted finite numbers for {missing}, got {[value.get(k) for k in missing]}"
            _logger.error("result of parameters %s: %s", parameter_id, detail)
            return Failed("error", detail)
        return Measured(metrics)

    def _tell(self, parameter_id: int, outcome: Outcome) -> None:
        self._told.add(parameter_id)
        self._optimizer.tell(self._candidates[parameter_id].id, outcome)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
