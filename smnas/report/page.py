"""The report: one HTML file that needs nothing else, assembled from journals and trial folders.

Python packs what the page shows into one JSON object; `assets/` holds the page's own HTML, CSS and
JavaScript, which draw it. Reads runs only, never a live search.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from smnas import __version__, pareto
from smnas.errors import RunError
from smnas.journal import History, Trial
from smnas.nni_runs import find_folder
from smnas.records import Measured
from smnas.report import overview
from smnas.report.devices import measured_devices, open_run
from smnas.report.pictures import Album, read_examples
from smnas.report.structure import backbone_string, blocks_of
from smnas.report.tables import (
    baseline_names,
    choices_of,
    gpu_note,
    objectives_of,
    training_note,
)

_DIGITS = 6
"""Significant ones of numbers on the page; CSV and frames have all."""

_LONG = 20
"""Options of a choice beyond which only the ends are named."""

_CURVE = ("epoch", "loss", "map")


def write_page(
    runs: Sequence[Path], out: Path, device: str | None = None, mixed_devices: bool = False
) -> None:
    """Writes the report of one run, or of several side by side.

    Args:
        runs: folders, journals or ids of NNI experiments; at least one.
        out: the HTML file.
        device: take the latencies that were measured on this one, see `smnas.report.devices`.
        mixed_devices: compare latencies of different devices all the same.

    Raises:
        MixedDevicesError: latencies would be compared that do not compare.
        RunError: a run has no journal, the runs' objectives differ, or `out` cannot be written.
        JournalError: a journal is corrupt.
    """
    text = make_page(runs, device, mixed_devices)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"report {out}: cannot be written: {error.strerror}") from error


def make_page(runs: Sequence[Path], device: str | None = None, mixed_devices: bool = False) -> str:
    """The report's HTML; see `write_page`."""
    histories = [open_run(run, device, mixed_devices) for run in runs]
    if not mixed_devices:
        overview.check_comparable(histories)
    folders = [find_folder(run) for run in runs]
    content = _content(histories, folders)
    title = "smnas: " + ", ".join(run["name"] for run in content["runs"])
    parts = {
        "title": html.escape(title),
        "style": _asset("report.css"),
        "script": "\n".join(_asset(name) for name in _scripts()),
        "data": embeddable(content),
    }
    # one pass, so that braces in the data are never taken for a place to fill
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("report.html"))


def embeddable(content: Mapping[str, Any]) -> str:
    """JSON that may stand in a script element whatever names it holds: no `<`, `>`, `&`."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return (files("smnas.report") / "assets" / name).read_text(encoding="utf-8")


def _scripts() -> list[str]:
    """The page's scripts in the order of their numbers."""
    names = (entry.name for entry in (files("smnas.report") / "assets").iterdir())
    return sorted(name for name in names if name.endswith(".js"))


def _content(histories: Sequence[History], folders: Sequence[Path]) -> dict[str, Any]:
    album = Album()
    notes = dict.fromkeys(filter(None, map(training_note, histories)))
    devices = {name for history in histories for name in measured_devices(history)}
    objectives = objectives_of(histories[0])
    return {
        "version": __version__,
        "objectives": [
            {"name": name, "direction": direction}
            for name, direction in objectives.directions.items()
        ],
        "device": ", ".join(sorted(devices)),
        "notes": list(notes),
        "comparison": asdict(overview.compare(histories)) if len(histories) > 1 else None,
        "runs": [
            _Packer(history, folder, album).run()
            for history, folder in zip(_named(histories, folders), folders, strict=True)
        ],
        "pictures": album.pictures,
    }


def _named(histories: Sequence[History], folders: Sequence[Path]) -> list[History]:
    """Runs of one experiment are told apart by their folders, these by their numbers."""
    names = [history.header["name"] for history in histories]
    if len(set(names)) < len(names):
        names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{name} {number}" for number, name in enumerate(names, start=1)]
    return [
        History({**history.header, "name": name}, history.events, history.later)
        for history, name in zip(histories, names, strict=True)
    ]


class _Numbered:
    """Values that many trials share, each kept once and named by its number."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def number(self, value: Any) -> int:
        if value not in self.values:
            self.values.append(value)
        return self.values.index(value)


class _Packer:
    """One run as the page's JSON: rows without names, so that thousands of trials stay small."""

    def __init__(self, history: History, folder: Path, album: Album) -> None:
        self._history, self._folder, self._album = history, folder, album
        self._trials = [t for t in history.trials() if isinstance(t.outcome, Measured)]
        self._metrics = _union([outcome.metrics for outcome in map(_measured, self._trials)])
        self._choices = _union([trial.candidate.sample for trial in self._trials])
        self._cards, self._recipes = _Numbered(), _Numbered()
        self._baselines = baseline_names(history)
        objectives = objectives_of(history)
        front = pareto.front(self._trials, objectives)
        place = pareto.knee(pareto.measured(front, objectives)[1])
        self._front = {trial.candidate.id for trial in front}
        self._knee = None if place is None else front[place].candidate.id

    def run(self) -> dict[str, Any]:
        trials = [self._trial(trial) for trial in self._trials]
        grown = overview.growth(self._history)
        return {
            "name": self._history.header["name"],
            "metrics": self._metrics,
            "choices": self._choices,
            "trials": trials,
            "cards": self._cards.values,
            "recipes": self._recipes.values,
            "growth": {name: _rounded(values) for name, values in asdict(grown).items()},
            "budget": [asdict(stage) for stage in overview.budget(self._history)],
            "knowledge": [asdict(one) for one in overview.knowledge(self._history)],
            "failures": [asdict(one) for one in overview.failures(self._history)],
            "facts": _facts(self._history),
            "space": _choices(self._history),
        }

    def _trial(self, trial: Trial) -> dict[str, Any]:
        candidate, outcome = trial.candidate, _measured(trial)
        packed = {
            "id": candidate.id,
            "stage": candidate.stage,
            "origin": candidate.origin,
            "generation": candidate.generation,
            "group": candidate.group,
            "parents": list(candidate.parents) or None,
            "baseline": self._baselines.get(candidate.identity),
            "front": candidate.id in self._front or None,
            "knee": candidate.id == self._knee or None,
            "metrics": _rounded([outcome.metrics.get(name) for name in self._metrics]),
            "sample": [candidate.sample.get(label) for label in self._choices],
            "blocks": _blocks(trial),
            **self._shared(outcome.info),
        }
        examples = read_examples(self._folder, trial)
        packed["examples"] = None if examples is None else self._album.add(examples)
        return {name: value for name, value in packed.items() if value is not None}

    def _shared(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """What the trial's own notes say of its latency and training; None where they do not."""
        card, curve, recipe = info.get("latency"), info.get("curve"), info.get("recipe")
        own = ("median_ms", "iqr_ms", "count", "times_ms", "gpu")
        conditions = {k: v for k, v in card.items() if k not in own} if card else None
        return {
            "card": None if conditions is None else self._cards.number(conditions),
            "gpu": gpu_note([card.get("gpu")]) if card else None,
            "recipe": None if recipe is None else self._recipes.number(recipe),
            "curve": (
                {name: _rounded([epoch.get(name) for epoch in curve]) for name in _CURVE}
                if curve
                else None
            ),
        }


def _measured(trial: Trial) -> Measured:
    assert isinstance(trial.outcome, Measured)
    return trial.outcome


def _union(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _rounded(values: Sequence[Any]) -> list[Any]:
    def short(value: Any) -> Any:
        return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value

    return [short(value) for value in values]


def _blocks(trial: Trial) -> list[dict[str, Any]]:
    blocks = blocks_of(trial.candidate.sample)
    string = backbone_string(trial.candidate.sample)
    return [b | {"string": string} if b["part"] == "backbone" and string else b for b in blocks]


def _facts(history: History) -> list[tuple[str, str]]:
    """Where the run's numbers come from, in words."""
    header, experiment = history.header, history.header["experiment"]
    machine: Mapping[str, Any] = header.get("machine", {})
    reference = experiment["reference_point"].items()
    found = {
        "space": experiment.get("space"),
        "algorithm": experiment.get("algorithm"),
        "population": experiment.get("population"),
        "seed": experiment.get("seed"),
        "reference point": ", ".join(f"{name} {value:g}" for name, value in reference),
        "trial": experiment.get("trial_command"),
        "workers": header.get("workers"),
        "devices": ", ".join(f"{k} ({n})" for k, n in measured_devices(history).items()),
        "processor": machine.get("cpu"),
        "cores": machine.get("cores"),
        "system": machine.get("system"),
        "versions": ", ".join(f"{k} {v}" for k, v in machine.get("versions", {}).items()),
        "commit": machine.get("commit"),
    }
    return [(name, str(value)) for name, value in found.items() if value not in (None, "")]


def _choices(history: History) -> list[tuple[str, str]]:
    """The options of every choice of all stages; long lists by their ends."""
    return [(label, _listing(options)) for label, options in choices_of(history).items()]


def _listing(options: Sequence[Any]) -> str:
    if len(options) > _LONG:
        return f"{options[0]} … {options[-1]} ({len(options)} options)"
    return ", ".join(map(str, options))
