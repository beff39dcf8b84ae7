"""The front as rows: for the terminal, as JSON and as CSV. Reads journals only."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from smnas import pareto
from smnas.detectors.operators import INNER, string_of
from smnas.encoding import Encoding
from smnas.gpu import LOCKED, GpuState, worst
from smnas.journal import History, Trial
from smnas.objectives.vector import Objectives
from smnas.records import Candidate, Measured, Option, Stopped, identity


def objectives_of(history: History) -> Objectives:
    """The objectives that a run was made for, with its own reference point."""
    experiment = history.header["experiment"]
    return Objectives(experiment["objectives"], experiment["reference_point"])


def choices_of(history: History) -> dict[str, tuple[Option, ...]]:
    """The options of each choice, of all stages together; numbers ascending where they differ."""
    headers = [history.header, *history.later]
    stages = [Encoding.from_choices(header["space"]["choices"]) for header in headers]
    whole = Encoding.union(stages) if history.later else stages[0]
    return {choice.label: choice.options for choice in whole.choices}


def baseline_names(history: History) -> dict[str, str]:
    """`{identity of the sample: name}` of the experiment's known detectors."""
    return {identity(s): name for name, s in history.header["experiment"]["baselines"].items()}


def front_rows(
    history: History, under_ms: float | None = None, noise_aware: bool = False
) -> list[dict[str, Any]]:
    """The Pareto set as flat rows: id, stage, where it comes from, baseline name or None, metrics,
    then the sample's choices.

    Args:
        history: a run's journal.
        under_ms: leaves out detectors whose `latency_ms` is above it.
        noise_aware: also those that are beaten by no more than the spread of latency; a row says
            so under `within_noise`.
    """
    names, objectives, trials = baseline_names(history), objectives_of(history), history.trials()
    best = pareto.front(trials, objectives)
    rows = [_row(trial, names) for trial in best]
    if noise_aware:
        sure = {trial.candidate.id for trial in best}
        rows = [
            _row(trial, names) | {"within_noise": trial.candidate.id not in sure}
            for trial in pareto.front_beyond_noise(trials, objectives)
        ]
    return [r for r in rows if under_ms is None or r.get("latency_ms", 0.0) <= under_ms]


def trial_rows(history: History) -> list[dict[str, Any]]:
    """Every measured trial as a flat row, by id."""
    names = baseline_names(history)
    return [_row(t, names) for t in history.trials() if isinstance(t.outcome, Measured)]


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV with a header line, one column for each choice; empty text for no rows."""
    flat = [{**_cells(row), **row["sample"]} for row in rows]
    if not flat:
        return ""
    columns = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    parents = " ".join(map(str, row["parents"]))
    return {k: v for k, v in (row | {"parents": parents}).items() if k != "sample"}


def front_table(history: History, rows: Sequence[dict[str, Any]]) -> Table:
    """Front rows as a rich table: one line a detector, short option names."""
    objectives = objectives_of(history)
    notes = _noise_note(rows), _untimed_note(history), training_note(history)
    table = Table(
        title=f"Pareto front of {history.header['name']}",
        title_justify="left",
        caption="\n".join(filter(None, notes)) or None,
        caption_justify="left",
    )
    table.add_column("id", justify="right")
    for name in objectives.names:
        table.add_column(name, justify="right")
    known = {name for row in rows for name in row} - set(objectives.names)
    extra = [name for name in ("params_m", "macs_g") if name in known]
    for name in extra:
        table.add_column(name, justify="right")
    staged = any(row["group"] is not None for row in rows)
    if staged:
        table.add_column("from", justify="right")
    table.add_column("detector")
    for row in rows:
        values = [_format(name, row.get(name)) for name in (*objectives.names, *extra)]
        origin = ["-" if row["group"] is None else str(row["group"])] if staged else []
        detector = describe_sample(row["sample"], row["baseline"])
        mark = "~" if row.get("within_noise") else ""
        table.add_row(f"{mark}{row['id']}", *values, *origin, detector)
    return table


def _noise_note(rows: Sequence[Mapping[str, Any]]) -> str | None:
    marked = any(row.get("within_noise") for row in rows)
    return "~ beaten by no more than the spread of latency." if marked else None


def _untimed_note(history: History) -> str | None:
    outcomes = [trial.outcome for trial in history.trials()]
    count = sum(isinstance(one, Stopped) and one.reason == "untimed" for one in outcomes)
    others = sum(isinstance(one, Measured) for one in outcomes)
    return (
        f"Of {count + others} detectors {count} were not timed on this device." if count else None
    )


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
    table = Table(
        title=conditions_of(now[0]),
        title_justify="left",
        caption=gpu_note([card.get("gpu") for card in now]),
        caption_justify="left",
    )
    for name in ("id", "median ms", "IQR ms", "count", "images/s", "before ms", "ratio"):
        table.add_column(name, justify="right")
    for candidate_id, new, old in zip(ids, now, before, strict=True):
        median = new["median_ms"]
        compared = [f"{old['median_ms']:.2f}", f"{median / old['median_ms']:.2f}"] if old else []
        table.add_row(
            "-" if candidate_id is None else str(candidate_id),
            f"{median:.2f}",
            f"{new['iqr_ms']:.2f}",
            str(new["count"]),
            f"{1e3 * new['batch'] / median:.1f}",
            *(compared or ["-", "-"]),
        )
    return table


def conditions_of(card: Mapping[str, Any]) -> str:
    """One line: what a latency was measured under.

    Args:
        card: as `Latency.to_json` gives it.
    """
    compiled = ", compiled" if card["compiled"] else ""
    return (
        f"{card['device']}, {card['precision']}, batch {card['batch']},"
        f" {card['threads']} CPU threads{compiled}: {card['includes']}"
    )


def gpu_note(states: Sequence[Mapping[str, Any] | None]) -> str | None:
    """One line on how a GPU did while it was timed: the worst of all; None where none was.

    Args:
        states: `gpu` of latency cards.
    """
    state = worst(None if one is None else GpuState(**one) for one in states)
    if state is None:
        return None
    clock, throttling = state.sm_clock_mhz, state.throttling
    known = {
        f"driver {state.driver}": state.driver,
        f"SM clock {clock} MHz (at most {state.max_sm_clock_mhz})": clock,
        f"memory clock {state.memory_clock_mhz} MHz": state.memory_clock_mhz,
        f"{state.temperature_c} °C": state.temperature_c,
    }
    words = [word for word, value in known.items() if value is not None]
    if throttling is not None:
        held = [reason for reason in throttling if reason != LOCKED]
        if LOCKED in throttling:
            words.append(LOCKED)
        words.append(f"throttled: {', '.join(held)}" if held else "not throttled")
    return "; ".join(words)


def zoo_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows of `search_spaces.zoo.rows` as a rich table: counted beside published."""
    sources: dict[str, list[str]] = {}
    table = Table(title="Zoo: counted, and as published", title_justify="left")
    table.add_column("name", min_width=28, overflow="fold")
    for name in ("params_m", "published", "map", "latency_ms"):
        table.add_column(name, justify="right")
    for row in rows:
        known = row["published"] or {}
        table.add_row(
            "\n".join(filter(None, (row["name"], row["note"]))),
            _format("params_m", row["params_m"]),
            *(_format(name, known.get(name)) for name in ("params_m", "map", "latency_ms")),
        )
        if known:
            sources.setdefault(known["source"], []).append(row["name"])
    table.caption = "\n".join(f"{source}: {', '.join(names)}" for source, names in sources.items())
    table.caption_justify = "left"
    return table


def training_note(history: History) -> str | None:
    """How the detectors of a run were trained, and how far that ranking can be trusted, in words.

    None where the journal says neither, as when the trials are not smnas's own.
    """
    outcomes = [trial.outcome for trial in history.trials()]
    recipes = [o.info["recipe"] for o in outcomes if isinstance(o, Measured) and "recipe" in o.info]
    arguments = history.header["experiment"].get("space_args", {})
    start = "backbones from ImageNet weights" if arguments.get("pretrained") else "from scratch"
    lines = [f"Trained {start}: {recipe}." for recipe in dict.fromkeys(recipes)]
    tau = history.header.get("proxy_tau")
    if tau is not None:
        lines.append(f"Kendall's tau between mAP after this and after long training: {tau:.2f}.")
    return "\n".join(lines) or None


def describe_sample(sample: dict[str, Any], baseline: str | None) -> str:
    """One line for a detector: its options in the order of the space, the inside of a backbone as a
    string, and its name if it has one.
    """
    shown = sample
    if set(INNER) <= set(sample):
        rest = {label: option for label, option in sample.items() if label not in INNER}
        shown = {"backbone": string_of(sample) or sample["block"], **rest}
    text = " ".join(f"{label}={option}" for label, option in shown.items())
    return f"{text}  ({baseline})" if baseline else text


def _row(trial: Trial, names: dict[str, str]) -> dict[str, Any]:
    assert isinstance(trial.outcome, Measured)
    return {
        **origin_of(trial.candidate, names),
        **trial.outcome.metrics,
        "sample": dict(trial.candidate.sample),
    }


def origin_of(candidate: Candidate, names: dict[str, str]) -> dict[str, Any]:
    """Where a candidate comes from, as every table says it.

    Args:
        candidate: of a run.
        names: see `baseline_names`.
    """
    return {
        "id": candidate.id,
        "stage": candidate.stage,
        "origin": candidate.origin,
        "group": candidate.group,
        "generation": candidate.generation,
        "parents": list(candidate.parents),
        "baseline": names.get(candidate.identity),
    }


def _format(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if 0.0 <= value < 1.0 or name in ("map", "ap50") else f"{value:.2f}"
