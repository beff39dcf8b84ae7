"""Opens a run for a report: latencies of one device only, because those of two do not compare.

A search goes on whatever its trials ran on; it is reports that refuse. Reads journals and their
`latency/` records only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from smnas.errors import MixedDevicesError, RunError
from smnas.journal import Asked, Event, History, Told, Trial, read_run
from smnas.nni_runs import find_folder, find_run
from smnas.records import Measured, Stopped
from smnas.timings import Timing, read_timings

TIMES = ("latency_ms", "train_seconds")
"""Metrics that belong to a device."""

UNKNOWN = "a device that was not recorded"


def open_run(run: Path | str, device: str | None = None, mixed_devices: bool = False) -> History:
    """A run's history whose latencies may be compared.

    What was measured again on the device that all trials ran on, in turns, takes the place of what
    each trial has measured by itself.

    Args:
        run: its folder, the journal in it, or the id of an NNI experiment.
        device: take the latencies of this one: those that `smnas latency` measured again on it, or
            the trials' own where they ran on it; candidates with neither count as stopped, with
            reason `untimed`. A part of the name will do. Latencies under other conditions than the
            run's count as another device's, which only a `device` with a bracket means:
            `GPU A [batch 8]`, or `[batch 8]`.
        mixed_devices: compare latencies of different devices all the same.

    Raises:
        MixedDevicesError: an objective depends on the device, and the trials ran on several.
        RunError: there is no journal, or no latency on that device.
        JournalError: the journal or a record of latencies is corrupt.
    """
    path = find_run(run)
    history = read_run(path)
    timings = read_timings(find_folder(path))
    if device is not None:
        return on_device(history, timings, device)
    if not mixed_devices:
        check_one_device(history, path)
    own = list(measured_devices(history))
    again = len(own) == 1 and own[0] in timings
    return on_device(history, timings, own[0]) if again else history


def device_of(trial: Trial) -> str:
    """Where a measured trial ran."""
    info = trial.outcome.info if isinstance(trial.outcome, Measured) else {}
    return str(info.get("device") or UNKNOWN)


def measured_devices(history: History) -> Counter[str]:
    """How many candidates were measured on which device, the most frequent first."""
    trials = [t for t in history.trials() if isinstance(t.outcome, Measured)]
    return Counter(dict(Counter(map(device_of, trials)).most_common()))


def check_one_device(history: History, run: Path) -> None:
    """Refuses to compare times of different devices.

    Raises:
        MixedDevicesError: names the devices, how often each was used, and the remedies.
    """
    timed = [name for name in TIMES if name in history.header["experiment"]["objectives"]]
    counts = measured_devices(history)
    if timed and len(counts) > 1:
        found = ", ".join(f"{name} ({count})" for name, count in counts.items())
        raise MixedDevicesError(
            f"run {run}: wanted {timed[0]} of one device, got trials on {found}; measure again on "
            f"one with: smnas latency {run} --all; or compare all the same with --mixed-devices"
        )


def on_device(history: History, timings: dict[str, dict[int, Timing]], device: str) -> History:
    """The history with the latencies of one device; see `open_run`.

    Raises:
        RunError: no candidate has a latency on it, or the name fits several devices.
    """
    name = _find(device, {*timings, *measured_devices(history)} - {UNKNOWN})
    events = tuple(_told_on(event, name, timings.get(name, {})) for event in history.events)
    return replace(history, events=events)


def _told_on(event: Event, device: str, timings: dict[int, Timing]) -> Event:
    """The event with the latency on the device; a measurement that has none there is stopped."""
    if isinstance(event, Asked) or not isinstance(event.outcome, Measured):
        return event
    outcome, timing = event.outcome, timings.get(event.id)
    if timing is None and outcome.info.get("device") == device:
        return event
    if timing is None:
        rest = {k: v for k, v in outcome.metrics.items() if not k.startswith("latency_")}
        detail = f"wanted its latency on {device}, got it on {outcome.info.get('device')} only"
        return Told(event.id, Stopped("untimed", detail, rest, {}, outcome.info), event.time)
    info = {**outcome.info, "device": device, "latency": timing.latency}
    return Told(event.id, Measured({**outcome.metrics, **timing.metrics}, info), event.time)


def _find(device: str, known: set[str]) -> str:
    # a part of the plain name must go on meaning the plain name, whatever else was timed later
    meant = {name for name in known if "[" in device or "[" not in name}
    fitting = [name for name in sorted(meant) if device.lower() in name.lower()]
    exact = [name for name in fitting if name.lower() == device.lower()]
    if len(exact or fitting) != 1:
        raise RunError(
            f"--device: wanted one with measured latencies ({', '.join(sorted(known)) or 'none'}),"
            f" got {device!r}"
        )
    return (exact or fitting)[0]
