"""The optimiser as an NNI tuner, for `nnictl create --config experiments/structural.yml`, and for
any other search space and trial that NNI can run.

At the edge: NNI's dispatcher calls it, with parameter ids of its own; outcomes are matched by them.
It writes the same journal as the embedded search, and a resumed experiment is the journal's replay.
Must not import torch or pymoo at once: NNI gives a tuner ten seconds from its process's start.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nni
from nni.tuner import Tuner

from smnas import nni_runs
from smnas.encoding import Encoding
from smnas.errors import ConfigError, SpaceError, SpaceExhausted
from smnas.experiment import Experiment, SearchSettings
from smnas.journal import FILE_NAME, Journal
from smnas.nni_results import Ends, is_failure, outcome_of
from smnas.records import Candidate, Failed, Option, Outcome, Sample, identity
from smnas.runner import read_outcome
from smnas.spaces import with_library
from smnas.study import replay

if TYPE_CHECKING:
    from smnas.optimizer import Optimizer

RESULT_SECONDS = 2.0
"""NNI hands over a trial's end and its result in two threads: how long the end waits for the
result.
"""

_logger = logging.getLogger(__name__)


def _checked_settings(class_args: Mapping[str, Any]) -> SearchSettings:
    settings = SearchSettings.from_class_args(class_args, "classArgs")
    if settings.generational:
        raise ConfigError("classArgs: generational: wanted false under NNI, got true")
    return settings


class ParetoTuner(Tuner):
    """Multi-objective NNI tuner; steady state, so a free worker never waits.

    With `space` it searches that space with its constraints, and NNI's search-space file has to be
    its own (`smnas describe EXPERIMENT.yml --json`). Without `space` it searches whatever NNI's
    search space says, see `smnas.nni_space`, and any trial that reports a dict with the objectives
    will do.

    Args:
        class_args: the experiment's `tuner.classArgs`, see `smnas.experiment.SearchSettings`.

    Raises:
        ConfigError: an argument is unknown, misspelt or of the wrong kind, or `generational` is
            set: NNI has no word for "wait", only for "finished".
    """

    def __init__(self, **class_args: Any) -> None:
        super().__init__()
        if nni_runs.dispatcher_experiment() is not None:
            nni_runs.end_with_manager()
        self._settings = _checked_settings(class_args)
        self._objectives = self._settings.objective_vector()
        self._optimizer: Optimizer | None = None
        self._journal: Journal | None = None
        self._held = ExitStack()
        self._lock = threading.Condition()
        self._candidates: dict[int, Candidate] = {}
        self._by_identity: dict[str, Candidate] = {}
        self._told: set[int] = set()
        self._ends = Ends()
        self._waiting: list[Candidate] = []

    # -- what NNI calls -----------------------------------------------------------------------

    def update_search_space(self, search_space: Mapping[str, Any]) -> None:
        """Takes NNI's search space, once; opens the journal, and replays it if there is one.

        Raises:
            ConfigError: the file has been made from another space than the one that is named, or a
                setting does not fit the space.
            SpaceError: the named space cannot be built, or none is named and NNI's has a dimension
                that cannot be searched.
            JournalError, RunError: the journal cannot be opened or belongs to another experiment.
        """
        with self._lock:
            if self._optimizer is not None:
                _logger.error("the search space cannot change any more; going on with the first")
                return
            # imports torch, for which there is no time before
            self._settings = with_library(self._settings, "classArgs")
            optimizer = _make_optimizer(self._settings, search_space)
            folder = nni_runs.dispatcher_experiment()
            if folder is not None:
                self._open_journal(folder, optimizer)
            self._optimizer = optimizer

    def generate_parameters(self, parameter_id: int, **_: Any) -> dict[str, Any]:
        """The next sample.

        Raises:
            nni.NoMoreTrialError: every legal sample has been proposed.
        """
        with self._lock:
            self._settle()
            try:
                candidate = self._waiting.pop(0) if self._waiting else self._ask()
            except SpaceExhausted as end:
                raise nni.NoMoreTrialError(str(end)) from end
            self._candidates[parameter_id] = candidate
            self._ends.started(candidate.id)
            return dict(candidate.sample)

    def receive_trial_result(
        self,
        parameter_id: int,
        parameters: Mapping[str, Any],
        value: Any,
        trial_job_id: str | None = None,
        **_: Any,
    ) -> None:
        """Takes a trial's final result: a dict with every objective, or a failure with its reason
        as `smnas trial` reports it; anything else counts as a failure.
        """
        with self._lock:
            candidate = self._candidates[parameter_id]
            outcome = self._outcome(f"trial {trial_job_id} (parameters {parameter_id})", value)
            if isinstance(outcome, Failed):
                # all that a trial knows is that NNI has ended it
                outcome = self._verdict(candidate) or outcome
            self._tell(candidate, outcome, is_failure(value))
            self._lock.notify_all()

    def trial_end(self, parameter_id: int, success: bool, **_: Any) -> None:
        """Counts a trial that ended without a final result as failed."""
        with self._lock:
            candidate = self._candidates.get(parameter_id)
            if candidate is None:
                return
            self._settle()
            self._lock.wait_for(lambda: candidate.id in self._told, timeout=RESULT_SECONDS)
            self._ends.ended(candidate.id, candidate.id in self._told, success)
            self._settle()

    def import_data(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Takes results that did not come from this dispatcher's own trials: of a resumed
        experiment (what the journal knows already changes nothing), of trials that NNI itself has
        started again, and what the user imports.
        """
        with self._lock:
            for entry in data:
                self._import(entry["parameter"], entry["value"])

    # -- ask and tell ---------------------------------------------------------------------------

    def _searcher(self) -> Optimizer:
        if self._optimizer is None:
            raise RuntimeError("NNI has to give the search space first")
        return self._optimizer

    def _ask(self) -> Candidate:
        candidate = self._searcher().ask()
        if candidate is None:
            raise RuntimeError("the optimiser waits although it is in steady state")
        self._remember(candidate)
        return candidate

    def _remember(self, candidate: Candidate) -> None:
        if self._journal is not None:
            self._journal.asked(candidate)
        self._by_identity[candidate.identity] = candidate

    def _tell(
        self, candidate: Candidate, outcome: Outcome, explains_bad_exit: bool = False
    ) -> None:
        if candidate.id in self._told:
            _logger.warning("candidate %d has its outcome already; ignored", candidate.id)
            return
        self._ends.told(candidate.id, explains_bad_exit)
        self._record(candidate, outcome, self._searcher())

    def _record(self, candidate: Candidate, outcome: Outcome, optimizer: Optimizer) -> None:
        self._told.add(candidate.id)
        if self._journal is not None:
            self._journal.told(candidate.id, outcome)
        optimizer.tell(candidate.id, outcome)

    def _settle(self) -> None:
        """Tells what the assessor has stopped, and fails the trials that have ended without a
        result.
        """
        own = {candidate.id: candidate for candidate in self._candidates.values()}
        for candidate in own.values():
            if candidate.id not in self._told and (verdict := self._verdict(candidate)):
                self._tell(candidate, verdict, explains_bad_exit=True)
        for candidate_id in self._ends.failed():
            lost = Failed("error", "ended without a final result")
            crash = Failed("crash", "failed; see its log")
            crashed = self._ends.crashed
            self._tell(own[candidate_id], crash if crashed else lost, crashed)

    def _verdict(self, candidate: Candidate) -> Outcome | None:
        """Why the assessor has ended a trial, None if it has not."""
        if self._journal is None:
            return None
        folder = nni_runs.trial_folder(self._journal.path.parent, candidate.id)
        return read_outcome(folder, candidate)

    def _import(self, parameters: Mapping[str, Any], value: Any) -> None:
        try:
            sample = _exact(parameters, self._searcher().encoding)
            candidate = self._by_identity.get(identity(sample)) or self._adopt(sample)
        except (SpaceError, TypeError, ValueError, AttributeError) as error:
            _logger.error("imported result: not a sample of this search space: %s", error)
            return
        if candidate.id not in self._told:
            self._waiting = [other for other in self._waiting if other.id != candidate.id]
            self._tell(candidate, self._outcome(f"imported result of {dict(parameters)}", value))

    def _adopt(self, sample: Sample) -> Candidate:
        """A sample that somebody else proposed, as a candidate of this study."""
        optimizer = self._searcher()
        optimizer.encoding.check(sample)
        candidate = Candidate(len(self._by_identity), optimizer.stage, sample)
        optimizer.replay(candidate)
        self._remember(candidate)
        return candidate

    def _outcome(self, whose: str, value: Any) -> Outcome:
        outcome = outcome_of(value, self._objectives)
        if isinstance(outcome, Failed) and not is_failure(value):
            _logger.error("result of %s: %s", whose, outcome.detail)
        return outcome

    # -- the journal ----------------------------------------------------------------------------

    def _open_journal(self, folder: Path, optimizer: Optimizer) -> None:
        from smnas.assembly import header
        from smnas.search import only_search

        run = nni_runs.run_folder(folder)
        # until this process ends: a dispatcher that outlived its manager may still write
        self._held.enter_context(only_search(run))
        experiment = _experiment(folder, self._settings)
        self._journal = Journal.open(
            run / FILE_NAME, header(experiment, optimizer.encoding, experiment.workers)
        )
        trials = self._journal.history.trials()
        pending = replay(optimizer, self._journal.history)
        self._by_identity = {trial.candidate.identity: trial.candidate for trial in trials}
        self._told = {trial.candidate.id for trial in trials if trial.outcome is not None}
        if pending:
            states = {
                identity(_exact(parameters, optimizer.encoding)): state
                for parameters, state in nni_runs.trial_states()
            }
            self._take_up(pending, states, optimizer)

    def _take_up(
        self, pending: Sequence[Candidate], states: Mapping[str, str], optimizer: Optimizer
    ) -> None:
        """Decides about each candidate without an outcome by the state of its trial: a failed one
        stays failed, a running one is started again by NNI, and what NNI has forgotten is proposed
        again. The result of a trial that succeeded is on its way.
        """
        for candidate in pending:
            state = states.get(candidate.identity)
            if verdict := self._verdict(candidate):
                self._record(candidate, verdict, optimizer)
            elif state == "FAILED":
                self._record(candidate, Failed("crash", "failed; see its log"), optimizer)
            elif state is None or state in _STOPPED:
                self._waiting.append(candidate)


_STOPPED = ("USER_CANCELED", "SYS_CANCELED", "EARLY_STOPPED")


def _make_optimizer(settings: SearchSettings, search_space: Mapping[str, Any]) -> Optimizer:
    from smnas.assembly import make_optimizer
    from smnas.nni_space import encoding_of

    if settings.space is None:
        return make_optimizer(settings, encoding_of(search_space))
    optimizer = make_optimizer(settings)
    _check_same(search_space, optimizer.encoding)
    return optimizer


def _experiment(folder: Path, settings: SearchSettings) -> Experiment:
    """What NNI knows of the experiment file, for the journal's header."""
    kept = nni_runs.settings_of(folder)
    wants_assessor = settings.pruning is not None or settings.early_stopping is not None
    if wants_assessor and not kept.get("assessor"):
        _logger.warning(
            "pruning and early_stopping: wanted an assessor (smnas.assessor.ParetoAssessor),"
            " got none; all trials will train to their end"
        )
    return Experiment(
        path=folder,
        name=kept.get("experimentName") or folder.name,
        search=settings,
        trial_command=kept["trialCommand"],
        directory=Path(kept["trialCodeDirectory"]),
        workers=kept["trialConcurrency"],
    )


def _check_same(search_space: Mapping[str, Any], encoding: Encoding) -> None:
    wanted = encoding.nni_search_space()
    if dict(search_space) != wanted:
        labels = {k for k in {*search_space, *wanted} if search_space.get(k) != wanted.get(k)}
        raise ConfigError(
            f"searchSpaceFile: differs from the space in {sorted(labels)};"
            " make it again with: smnas describe EXPERIMENT.yml --json"
        )


def _exact(parameters: Mapping[str, Any], encoding: Encoding) -> dict[str, Option]:
    """Parameters as the space spells them: what went through NNI's manager has 16 for 16.0."""
    options = {choice.label: choice.options for choice in encoding.choices}
    return {
        label: next((o for o in options.get(label, ()) if _is_same(o, value)), value)
        for label, value in parameters.items()
    }


def _is_same(option: Option, value: Any) -> bool:
    return bool(option == value) and isinstance(option, bool) == isinstance(value, bool)
