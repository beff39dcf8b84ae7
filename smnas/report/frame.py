"""A run as a pandas frame, and as CSV or Parquet. The only module that imports pandas. Reads
journals only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from smnas import pareto
from smnas.errors import MissingLibraryError, RunError
from smnas.journal import History, Trial
from smnas.nni_runs import find_folder
from smnas.records import Failed, Measured, Stopped
from smnas.report.devices import open_run
from smnas.report.tables import baseline_names, objectives_of, origin_of
from smnas.timings import read_timings

SUFFIXES = (".csv", ".parquet")


def load_frame(
    run: Path | str, device: str | None = None, mixed_devices: bool = False
) -> pd.DataFrame:
    """Every candidate of a run as a row, by id.

    Columns: `id`, `stage`, `origin`, `group`, `generation`, `parents` (ids with spaces between),
    `baseline` (its name), `state` (`measured`, `failed`, `stopped`, `running`), `reason` of a
    failure or a stop, `front` (whether nobody beats it), `asked` and `told` (seconds since the
    epoch), each metric, each choice, and `latency_ms@NAME` for each device that detectors were
    measured again on. What a candidate has not is missing; a failure may have metrics.

    Args:
        run: folder, journal or id of an NNI experiment.
        device: take the latencies that were measured on this one, see `smnas.report.devices`.
        mixed_devices: compare latencies of different devices all the same.

    Raises:
        MixedDevicesError: the trials ran on several devices, and none was chosen.
        RunError: there is no journal.
        JournalError: the journal is corrupt.
    """
    frame = to_frame(open_run(run, device, mixed_devices))
    for name, timings in read_timings(find_folder(run)).items():
        again = {key: timing.metrics["latency_ms"] for key, timing in timings.items()}
        frame[f"latency_ms@{name}"] = frame["id"].map(again).astype(float)
    return frame


def to_frame(history: History) -> pd.DataFrame:
    """See `load_frame`."""
    trials = history.trials()
    best = {trial.candidate.id for trial in pareto.front(trials, objectives_of(history))}
    names = baseline_names(history)
    rows = [_facts(trial, best, names) for trial in trials]
    metrics = pd.DataFrame([dict(t.outcome.metrics) if t.outcome else {} for t in trials])
    # whole numbers stay whole where some candidates have not that choice
    samples = pd.DataFrame([dict(trial.candidate.sample) for trial in trials]).convert_dtypes()
    # options of several types in one choice are text: a column of a table has one type
    mixed = samples.select_dtypes("object").columns
    samples[mixed] = samples[mixed].astype("string")
    facts = pd.DataFrame(rows).astype({"group": "Int64", "baseline": "string", "reason": "string"})
    return pd.concat([facts, metrics, samples], axis=1)


def save_frame(frame: pd.DataFrame, path: Path) -> None:
    """Writes a frame as `.csv` or `.parquet`, by the name of the file.

    Raises:
        RunError: another suffix, or the file cannot be written.
        MissingLibraryError: Parquet wants pyarrow.
    """
    if path.suffix not in SUFFIXES:
        raise RunError(f"table: wanted a file {' or '.join(SUFFIXES)}, got {path}")
    try:
        if path.suffix == ".csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path, index=False, engine="pyarrow")
    except ImportError as error:
        raise MissingLibraryError(
            f"table {path}: Parquet wants pyarrow: pip install 'smnas[frame]'; or take a .csv file"
        ) from error
    except OSError as error:
        raise RunError(f"table {path}: cannot be written: {error}") from error


def _facts(trial: Trial, best: set[int], names: dict[str, str]) -> dict[str, Any]:
    candidate, outcome = trial.candidate, trial.outcome
    states = {Measured: "measured", Failed: "failed", Stopped: "stopped"}
    state = states.get(type(outcome), "running")
    return {
        **origin_of(candidate, names),
        "parents": " ".join(map(str, candidate.parents)),
        "state": state,
        "reason": outcome.reason if isinstance(outcome, Failed | Stopped) else None,
        "front": candidate.id in best,
        "asked": trial.asked,
        "told": trial.told,
    }
