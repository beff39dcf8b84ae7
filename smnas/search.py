"""Puts a search together: experiment file -> space, optimiser, journal, runner -> study.

The composition root: what `smnas search` calls. Needs torch only to build the search space once.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasteners import InterProcessLock

from smnas import machine
from smnas.encoding import Encoding
from smnas.errors import ConfigError, RunError
from smnas.experiment import Experiment, SearchSettings
from smnas.journal import FILE_NAME, History, Journal, read
from smnas.optimizer import Optimizer
from smnas.runner import EmbeddedRunner, Worker, local_workers, trial_environment, visible_gpus
from smnas.spaces import make_importable
from smnas.study import Limits, Progress, Study

DATA_VARIABLE = "SMNAS_DATA"


@dataclass(frozen=True)
class Overrides:
    """What the command line may say otherwise than the experiment file; None leaves the file's
    value.
    """

    trials: int | None = None
    hours: float | None = None
    workers: int | None = None


def make_optimizer(settings: SearchSettings, encoding: Encoding | None = None) -> Optimizer:
    """The optimiser that an experiment's settings describe.

    Args:
        settings: of the experiment.
        encoding: of the search space; None to build the one that the settings name.

    Raises:
        SpaceError: the space cannot be built.
        ConfigError: a setting does not fit the space or the algorithm.
    """
    if encoding is None:
        # torch comes with it, and a search without detectors does without
        from smnas.detectors.space import load_space

        space = settings.named_space("tuner.classArgs")
        encoding = Encoding.of(load_space(space, settings.space_args))
    return Optimizer(
        encoding,
        settings.objective_vector(),
        algorithm=settings.algorithm,
        algorithm_args=settings.algorithm_args,
        population=settings.population,
        seed=settings.seed,
        baselines=settings.baselines,
        generational=settings.generational,
        stage=settings.stage,
    )


def search(
    experiment: Experiment,
    run: Path,
    overrides: Overrides,
    observe: Callable[[Progress], None],
    started: Callable[[History, Limits], None] = lambda history, limits: None,
) -> str:
    """Runs or resumes a search until a limit; returns why it stopped (see `Study.run`).

    Args:
        experiment: what to search.
        run: folder of the run.
        overrides: of the file's limits.
        observe: called after each event.
        started: called once, with what the journal held and the limits, before the first trial.

    Raises:
        UserError: bad settings, data, run folder or journal; nothing has been lost.
        KeyboardInterrupt: the running trials were killed and stay pending in the journal.
    """
    make_importable(experiment.directory)
    optimizer = make_optimizer(experiment.search)
    limits = Limits(
        overrides.trials or experiment.max_trials, overrides.hours or experiment.max_hours
    )
    workers = _workers(experiment, overrides.workers)
    with only_search(run), _resolved_data():
        if not _is_complete(run / FILE_NAME, limits):
            check_trial_command(experiment, run, workers[0])
        journal = Journal.open(run / FILE_NAME, header(experiment, optimizer, len(workers)))
        started(journal.history, limits)
        runner = EmbeddedRunner(
            experiment.trial_command,
            experiment.directory,
            run / "trials",
            workers,
            seed=experiment.search.seed,
            time_limit=experiment.trial_seconds,
        )
        try:
            return Study(optimizer, runner, journal, limits, observe).run()
        finally:
            runner.cancel()
            journal.close()


def header(experiment: Experiment, optimizer: Optimizer, workers: int) -> dict[str, Any]:
    """The journal's first line: what identifies the experiment, and what it ran with."""
    settings = experiment.search
    identifying = settings.to_json() | {
        "reference_point": dict(settings.objective_vector().reference),
        "trial_command": experiment.trial_command,
        "data": os.environ.get(DATA_VARIABLE),
    }
    return {
        "name": experiment.name,
        "experiment": identifying,
        "space": optimizer.encoding.describe(),
        "workers": workers,
        "device": machine.cpu_name() if settings.space is None else _detector_device(),
        "machine": machine.describe(),
    }


def _detector_device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else machine.cpu_name()


def check_trial_command(experiment: Experiment, run: Path, worker: Worker) -> None:
    """Starts the trial program once for a look at its arguments and the data only.

    A search whose trials cannot start would turn every candidate into a failure; this says so at
    once.

    Raises:
        ConfigError: the trial program refuses; the message is its own last line.
    """
    if "smnas trial" not in experiment.trial_command:
        return
    environment = {
        **trial_environment(worker, experiment.search.seed),
        "SMNAS_CHECK_ONLY": "1",
    }
    done = subprocess.run(
        experiment.trial_command,
        shell=True,
        cwd=experiment.directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        (run / "check.log").write_text(done.stdout + done.stderr)
        raise ConfigError(f"{experiment.path}: trialCommand: {lines[-1].removeprefix('smnas: ')}")


def _is_complete(path: Path, limits: Limits) -> bool:
    """Whether a journal is there that leaves nothing to run."""
    if limits.trials is None or not path.exists():
        return False
    history = read(path)
    return len(history.trials()) >= limits.trials and not history.pending()


def _workers(experiment: Experiment, number: int | None) -> list[Worker]:
    gpus = visible_gpus() if experiment.gpus_per_trial else None
    if experiment.gpus_per_trial and not gpus:
        raise ConfigError(f"{experiment.path}: trialGpuNumber: wanted a CUDA device, found none")
    return local_workers(number or experiment.workers, gpus)


@contextmanager
def only_search(run: Path) -> Iterator[None]:
    """Holds the run folder against a second search in it."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = InterProcessLock(run / ".lock")
        acquired = lock.acquire(blocking=False)
    except OSError as error:
        raise RunError(f"run folder {run}: cannot be written: {error.strerror}") from error
    if not acquired:
        raise RunError(f"run folder {run}: another search is running in it")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _resolved_data() -> Iterator[None]:
    """Makes `SMNAS_DATA` absolute: trials run in the experiment's folder, not where the user
    stands.
    """
    given = os.environ.get(DATA_VARIABLE)
    if given:
        os.environ[DATA_VARIABLE] = str(Path(given).resolve())
    try:
        yield
    finally:
        if given:
            os.environ[DATA_VARIABLE] = given
