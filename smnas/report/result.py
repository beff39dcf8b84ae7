"""A run as a pymoo `Result`, for pymoo's own plots, indicators and decision making. Reads journals
only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pymoo.core.result import Result

from smnas import pareto
from smnas.encoding import Encoding
from smnas.journal import Trial
from smnas.records import Option
from smnas.report.devices import open_run
from smnas.report.tables import choices_of, objectives_of

ABSENT = "(not in this stage)"
"""The option of a choice that another stage of the run has."""


def load_result(run: Path | str, device: str | None = None, mixed_devices: bool = False) -> Result:
    """Reads a run folder (or journal file, or the id of an NNI experiment) into a pymoo `Result`.

    `X` (`n x d` option indices) and `F` (`n x m`, minimised, so mAP is negative) are the Pareto
    set, `pop` all measured individuals with their `id`, `history` one algorithm snapshot for each
    population's worth of trials, as pymoo's convergence examples use it
    (`algorithm.evaluator.n_eval`, `.pop`, `.opt`).
    `result.data` holds the objectives' names and the choices. Where a run has several stages each
    choice has a last option `ABSENT`, for detectors of a stage that does not have that choice.

    Args:
        run: folder, journal or id.
        device: take the latencies that were measured on this one, see `smnas.report.devices`.
        mixed_devices: compare latencies of different devices all the same.

    Raises:
        MixedDevicesError: the trials ran on several devices, and none was chosen.
        RunError: there is no journal.
        JournalError: the journal is corrupt.
    """
    history = open_run(run, device, mixed_devices)
    objectives = objectives_of(history)
    choices = choices_of(history)
    trials = (
        [_completed(t, choices) for t in history.trials()] if history.later else history.trials()
    )
    if history.later:
        choices = {label: (*options, ABSENT) for label, options in choices.items()}
    finished = sorted((t for t in trials if t.told is not None), key=lambda t: t.told or 0)
    step = history.header["experiment"]["population"]
    ends = sorted({*range(step, len(finished), step), len(finished)})
    return pareto.result(
        [finished[:end] for end in ends], objectives, Encoding.from_choices(choices)
    )


def _completed(trial: Trial, choices: Mapping[str, Sequence[Option]]) -> Trial:
    sample = {label: trial.candidate.sample.get(label, ABSENT) for label in choices}
    return replace(trial, candidate=replace(trial.candidate, sample=sample))
