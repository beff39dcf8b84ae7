from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy import toy_outcome

from smnas import pareto
from smnas.errors import RunError
from smnas.journal import Asked, History, Told, read
from smnas.records import Candidate, Failed, Measured, Outcome, Sample
from smnas.report import plots
from smnas.report.tables import objectives_of


def with_spread(sample: Sample) -> Outcome:
    outcome = toy_outcome(sample)
    return Measured({**outcome.metrics, "latency_iqr_ms": 2.0})


def test_pictures_are_written_and_show_something(toy_run: Callable[..., Path]) -> None:
    run = toy_run(30, with_spread)
    paths = plots.save_plots(read(run), run)
    assert [p.name for p in paths] == ["front.png", "hypervolume.png"]
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.shape == (675, 1050) and pixels.std() > 5


def test_the_front_picture_holds_every_measured_trial_once(toy_run: Callable[..., Path]) -> None:
    history = read(toy_run(30, with_spread))
    axes = plots.front_figure(history).axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert sorted(labels) == ["Pareto front", "baselines", "dominated"]
    counts = {bar.get_label(): len(bar.lines[0].get_xdata()) for bar in axes.containers}
    assert counts["Pareto front"] + counts["dominated"] == 30
    spread = axes.containers[0].lines[2][0].get_segments()
    assert np.ptp(spread[0][:, 0]) == 2.0, "the bar is as long as the interquartile range"
    assert axes.get_xlabel() == "latency (ms)" and axes.texts[0].get_text() == "flat"


def test_the_hypervolume_picture_ends_at_the_last_trial(toy_run: Callable[..., Path]) -> None:
    history = read(toy_run(12))
    axes = plots.hypervolume_figure(history.trials(), objectives_of(history)).axes[0]
    x, y = axes.lines[0].get_data()
    assert len(x) == 12 and list(y) == sorted(y)


def test_a_run_without_a_measured_trial_has_no_pictures(toy_run: Callable[..., Path]) -> None:
    run = toy_run(3, lambda sample: Failed("crash", "always"))
    assert plots.save_plots(read(run), run) == []
    assert plots.save_figures(read(run), run / "figures") == []


def test_figures_for_papers_are_written_as_png_and_svg(toy_run: Callable[..., Path]) -> None:
    run = toy_run(20)
    paths = plots.save_figures(read(run), run / "figures")
    names = ("effects", "front", "hypervolume", "parallel")
    assert [p.name for p in paths] == [f"{n}.{s}" for n in names for s in ("png", "svg")]
    for path in paths[1::2]:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    (run / "file").touch()
    with pytest.raises(RunError, match="file: cannot be written"):
        plots.save_figures(read(run), run / "file")


def few(toy_header: dict) -> History:
    """Two on the front, one dominated; `deep` is a choice of the second stage only."""
    samples = [{"kind": "a"}, {"kind": "b"}, {"deep": 7}, {"deep": 9}, {"deep": 7}]
    values = [(1.0, 0.2), (3.0, 0.6), (4.0, 0.5)]
    events: list[Asked | Told] = []
    for k, sample in enumerate(samples):
        events.append(Asked(Candidate(k, "modular" if k > 1 else "structural", sample), 2.0 * k))
        if k < len(values):
            latency, quality = values[k]
            told = Measured({"latency_ms": latency, "map": quality})
            events.append(Told(k, told, 2.0 * k + 1))
    events.append(Told(3, Failed("crash", ""), 9.0))
    events.append(Told(4, Measured({"latency_ms": 5.0, "map": 0.4}), 10.0))
    header = {**toy_header, "space": {"choices": {"kind": ["a", "b"]}}}
    later = {**toy_header, "space": {"choices": {"deep": [7, 8, 9]}}}
    return History(header, tuple(events), (later,))


def test_parallel_lines_go_through_choices_that_differ_and_objectives(toy_header: dict) -> None:
    history = few(toy_header)
    figure = plots.parallel_figure(history)
    (axes,) = figure.axes
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    # only 7 was ever measured of `deep`, so it tells nothing
    assert labels == ["kind", "latency (ms)", "mAP (search split)"]
    lines = [line.get_ydata() for line in axes.lines]
    assert len(lines) == 4
    on_front = [line for line in axes.lines if line.get_zorder() == 3]
    assert [line.get_ydata()[-1] for line in on_front] == [0.0, 1.0]
    assert sum(np.isnan(y[0]) for y in lines) == 2, "no place without that choice"
    assert on_front[1].get_ydata()[0] == pytest.approx(1.0, abs=0.04), "b is the upper option"


def test_effects_show_the_median_of_each_option(toy_run: Callable[..., Path]) -> None:
    history = read(toy_run(30))
    figure = plots.effects_figure(history)
    labels = [axes.get_title() for axes in figure.axes[:5]]
    assert labels == ["d0", "d1", "d2", "d3", "kind"] and len(figure.axes) == 10
    kept, _ = pareto.measured(history.trials(), objectives_of(history))
    axes = figure.axes[4]  # latency by kind
    by_kind = {
        kind: [t.outcome.metrics["latency_ms"] for t in kept if t.candidate.sample["kind"] == kind]
        for kind in "abc"
    }
    assert len(axes.lines[0].get_ydata()) == 30
    medians = [line.get_ydata()[0] for line in axes.lines[1:]]
    assert medians == [np.median(values) for values in by_kind.values() if values]
