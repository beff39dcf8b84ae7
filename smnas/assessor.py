"""Pruning and early stopping as an NNI assessor, beside `smnas.tuner.ParetoTuner`.

At the edge: NNI's dispatcher hands it what trials report. What is decided, and by what, are the
settings and outcomes of the tuner's journal, as under `smnas search`; a verdict is left in the run
folder, where the tuner takes it up. Imports no torch and no pymoo.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nni.assessor import Assessor, AssessResult

from smnas import nni_runs
from smnas.errors import ConfigError, RunError
from smnas.journal import FILE_NAME, read
from smnas.records import Candidate, Sample
from smnas.runner import write_outcome
from smnas.stopping import Judge, Line, Watch, watch

_logger = logging.getLogger(__name__)


class ParetoAssessor(Assessor):
    """Ends trials that another one dominates, by `pruning` and `early_stopping` of the tuner's
    `classArgs`.

    A trial has to report as `smnas trial` does: before training a dict with `epoch: 0`, the number
    of `epochs`, its `sample` and the objectives that are known by then; after each epoch a dict
    with `epoch` and the objective that training decides.

    Args:
        run: run folder of the experiment; None for that of the dispatcher's experiment.
    """

    def __init__(self, run: Path | None = None) -> None:
        self._run = run
        self._watch: Watch | None = None

    def assess_trial(self, trial_job_id: str, trial_history: Sequence[Any]) -> AssessResult:
        """Whether a trial may go on.

        Raises:
            ConfigError: the experiment asks for neither pruning nor early stopping.
            RunError: there is no journal.
        """
        run = self._run_folder()
        if self._watch is None:
            self._watch = _watch_of(run / FILE_NAME)
        lines = _last_start(trial_history)
        if not lines:
            return AssessResult.Good
        candidate = _find(lines[0]["sample"], run / FILE_NAME)
        verdict = None if candidate is None else self._watch(candidate, lines)
        if candidate is None or verdict is None:
            return AssessResult.Good
        _logger.info("trial %s (candidate %d): %s", trial_job_id, candidate.id, verdict.detail)
        folder = nni_runs.trial_folder(run, candidate.id)
        folder.mkdir(parents=True, exist_ok=True)
        write_outcome(folder, candidate, verdict)
        return AssessResult.Bad

    def _run_folder(self) -> Path:
        if self._run is None:
            experiment = nni_runs.dispatcher_experiment()
            if experiment is None:
                raise RunError("assessor: wanted an experiment of nnictl, found none")
            self._run = nni_runs.run_folder(experiment)
        return self._run


def _watch_of(journal: Path) -> Watch:
    judge = Judge.of(read(journal).header)
    if judge is None:
        raise ConfigError(
            "assessor: wanted pruning or early_stopping in tuner.classArgs, got neither"
        )
    return watch(judge, journal)


def _last_start(history: Sequence[Any]) -> Sequence[Line]:
    """The lines since training began last, for NNI keeps those of a trial that it started again;
    none of a program that reports otherwise.
    """
    lines = [line for line in history if isinstance(line, Mapping)]
    starts = [k for k, line in enumerate(lines) if line.get("epoch") == 0 and "sample" in line]
    return lines[starts[-1] :] if starts else []


def _find(sample: Sample, journal: Path) -> Candidate | None:
    """The running candidate; by ==, because NNI's manager makes 16 of 16.0."""
    pending = read(journal).pending()
    return next((c for c in pending if dict(c.sample) == dict(sample)), None)
