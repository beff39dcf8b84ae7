"""Puts a search together: experiment files -> spaces, optimisers, journals, runner -> studies.

The composition root: what `smnas search` calls. Needs torch only to build the search spaces.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from fasteners import InterProcessLock

from smnas.assembly import Stage, first_stage, header, next_stage
from smnas.errors import ConfigError, RunError
from smnas.experiment import DATA_VARIABLE, Experiment
from smnas.journal import FILE_NAME, History, Journal, Trial, read
from smnas.runner import EmbeddedRunner, Worker, local_workers, trial_environment, visible_gpus
from smnas.spaces import make_importable, with_library
from smnas.stopping import Judge, watch
from smnas.study import Limits, Progress, Study


@dataclass(frozen=True)
class Overrides:
    """What the command line may say otherwise than the experiment files; None leaves a file's
    value.

    Args:
        trials: one number for each stage, or one for all.
        hours: of the whole call.
        workers: trials at a time.
        library: that detectors are built with.
    """

    trials: tuple[int, ...] | None = None
    hours: float | None = None
    workers: int | None = None
    library: str | None = None


class Observer(Protocol):
    """Who watches a search, see `smnas.display.SearchDisplay`."""

    def started(self, stage: str, history: History, limits: Limits) -> None: ...

    def __call__(self, progress: Progress) -> None: ...


def search(
    experiments: Sequence[Experiment], run: Path, overrides: Overrides, observer: Observer
) -> str:
    """Runs or resumes a search, stage by stage; returns why it stopped (see `Study.run`).

    Args:
        experiments: one for each stage; every one but the first starts from the front before it.
        run: folder of the run; later stages have a folder of their name in it.
        overrides: of the files' limits.
        observer: told when a stage starts and after each event.

    Raises:
        UserError: bad settings, data, run folder or journal; nothing has been lost.
        KeyboardInterrupt: the running trials were killed and stay pending in the journal.
    """
    check_stages(experiments, overrides)
    began, reason = time.monotonic(), ""
    with only_search(run), _resolved_data():
        experiments = _with_libraries(experiments, overrides.library)
        plans = _plans(experiments, run, overrides)
        for number, plan in enumerate(plans):
            _check(plan, first=number == 0)
        for number, plan in enumerate(plans):
            experiment, limits = plan.experiment, plan.limits
            earlier = [trial for done in plans[:number] for trial in read(done.folder).trials()]
            stage = next_stage(experiment, earlier) if number else first_stage(experiment)
            if overrides.hours is not None:
                left = overrides.hours - (time.monotonic() - began) / 3600
                limits = replace(limits, hours=max(0.0, left))
            reason = _run_stage(plan, limits, stage, earlier, observer)
            if reason == "hours" and overrides.hours is not None:
                break
    return reason


def check_stages(experiments: Sequence[Experiment], overrides: Overrides) -> None:
    """Looks whether experiments can be stages of one run.

    Raises:
        ConfigError: two have one stage name, or other objectives than the first; a later one fixes
            a structure; the number of limits is neither one nor that of the stages.
    """
    start = experiments[0]
    names = [experiment.search.stage for experiment in experiments]
    for experiment in experiments[1:]:
        where = f"{experiment.path}: tuner.classArgs"
        if names.count(experiment.search.stage) > 1:
            raise ConfigError(f"{where}: stage: wanted another than the stage before, got {names}")
        if experiment.search.objective_vector() != start.search.objective_vector():
            raise ConfigError(
                f"{where}: objectives, reference_point: wanted those of {start.path}:"
                " the stages share one front"
            )
        if "structure" in experiment.search.space_args:
            raise ConfigError(
                f"{where}: space_args: structure: wanted none in a later stage:"
                " it comes from the stage before"
            )
        if experiment.search.groups < 1:
            wanted = "a whole number of at least 1"
            raise ConfigError(f"{where}: groups: wanted {wanted}, got {experiment.search.groups}")
    if overrides.trials and len(overrides.trials) not in (1, len(experiments)):
        raise ConfigError(
            f"--trials: wanted once, or once for each of {len(experiments)} stages,"
            f" got {len(overrides.trials)} times"
        )


def _with_libraries(experiments: Sequence[Experiment], library: str | None) -> list[Experiment]:
    """Experiments that name their detector library; all stages of a run have one."""
    named = []
    for experiment in experiments:
        make_importable(experiment.directory)
        where = f"{experiment.path}: tuner.classArgs"
        settings = with_library(experiment.search, where, library)
        named.append(replace(experiment, search=settings))
        if settings.library != named[0].search.library:
            raise ConfigError(
                f"{where}: library: wanted {named[0].search.library}, that of {named[0].path}:"
                f" the stages share one front, got {settings.library}"
            )
    return named


@dataclass(frozen=True)
class _Plan:
    """Where and how long a stage runs."""

    experiment: Experiment
    folder: Path
    limits: Limits
    workers: list[Worker]


def _plans(experiments: Sequence[Experiment], run: Path, overrides: Overrides) -> list[_Plan]:
    trials = list(overrides.trials or ())
    trials = trials * len(experiments) if len(trials) == 1 else trials
    plans = []
    for number, experiment in enumerate(experiments):
        own = trials[number] if trials else None
        limits = Limits(own or experiment.max_trials, experiment.max_hours)
        folder = run / experiment.search.stage if number else run
        workers = _workers(experiment, overrides.workers)
        plans.append(_Plan(experiment, folder, limits, workers))
    if any(run.glob(f"*/{FILE_NAME}")):
        asked = len(read(run).trials())
        if trials and trials[0] > asked:
            raise RunError(
                f"run folder {run}: a later stage started from a front of {asked} trials:"
                f" wanted at most as many, got --trials {trials[0]}; name another with --run"
            )
        plans[0] = replace(plans[0], limits=replace(plans[0].limits, trials=asked))
    return plans


def _check(plan: _Plan, first: bool) -> None:
    """Says at the start, not when its turn comes, that a stage cannot run."""
    experiment, settings = plan.experiment, plan.experiment.search
    make_importable(experiment.directory)
    if not first:
        from smnas.detectors.space import load_space

        space = load_space(settings.named_space(str(experiment.path)), settings.space_arguments)
        if not hasattr(space, "from_structural"):
            raise ConfigError(
                f"{experiment.path}: tuner.classArgs: space: wanted a space with a method"
                f" from_structural in a later stage, got {settings.space}"
            )
    if not _is_complete(plan.folder / FILE_NAME, plan.limits):
        check_trial_command(experiment, plan.folder, plan.workers[0])


def _run_stage(
    plan: _Plan, limits: Limits, stage: Stage, earlier: Sequence[Trial], observer: Observer
) -> str:
    experiment = plan.experiment
    first_line = header(experiment, stage.encoding, len(plan.workers), stage.lineage)
    judge = Judge.of(first_line)
    journal = Journal.open(plan.folder / FILE_NAME, first_line)
    observer.started(experiment.search.stage, journal.history, limits)
    runner = EmbeddedRunner(
        experiment.trial_command,
        experiment.directory,
        plan.folder / "trials",
        plan.workers,
        seed=experiment.search.seed,
        time_limit=experiment.trial_seconds,
        library=experiment.search.library,
        watch=None if judge is None else watch(judge, journal.path, earlier),
    )
    try:
        return Study(stage.optimizer, runner, journal, limits, observer).run()
    finally:
        runner.cancel()
        journal.close()


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
        **trial_environment(worker, experiment.search.seed, experiment.search.library),
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
        run.mkdir(exist_ok=True)
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
