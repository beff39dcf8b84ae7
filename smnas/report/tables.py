"""The front as rows: for the terminal, as JSON and as CSV. Reads journals only."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from smnas import pareto
from smnas.journal import History, Trial
from smnas.objectives.vector import Objectives
from smnas.records import Measured, identity


def objectives_of(history: History) -> Objectives:
    """The objectives that a run was made for, with its own reference point."""
    experiment = history.header["experiment"]
    return Objectives(experiment["objectives"], experiment["reference_point"])


def baseline_names(history: History) -> dict[str, str]:
    """`{identity of the sample: name}` of the experiment's known detectors."""
    return {identity(s): name for name, s in history.header["experiment"]["baselines"].items()}


def front_rows(history: History, under_ms: float | None = None) -> list[dict[str, Any]]:
    """The Pareto set as flat rows: id, stage, baseline name or None, metrics, then the sample's
    choices.

    Args:
        history: a run's journal.
        under_ms: leaves out detectors whose `latency_ms` is above it.
    """
    names = baseline_names(history)
    rows = [_row(trial, names) for trial in pareto.front(history.trials(), objectives_of(history))]
    return [r for r in rows if under_ms is None or r.get("latency_ms", 0.0) <= under_ms]


def trial_rows(history: History) -> list[dict[str, Any]]:
    """Every measured trial as a flat row, by id."""
    names = baseline_names(history)
    return [_row(t, names) for t in history.trials() if isinstance(t.outcome, Measured)]


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV with a header line, one column for each choice; empty text for no rows."""
    flat = [{**{k: v for k, v in row.items() if k != "sample"}, **row["sample"]} for row in rows]
    if not flat:
        return ""
    columns = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def front_table(history: History, rows: Sequence[dict[str, Any]]) -> Table:
    """Front rows as a rich table: one line a detector, short option names."""
    objectives = objectives_of(history)
    table = Table(title=f"Pareto front of {history.header['name']}", title_justify="left")
    table.add_column("id", justify="right")
    for name in objectives.names:
        table.add_column(name, justify="right")
    extra = [n for n in ("params_m", "macs_g") if n not in objectives.names]
    for name in extra:
        table.add_column(name, justify="right")
    table.add_column("detector")
    for row in rows:
        values = [_format(name, row.get(name)) for name in (*objectives.names, *extra)]
        table.add_row(str(row["id"]), *values, describe_sample(row["sample"], row["baseline"]))
    return table


def latency_table(
    ids: Sequence[int | None],
    now: Sequence[Mapping[str, Any]],
    before: Sequence[Mapping[str, Any] | None],
) -> Table:
    """Latencies that were measured again, beside those of the run.

    Args:
        ids: of the candidates; None outside of a run.
        now: as `Latency.to_json` gives it.
        before: the run's own, None where there is none.
    """
    card = now[0]
    title = f"{card['device']}, {card['precision']}, {card['threads']} CPU threads"
    table = Table(title=title, title_justify="left")
    for name in ("id", "median ms", "IQR ms", "count", "before ms", "ratio"):
        table.add_column(name, justify="right")
    for candidate_id, new, old in zip(ids, now, before, strict=True):
        median = new["median_ms"]
        compared = [f"{old['median_ms']:.2f}", f"{median / old['median_ms']:.2f}"] if old else []
        table.add_row(
            "-" if candidate_id is None else str(candidate_id),
            f"{median:.2f}",
            f"{new['iqr_ms']:.2f}",
            str(new["count"]),
            *(compared or ["-", "-"]),
        )
    return table


def describe_sample(sample: dict[str, Any], baseline: str | None) -> str:
    """One line for a detector: its options in the order of the space, and its name if it has
    one.
    """
    text = " ".join(f"{label}={option}" for label, option in sample.items())
    return f"{text}  ({baseline})" if baseline else text


def _row(trial: Trial, names: dict[str, str]) -> dict[str, Any]:
    assert isinstance(trial.outcome, Measured)
    candidate = trial.candidate
    return {
        "id": candidate.id,
        "stage": candidate.stage,
        "origin": candidate.origin,
        "baseline": names.get(candidate.identity),
        **trial.outcome.metrics,
        "sample": dict(candidate.sample),
    }


def _format(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if 0.0 <= value < 1.0 or name in ("map", "ap50") else f"{value:.2f}"
