"""Pictures of a run: the front, hypervolume over trials, choices and what they do. The only module
that imports matplotlib.

Draws with figure objects of its own, so no global state of matplotlib is touched. Reads journals
only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smnas import pareto
from smnas.errors import RunError
from smnas.journal import History, Trial
from smnas.objectives.vector import Objectives
from smnas.records import Measured, Option
from smnas.report.tables import baseline_names, choices_of, objectives_of

# colour-blind safe (Okabe and Ito 2008), told apart by shape too
_FRONT, _DOMINATED, _BASELINE = "#0072B2", "#999999", "#D55E00"
COLOURS = colormaps["viridis"]
"""Readable without colour, too: it gets lighter throughout."""

_MOST_TICKS = 12
_LABELS = {"latency_ms": "latency (ms)", "map": "mAP (search split)"}


def save_plots(history: History, folder: Path) -> list[Path]:
    """Writes `front.png` (two objectives or more) and `hypervolume.png`; returns what was written.

    A run without any measured trial has no pictures.
    """
    return _save(_overview(history), folder, [".png"])


def save_figures(history: History, folder: Path) -> list[Path]:
    """Writes all figures as PNG and SVG, for papers; returns what was written.

    Those of `save_plots`, `parallel` (each detector as a line through its choices) and `effects`
    (each choice against each objective). A run without any measured trial has none.

    Raises:
        RunError: the folder cannot be written.
    """
    figures = _overview(history)
    if figures:
        figures |= {"parallel": parallel_figure(history), "effects": effects_figure(history)}
    return _save(figures, folder, [".png", ".svg"])


def _overview(history: History) -> dict[str, Figure]:
    objectives, trials = objectives_of(history), history.trials()
    kept, _ = pareto.measured(trials, objectives)
    if not kept:
        return {}
    figures = {"hypervolume": hypervolume_figure(trials, objectives)}
    if len(objectives.names) > 1:
        figures["front"] = front_figure(history)
    return figures


def _save(figures: Mapping[str, Figure], folder: Path, suffixes: Sequence[str]) -> list[Path]:
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for suffix in suffixes:
                paths.append(folder / f"{name}{suffix}")
                figure.savefig(paths[-1], dpi=150)
    except OSError as error:
        raise RunError(f"plots {folder}: cannot be written: {error.strerror}") from error
    return sorted(paths)


def front_figure(history: History) -> Figure:
    """The first two objectives: front, dominated points, baselines, latency's spread as bars."""
    objectives = objectives_of(history)
    kept, _ = pareto.measured(history.trials(), objectives)
    best = {t.candidate.id for t in pareto.front(kept, objectives)}
    named = baseline_names(history)
    figure, axes = _figure()
    groups = {
        "dominated": ([t for t in kept if t.candidate.id not in best], _DOMINATED, "o"),
        "Pareto front": ([t for t in kept if t.candidate.id in best], _FRONT, "o"),
    }
    for label, (trials, colour, marker) in groups.items():
        _points(axes, trials, objectives, label, colour, marker)
    baselines = [t for t in kept if t.candidate.identity in named]
    _baselines(axes, baselines, objectives, named)
    _staircase(axes, [t for t in kept if t.candidate.id in best], objectives)
    x, y = objectives.names[:2]
    axes.set(xlabel=_LABELS.get(x, x), ylabel=_LABELS.get(y, y), title=history.header["name"])
    axes.legend(loc="best", fontsize=8)
    return figure


def hypervolume_figure(trials: list[Trial], objectives: Objectives) -> Figure:
    """Hypervolume after each finished trial, against the study's fixed reference point."""
    figure, axes = _figure()
    curve = pareto.hypervolume_curve(trials, objectives)
    axes.step(range(1, len(curve) + 1), curve, where="post", color=_FRONT)
    axes.set(xlabel="finished trials", ylabel="hypervolume", xlim=(0, None), ylim=(0, None))
    return figure


def parallel_figure(history: History) -> Figure:
    """Each measured detector as a line through its choices and objectives: the front in colour by
    the last objective, the others grey. Lines of one option lie beside each other.
    """
    objectives = objectives_of(history)
    kept, rows = pareto.measured(history.trials(), objectives)
    options = _options(history, kept)
    places = [_places(label, listed, kept) for label, listed in options.items()]
    values = np.array([[t.outcome.metrics[n] for n in objectives.names] for t in kept if t.outcome])
    low, high = values.min(axis=0), values.max(axis=0)
    scaled = (values - low) / np.where(high > low, high - low, 1.0)
    heights = np.column_stack([*places, scaled])
    figure, axes = _figure(width=max(7.0, 0.9 * heights.shape[1]))
    best = set(pareto.non_dominated(rows).tolist())
    for number in sorted(range(len(kept)), key=best.__contains__):
        style = (
            {"color": COLOURS(0.9 * scaled[number, -1]), "linewidth": 1.8, "zorder": 3}
            if number in best
            else {"color": _DOMINATED, "linewidth": 0.6, "alpha": 0.35}
        )
        axes.plot(heights[number], **style)
    for place, listed in enumerate(options.values()):
        _name_options(axes, place, listed)
    for place, (name, ends) in enumerate(
        zip(objectives.names, zip(low, high, strict=True), strict=True), start=len(options)
    ):
        _name_options(axes, place, [f"{end:.3g}" for end in ends])
    titles = [*options, *(_LABELS.get(name, name) for name in objectives.names)]
    axes.set_xticks(range(len(titles)), titles, rotation=30, ha="right")
    last = _LABELS.get(objectives.names[-1], objectives.names[-1])
    axes.set(yticks=[], title=f"{history.header['name']}: the front, lighter with higher {last}")
    return figure


def effects_figure(history: History) -> Figure:
    """Each choice against each objective: every measured detector, and the median of each option.

    As found by the search, not adjusted for the other choices, which differ, too.
    """
    objectives = objectives_of(history)
    kept, _ = pareto.measured(history.trials(), objectives)
    options = _options(history, kept)
    figure = Figure(
        figsize=(1 + 1.9 * len(options), 0.6 + 2.4 * len(objectives.names)), layout="constrained"
    )
    grid = figure.subplots(
        len(objectives.names), len(options), squeeze=False, sharex="col", sharey="row"
    )
    for row, name in zip(grid, objectives.names, strict=True):
        row[0].set_ylabel(_LABELS.get(name, name))
        for axes, (label, listed) in zip(row, options.items(), strict=True):
            _effect(axes, [t for t in kept if label in t.candidate.sample], name, label, listed)
    for axes, label in zip(grid[0], options, strict=True):
        axes.set_title(label, fontsize=9)
    return figure


def _effect(axes: Axes, trials: list[Trial], name: str, label: str, options: list[Option]) -> None:
    place = np.array([options.index(t.candidate.sample[label]) for t in trials])
    values = _values(trials, name)
    # side by side in the order of the trials, so that the same run gives the same picture
    shift = 0.5 * (np.arange(len(trials)) / max(1, len(trials) - 1) - 0.5)
    axes.plot(place + shift, values, "o", color=_DOMINATED, markersize=2.5, alpha=0.6)
    for option in range(len(options)):
        if (place == option).any():
            median = np.median(values[place == option])
            axes.plot([option - 0.35, option + 0.35], [median, median], color=_FRONT, linewidth=2)
    shown = range(len(options)) if len(options) <= _MOST_TICKS else (0, len(options) - 1)
    axes.set_xticks(shown, [str(options[k]) for k in shown], rotation=60, ha="right", fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _options(history: History, trials: list[Trial]) -> dict[str, list[Option]]:
    """The options that measured detectors have of each choice, in the order of the spaces; choices
    that are the same everywhere are left out.
    """
    found: dict[str, list[Option]] = {}
    for label, options in choices_of(history).items():
        used = {t.candidate.sample[label] for t in trials if label in t.candidate.sample}
        if len(used) > 1:
            found[label] = [option for option in options if option in used]
    return found


def _places(label: str, options: list[Option], trials: list[Trial]) -> np.ndarray:
    """Heights from 0 to 1 of the trials' options, `n`; NaN without that choice."""
    step = 1 / max(1, len(options) - 1)
    shift = min(0.25 * step, 0.06) * (np.arange(len(trials)) / max(1, len(trials) - 1) - 0.5)
    place = [
        options.index(t.candidate.sample[label]) if label in t.candidate.sample else np.nan
        for t in trials
    ]
    return np.array(place, dtype=float) * step + shift


def _name_options(axes: Axes, place: int, options: Sequence[Option]) -> None:
    shown = range(len(options)) if len(options) <= _MOST_TICKS else (0, len(options) - 1)
    for option in shown:
        height = option / max(1, len(options) - 1)
        axes.text(
            place,
            height,
            str(options[option]),
            fontsize=7,
            ha="center",
            va="center",
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )


def _figure(width: float = 7.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _values(trials: list[Trial], name: str) -> np.ndarray:
    return np.array([t.outcome.metrics[name] for t in trials if isinstance(t.outcome, Measured)])


def _points(
    axes: Axes, trials: list[Trial], objectives: Objectives, label: str, colour: str, marker: str
) -> None:
    if not trials:
        return
    x, y = objectives.names[:2]
    spread = None
    if x == "latency_ms" and all(
        isinstance(t.outcome, Measured) and "latency_iqr_ms" in t.outcome.metrics for t in trials
    ):
        spread = _values(trials, "latency_iqr_ms") / 2
    axes.errorbar(
        _values(trials, x),
        _values(trials, y),
        xerr=spread,
        fmt=marker,
        color=colour,
        markersize=5,
        elinewidth=1,
        label=label,
    )


def _baselines(
    axes: Axes, trials: list[Trial], objectives: Objectives, named: dict[str, str]
) -> None:
    if not trials:
        return
    x, y = (_values(trials, name) for name in objectives.names[:2])
    axes.plot(x, y, "D", mfc="none", mec=_BASELINE, markersize=10, label="baselines", linestyle="")
    for trial, left, top in zip(trials, x, y, strict=True):
        axes.annotate(
            named[trial.candidate.identity],
            (left, top),
            textcoords="offset points",
            xytext=(8, -10),
            fontsize=7,
            color=_BASELINE,
        )


def _staircase(axes: Axes, trials: list[Trial], objectives: Objectives) -> None:
    """The border of what the front dominates: no detector in between has been found."""
    x, y = (_values(trials, name) for name in objectives.names[:2])
    order = np.argsort(x)
    rises = objectives.directions[objectives.names[0]] == "minimize"
    where: Literal["post", "pre"] = "post" if rises else "pre"
    axes.step(x[order], y[order], where=where, color=_FRONT, linewidth=1, alpha=0.6)
