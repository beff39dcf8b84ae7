"""Where NNI keeps what: the run folder of an experiment, its settings, the states of its trials.

The run folder of an experiment under `nnictl` is `smnas` inside NNI's own experiment folder, so
that `nnictl experiment delete` removes both. The tuner writes its journal there; `smnas front ID`
and `load_result` find it by NNI's list of experiments. Light: imports no torch, pymoo or NNI.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import threading
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from smnas.errors import RunError
from smnas.journal import Trial
from smnas.records import Measured

_TIMEOUT_SECONDS = 20


def find_run(run: Path | str) -> Path:
    """The folder (or journal file) of a run that is given by its path or by an NNI experiment id.

    Raises:
        RunError: NNI's list of experiments cannot be read.
    """
    path = Path(run)
    # an id is a plain word; what is there under this name comes first
    if path.exists() or not re.fullmatch(r"\w+", str(run)):
        return path
    place = _listed().get(str(run), {}).get("logDir")
    return path if place is None else run_folder(Path(place) / str(run))


def find_folder(run: Path | str) -> Path:
    """The folder of a run, which may be given by its journal as well, see `find_run`."""
    path = find_run(run)
    return path if path.is_dir() else path.parent


def split_reference(text: str) -> tuple[Path, int] | None:
    """The folder of the run and the candidate's id that `RUN#ID` names; None for any other text.

    Raises:
        RunError: NNI's list of experiments cannot be read.
    """
    name, mark, number = text.rpartition("#")
    return (find_run(name), int(number)) if mark and number.isdecimal() else None


def run_folder(experiment: Path) -> Path:
    """The run folder in NNI's folder of an experiment."""
    return experiment / "smnas"


def trial_file(run: Path, trial: Trial, name: str) -> Path:
    """Where a trial has left a file, if it has: in the run, in a stage of it, or with NNI.

    Args:
        run: its folder.
        trial: of the run.
        name: of the file; it may be missing.
    """
    own = trial_folder(Path(), trial.candidate.id) / name
    places = [run / own, *sorted(run.glob(f"*/{own}"))]
    info = trial.outcome.info if isinstance(trial.outcome, Measured) else {}
    if "nni_trial" in info:
        places.append(run.parent / "trials" / str(info["nni_trial"]) / name)
    return next((path for path in places if path.is_file()), places[0])


def trial_folder(run: Path, candidate_id: int) -> Path:
    """Where the assessor leaves its verdict on a trial, and the tuner finds it."""
    return run / "trials" / str(candidate_id)


def dispatcher_experiment() -> Path | None:
    """NNI's folder of the experiment whose dispatcher this process is; None in any other
    process.
    """
    log = os.environ.get("NNI_LOG_DIRECTORY")
    return None if log is None else Path(log).parent


def settings_of(experiment: Path) -> dict[str, Any]:
    """The experiment file as NNI keeps it, in NNI's own spelling (`trialCommand`, ...).

    Raises:
        RunError: NNI's database has no settings.
    """
    query = "select params from ExperimentProfile order by revision desc limit 1"
    path = experiment / "db" / "nni.sqlite"
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return dict(json.loads(database.execute(query).fetchone()[0]))
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise RunError(f"{path}: cannot read the experiment's settings: {error}") from error


def trial_states() -> list[tuple[dict[str, Any], str]]:
    """Parameters and state of each trial that NNI's manager knows, in the order of their start.

    For the dispatcher of a resumed experiment; states are NNI's own words (`FAILED`, `RUNNING`...).

    Raises:
        RunError: the manager does not answer.
    """
    channel = os.environ["NNI_TUNER_COMMAND_CHANNEL"]
    url = channel.replace("ws://", "http://").removesuffix("/tuner") + "/api/v1/nni/trial-jobs"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            jobs = json.load(answer)
    except (OSError, ValueError) as error:
        raise RunError(f"{url}: NNI's manager does not list its trials: {error}") from error
    return [
        (json.loads(parameters)["parameters"], job["status"])
        for job in jobs
        for parameters in job.get("hyperParameters", [])
    ]


def end_with_manager() -> None:
    """Ends this process when NNI's manager ends, however that happens.

    A killed manager leaves its dispatcher and its trials behind: a dispatcher that still holds the
    journal, and trials that a resumed experiment starts a second time. Does nothing outside NNI.
    """
    managers = [parent for parent in psutil.Process().parents() if parent.name() == "node"]
    if not managers:
        return

    def watch() -> None:
        while _is_alive(managers[0]):
            time.sleep(1)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _listed() -> dict[str, Any]:
    path = Path.home() / "nni-experiments" / ".experiment"
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: NNI's list of experiments cannot be read: {error}") from error
