"""smnas in NNI's NAS API: `NasExperiment(space, DetectorEvaluator({...}), ParetoStrategy(...))`.

At the edge: NNI's engine submits the models and hands their results over; the optimiser is the same
as everywhere. The strategy's state is the journal's events, and loading it replays them.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nni
from nni.nas.evaluator import Evaluator
from nni.nas.execution import ExecutionEngine, training_service
from nni.nas.execution.event import FinalMetricEvent, ModelEventType, TrainingEndEvent
from nni.nas.space import ExecutableModelSpace, ModelStatus
from nni.nas.strategy.base import Strategy
from nni.runtime.tuner_command_channel import TunerCommandChannel
from nni.runtime.tuner_command_channel.command_type import CommandType

from smnas import pareto
from smnas.encoding import Encoding
from smnas.errors import ConfigError, JournalError, SpaceExhausted, TrialFailure, check_names
from smnas.journal import Asked, Event, History, Told, Trial, event_from_json, event_to_json
from smnas.nni_results import Ends, is_number, outcome_of
from smnas.objectives.vector import Objectives
from smnas.optimizer import Optimizer
from smnas.records import Candidate, Failed, Outcome, Sample, identity
from smnas.study import replay
from smnas.training.recipe import Recipe
from smnas.trial import NniReporter, Settings, run_trial

POLL_SECONDS = 0.2


class ResumableChannel(TunerCommandChannel):
    """NNI's channel between manager and engine, without what a resumed experiment is sent.

    Its manager sends old results and asks for unfinished trials again; NNI's own channel ends with
    an error at commands that it does not know. The strategy has both from its checkpoint.
    """

    def _receive(self) -> tuple[CommandType, str] | tuple[None, None]:
        while (command := super()._receive())[0] in _OF_A_RESUME:
            pass
        return command


_OF_A_RESUME = (CommandType.ImportData, CommandType.AddCustomizedTrialJob)


class ParetoStrategy(Strategy):
    """A multi-objective NNI NAS strategy; trials report a dict with every objective.

    Steady state: a free worker gets a new model at once. `export_top_models` gives the Pareto set,
    and `front` gives it with all metrics.

    Args:
        objectives: names, directions and reference point.
        algorithm: as for `smnas.optimizer.Optimizer`, like the arguments after it.
        algorithm_args: of the algorithm.
        population: at least 2.
        seed: at least 0.
        baselines: `{name: sample}`; asked first.
        generational: wait for whole generations.

    Raises:
        ConfigError: when the experiment starts; an argument is wrong.
    """

    def __init__(
        self,
        objectives: Objectives,
        *,
        algorithm: str = "nsga2",
        algorithm_args: Mapping[str, Any] | None = None,
        population: int = 20,
        seed: int = 0,
        baselines: Mapping[str, Sample] | None = None,
        generational: bool = False,
    ) -> None:
        super().__init__()
        training_service.TunerCommandChannel = ResumableChannel
        self._objectives = objectives

        def optimizer(encoding: Encoding) -> Optimizer:
            return Optimizer(
                encoding,
                objectives,
                algorithm=algorithm,
                algorithm_args=algorithm_args,
                population=population,
                seed=seed,
                baselines=baselines,
                generational=generational,
            )

        self._make_optimizer = optimizer
        self._events: list[Event] = []
        self._waiting: list[Candidate] = []
        self._told: set[int] = set()
        self._ends = Ends()
        self._models: dict[int, ExecutableModelSpace] = {}
        # results arrive in a thread of NNI's
        self._lock = threading.RLock()

    def extra_repr(self) -> str:
        return f"objectives={dict(self._objectives.directions)}"

    def trials(self) -> list[Trial]:
        """Every model so far, by id, with its outcome or None."""
        with self._lock:
            return History({}, tuple(self._events)).trials()

    def front(self) -> list[Trial]:
        """The Pareto set of what has been measured, by the first objective."""
        return pareto.front(self.trials(), self._objectives)

    def list_models(
        self, sort: bool = True, limit: int | None = None
    ) -> Iterator[ExecutableModelSpace]:
        """The models of the Pareto set, by the first objective; with `sort=False` all models."""
        if not sort:
            yield from super().list_models(sort=False, limit=limit)
            return
        models = {identity(model.sample): model for model in super().list_models(sort=False)}
        for trial in self.front()[:limit]:
            yield models[trial.candidate.identity]

    def state_dict(self) -> dict[str, Any]:
        """The journal's events as plain JSON values."""
        with self._lock:
            events = [event_to_json(event) for event in self._events]
        # NNI's labels are a string class of its own, which torch refuses to load from a checkpoint
        return {"events": json.loads(json.dumps(events))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Replays the events; what was running then is submitted again first.

        Raises:
            JournalError: the state is none of a `ParetoStrategy`.
            SpaceError: it belongs to another search space.
        """
        try:
            events = [event_from_json(record) for record in state_dict["events"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise JournalError(f"strategy state: wanted a journal's events: {error!r}") from error
        with self._lock:
            self._optimizer = self._make_optimizer(Encoding.of(self.model_space))
            self._waiting = replay(self._optimizer, History({}, tuple(events)))
            self._events = events

    # -- what NNI calls -------------------------------------------------------------------------

    def _initialize(
        self, model_space: ExecutableModelSpace, engine: ExecutionEngine
    ) -> ExecutableModelSpace:
        self._optimizer = self._make_optimizer(Encoding.of(model_space))
        engine.register_model_event_callback(ModelEventType.FinalMetric, self._on_metric)
        engine.register_model_event_callback(ModelEventType.TrainingEnd, self._on_end)
        return model_space

    def _cleanup(self) -> None:
        self.engine.unregister_model_event_callback(ModelEventType.FinalMetric, self._on_metric)
        self.engine.unregister_model_event_callback(ModelEventType.TrainingEnd, self._on_end)

    def _run(self) -> None:
        try:
            while self.wait_for_resource():
                candidate = self._next()
                if candidate is None:
                    time.sleep(POLL_SECONDS)  # until the generation is complete
                else:
                    self._submit(candidate)
        except SpaceExhausted:
            pass  # a search ends well with it
        while self._ends.active:
            # asks NNI's manager, so that this wait ends with an error when the manager is gone
            self.engine.budget_available()
            time.sleep(POLL_SECONDS)

    def _next(self) -> Candidate | None:
        with self._lock:
            if self._waiting:
                return self._waiting.pop(0)
            candidate = self._optimizer.ask()
            if candidate is not None:
                self._events.append(Asked(candidate, time.time()))
            return candidate

    def _submit(self, candidate: Candidate) -> None:
        model = self.model_space.freeze(dict(candidate.sample))
        with self._lock:
            self._models[candidate.id] = model
            self._ends.started(candidate.id)
        self.engine.submit_models(model)

    def _on_metric(self, event: FinalMetricEvent) -> None:
        with self._lock:
            candidate_id = self._id_of(event.model)
            if candidate_id is not None:
                self._tell(candidate_id, outcome_of(event.metric, self._objectives))
        if not isinstance(event.metric, dict) or not is_number(event.metric.get("default")):
            # NNI would keep it as one number, and an error there ends its thread without a word
            event.prevent_default()

    def _on_end(self, event: TrainingEndEvent) -> None:
        """Notes that a trial has ended; one without a result has failed, sooner or later."""
        with self._lock:
            candidate_id = self._id_of(event.model)
            if candidate_id is None:
                return
            # an interrupted one stays open in the events, and runs again after a resume
            settled = event.status == ModelStatus.Interrupted or candidate_id in self._told
            self._ends.ended(candidate_id, settled, event.status == ModelStatus.Trained)
            for failed in self._ends.failed():
                self._tell(failed, Failed("crash", "ended without a result; see its log"))

    def _tell(self, candidate_id: int, outcome: Outcome) -> None:
        if candidate_id in self._told:
            return
        self._told.add(candidate_id)
        self._ends.told(candidate_id, isinstance(outcome, Failed))
        self._events.append(Told(candidate_id, outcome, time.time()))
        self._optimizer.tell(candidate_id, outcome)

    def _id_of(self, model: ExecutableModelSpace) -> int | None:
        return next((i for i, known in self._models.items() if known is model), None)


@nni.trace
class DetectorEvaluator(Evaluator):
    """Measures detectors as `smnas trial` does: cost, latency, short training, mAP.

    Args:
        trial: fields of `smnas.trial.Settings`, at least `space` and `data`. Relative paths count
            from the folder where the experiment is started, which is where NNI runs its trials.
            The experiment's model space has to be the one that `space` names.

    Raises:
        ConfigError: a setting is unknown, missing or out of range.
    """

    def __init__(self, trial: Mapping[str, Any]) -> None:
        self._settings = settings_from(trial)

    def _execute(self, model: ExecutableModelSpace) -> None:
        # NNI's own would build the detector here; the trial builds it with its seed
        sample = model.sample or {}
        reporter = NniReporter(sample)
        outcome = run_trial(self._settings, sample, reporter.epoch)
        reporter.end(outcome)
        if isinstance(outcome, Failed):
            raise TrialFailure(outcome.reason, outcome.detail)


def settings_from(trial: Mapping[str, Any]) -> Settings:
    """A trial's settings from plain values.

    Raises:
        ConfigError: a setting is unknown, missing or out of range.
    """
    fields = dataclasses.fields(Settings)
    check_names(trial, [field.name for field in fields], "DetectorEvaluator")
    for name in ("space", "data"):
        if name not in trial:
            raise ConfigError(f"DetectorEvaluator: wanted {name}, got none")
    recipe = Recipe.from_mapping(trial.get("recipe", {}), "DetectorEvaluator")
    return Settings(**{**trial, "data": Path(trial["data"]), "recipe": recipe})
