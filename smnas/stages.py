"""From one stage to the next: the structural front -> chosen structures -> a search of each.

`search.py` puts the stages together; a `Study` drives a `GroupOptimizer` as it drives a single
optimiser. Reads finished journals, never a live search. Imports no torch, NNI or pymoo's
algorithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from smnas import pareto
from smnas.errors import RunError, SpaceExhausted
from smnas.journal import Trial
from smnas.objectives.vector import Objectives
from smnas.optimizer import Optimizer
from smnas.records import Candidate, Failed, Outcome

FLOOR = 0.5
"""Part of the trials that is divided evenly between the groups, whatever they gain."""

WINDOW = 6
"""A group's gain is that of its last trials, as many as this."""


def choose_parents(trials: Sequence[Trial], objectives: Objectives, groups: int) -> list[Trial]:
    """Cuts the front into groups along its first objective and chooses one detector of each.

    The groups have equally many members, or one more; the chosen one is the member without which
    the front would lose most hypervolume (SM-NAS: E0 to E5 along the structural front).

    Args:
        trials: of the earlier stage.
        objectives: of the run.
        groups: how many, at least 1; a front with fewer members has as many groups as members.

    Raises:
        RunError: no trial has been measured.
    """
    front = pareto.front(list(trials), objectives)
    if not front:
        raise RunError("next stage: wanted a front to start from, got no measured trial")
    losses = _exclusive_hypervolumes(front, objectives)
    cuts = np.array_split(np.arange(len(front)), min(groups, len(front)))
    return [front[max(cut, key=lambda i: losses[i])] for cut in cuts]


def _exclusive_hypervolumes(front: Sequence[Trial], objectives: Objectives) -> list[float]:
    _, rows = pareto.measured(list(front), objectives)
    whole = pareto.hypervolume(rows, objectives.reference_point)
    without = [np.delete(rows, i, axis=0) for i in range(len(rows))]
    return [whole - pareto.hypervolume(rest, objectives.reference_point) for rest in without]


class GroupOptimizer:
    """Several optimisers, one for each group, that share the trials of one stage.

    Every group gets its first population. From then on half of the trials is divided evenly, and
    the other half in proportion to the hypervolume that each group's last trials have added to the
    front of the whole run. Like an optimiser's, its state follows from the sequence of calls, so a
    journal's replay restores it.

    Args:
        members: `{group: optimiser}`; the group is the id of the earlier stage's detector.
        objectives: of the run.
        earlier: trials of the earlier stages, whose front has to be improved.
        population: trials that every group gets first.
    """

    def __init__(
        self,
        members: Mapping[int, Optimizer],
        objectives: Objectives,
        earlier: Sequence[Trial],
        population: int,
    ) -> None:
        self._members, self._objectives, self._population = dict(members), objectives, population
        _, self._front = pareto.measured(list(earlier), objectives)
        self._next_id = 1 + max((trial.candidate.id for trial in earlier), default=-1)
        self._group_of: dict[int, int] = {}
        self._gains: dict[int, list[float]] = {group: [] for group in self._members}
        self._exhausted: set[int] = set()

    def ask(self) -> Candidate | None:
        """The next candidate, of the group whose turn it is; None while all groups wait for
        whole generations.

        Raises:
            SpaceExhausted: no group has anything left to propose.
        """
        for group in self._turns():
            member = self._members[group]
            member.next_id = self._next_id
            try:
                candidate = member.ask()
            except SpaceExhausted:
                self._exhausted.add(group)
                continue
            if candidate is not None:
                self._register(candidate.id, group)
                return candidate
        if len(self._exhausted) < len(self._members):
            return None
        raise SpaceExhausted(f"all {len(self._members)} groups are exhausted")

    def tell(self, candidate_id: int, outcome: Outcome) -> None:
        """Gives a candidate's outcome.

        Raises:
            ValueError: the id was not asked, or was told before.
        """
        if candidate_id not in self._group_of:
            raise ValueError(f"tell: candidate {candidate_id} was never asked")
        group = self._group_of[candidate_id]
        self._members[group].tell(candidate_id, outcome)
        self._gains[group].append(self._gain(outcome))

    def replay(self, candidate: Candidate) -> None:
        """Asks again as the journal says it was asked.

        Raises:
            RunError: the candidate belongs to no group of this search.
            SpaceError: the journal's sample is not in the group's space.
        """
        if candidate.group not in self._members:
            raise RunError(
                f"journal: candidate {candidate.id}: wanted a group among {list(self._members)},"
                f" got {candidate.group}"
            )
        self._members[candidate.group].next_id = candidate.id
        self._members[candidate.group].replay(candidate)
        self._register(candidate.id, candidate.group)

    def shares(self) -> dict[int, float]:
        """`{group: part of the trials}` that the groups are due by now, 0 to 1."""
        recent = {g: float(np.mean(gains[-WINDOW:] or [0.0])) for g, gains in self._gains.items()}
        total, even = sum(recent.values()), 1 / len(recent)
        if total == 0:
            return dict.fromkeys(recent, even)
        return {g: FLOOR * even + (1 - FLOOR) * gain / total for g, gain in recent.items()}

    def _turns(self) -> list[int]:
        """The groups, the one first that is furthest behind: in its first population, then in its
        share.
        """
        groups = [group for group in self._members if group not in self._exhausted]
        asked = {g: list(self._group_of.values()).count(g) for g in groups}
        shares, total = self.shares(), sum(asked.values()) + 1

        def behind(group: int) -> tuple[int, float]:
            starting = max(0, self._population - asked[group])
            return starting, shares[group] * total - asked[group]

        return sorted(groups, key=behind, reverse=True)

    def _gain(self, outcome: Outcome) -> float:
        """Hypervolume that an outcome adds to the front of the run, which then holds it."""
        if isinstance(outcome, Failed) or self._objectives.missing(outcome.metrics):
            return 0.0
        reference = self._objectives.reference_point
        before = pareto.hypervolume(self._front, reference)
        rows = np.vstack([self._front, self._objectives.minimised(outcome.metrics)])
        self._front = rows[pareto.non_dominated(rows)]
        return max(0.0, pareto.hypervolume(self._front, reference) - before)

    def _register(self, candidate_id: int, group: int) -> None:
        self._group_of[candidate_id] = group
        self._next_id = candidate_id + 1
