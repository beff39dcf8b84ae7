"""What a trial reported to NNI last -> its outcome. Light: imports no torch, NNI or pymoo."""

from __future__ import annotations

import math
from typing import Any

from smnas.objectives.vector import Objectives
from smnas.records import Failed, Measured, Outcome, outcome_from_json


def outcome_of(reported: Any, objectives: Objectives) -> Outcome:
    """The outcome that a final result stands for.

    Args:
        reported: a dict with every objective, whose finite numbers become metrics and whose `info`
            is kept; or the record of a failure, as `smnas trial` reports it. Anything else is a
            failure itself.
        objectives: what the dict must hold.
    """
    if not isinstance(reported, dict):
        return Failed("error", f"wanted a dict with {list(objectives.names)}, got {reported!r}")
    if reported.get("state") == "failed":
        try:
            return outcome_from_json(reported)
        except (KeyError, TypeError, ValueError) as error:
            return Failed("error", f"a failure that smnas did not write ({error!r}): {reported}")
    metrics = {k: v for k, v in reported.items() if k != "default" and is_number(v)}
    if missing := objectives.missing(metrics):
        found = [reported.get(name) for name in missing]
        return Failed("error", f"wanted finite numbers for {missing}, got {found}")
    info = reported.get("info")
    return Measured(metrics, info if isinstance(info, dict) else {})


def is_number(value: Any) -> bool:
    """Whether a reported value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
