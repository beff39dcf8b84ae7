"""What NNI says of trials, made sense of: a final result -> an outcome, ends -> failures.

For `tuner` and `nas`. Light: imports no torch, NNI or pymoo.
"""

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


class Ends:
    """Tells which trials have ended without a result.

    NNI's training services hand parameters to trials in the order in which the trials ask, so those
    of two that start together may be exchanged: results come under the right candidate, ends under
    the other one. A candidate whose end came without a result may be running still, in the trial of
    one that was active at that moment; it has failed once all of those have ended. For the same
    reason a bad exit status may come under any of them: what counts is how many there were.
    """

    def __init__(self) -> None:
        self.active: set[int] = set()
        self._doubts: dict[int, set[int]] = {}
        self._unexplained = 0

    @property
    def crashed(self) -> bool:
        """Whether more trials have ended with a bad exit status than failures account for."""
        return self._unexplained > 0

    def started(self, candidate_id: int) -> None:
        """A trial has been given this candidate."""
        self.active.add(candidate_id)

    def told(self, candidate_id: int, explains_bad_exit: bool) -> None:
        """The candidate has an outcome, which may account for a bad exit status."""
        self._doubts.pop(candidate_id, None)
        self._unexplained -= explains_bad_exit

    def ended(self, candidate_id: int, has_outcome: bool, success: bool) -> None:
        """NNI says that the candidate's trial has ended, with exit status 0 or another."""
        self._unexplained += not success
        self.active.discard(candidate_id)
        for others in self._doubts.values():
            others.discard(candidate_id)
        if not has_outcome:
            self._doubts[candidate_id] = set(self.active)

    def failed(self) -> list[int]:
        """Candidates that have ended without a result for sure, and have no outcome yet."""
        return sorted(candidate_id for candidate_id, others in self._doubts.items() if not others)
