from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from toy import toy_outcome

from smnas.journal import read
from smnas.records import Failed, Measured, Outcome, Sample
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
