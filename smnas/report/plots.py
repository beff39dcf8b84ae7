"""Pictures of a run: the front, and hypervolume over trials. The only module that imports
matplotlib.

Draws with figure objects of its own, so no global state of matplotlib is touched. Reads journals
only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smnas import pareto
from smnas.journal import History, Trial
from smnas.objectives.vector import Objectives
from smnas.records import Measured
from smnas.report.tables import baseline_names, objectives_of

# colour-blind safe (Okabe and Ito 2008), told apart by shape too
_FRONT, _DOMINATED, _BASELINE = "#0072B2", "#999999", "#D55E00"
_LABELS = {"latency_ms": "latency (ms)", "map": "mAP (search split)"}


def save_plots(history: History, folder: Path) -> list[Path]:
    """Writes `front.png` (two objectives or more) and `hypervolume.png`; returns what was written.

    A run without any measured trial has no pictures.
    """
    objectives = objectives_of(history)
    trials = history.trials()
    kept, _ = pareto.measured(trials, objectives)
    if not kept:
        return []
    figures = {"hypervolume": hypervolume_figure(trials, objectives)}
    if len(objectives.names) > 1:
        figures["front"] = front_figure(history)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
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


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
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
