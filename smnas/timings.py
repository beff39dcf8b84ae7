"""Latencies of a run that were measured again, on this or another device: `RUN/latency/`.

One JSON Lines file a device beside the journal, which never changes; the last line of a candidate
counts. Latencies under other conditions than the run's own, in larger batches say, count as another
device's: they compare with nothing else. Written by `smnas latency`, read by the reports. Imports
no torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smnas.errors import JournalError, RunError

FOLDER = "latency"


@dataclass(frozen=True)
class Timing:
    """A candidate's latency on one device.

    Args:
        id: of the candidate.
        device: name of the processor or GPU; see `device_key`.
        time: of the measurement, seconds since the epoch.
        metrics: `latency_ms`, `latency_iqr_ms`, `latency_count`.
        latency: the whole card, see `smnas.objectives.latency.Latency`.
    """

    id: int
    device: str
    time: float
    metrics: Mapping[str, float]
    latency: Mapping[str, Any]


def device_key(device: str, conditions: str = "") -> str:
    """What latencies are kept under: the device, and in brackets how they differ from the run's.

    Args:
        device: name of the processor or GPU.
        conditions: in words; empty where they are the run's own.
    """
    return f"{device} [{conditions}]" if conditions else device


def append_timings(run: Path, timings: Iterable[Timing]) -> list[Path]:
    """Adds timings to the record; returns the files that were written.

    Raises:
        RunError: the run folder cannot be written.
    """
    lines: dict[Path, list[str]] = {}
    for timing in timings:
        lines.setdefault(_path(run, timing.device), []).append(json.dumps(asdict(timing)) + "\n")
    try:
        for path, texts in lines.items():
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.writelines(texts)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"run folder {run}: cannot be written: {error.strerror}") from error
    return list(lines)


def read_timings(run: Path) -> dict[str, dict[int, Timing]]:
    """`{device: {id: its last timing}}`; empty if nothing was measured again.

    Raises:
        JournalError: a line is not a timing; with file and line.
    """
    found: dict[str, dict[int, Timing]] = {}
    for path in sorted((run / FOLDER).glob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            try:
                timing = Timing(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise JournalError(f"{path}:{number}: wanted a timing: {error}") from error
            found.setdefault(timing.device, {})[timing.id] = timing
    return found


def _path(run: Path, device: str) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return run / FOLDER / f"{slug}.jsonl"
