"""Whether two forms of a detector find the same in the same pictures, by a stated rule.

The rule. A detection of one form has a partner in the other if that has the same label, no corner
farther than `BOX_PX` and a score no farther than `SCORE`; every detection is the partner of one
other at most. What has no partner does not count

- if its score is within `SCORE` of where the list ends: the score threshold or, where a list is
  full, its last score; there rounding decides what is listed;
- if the other form has a box of the same label over it (IoU of at least `OVERLAP`) with a score
  within `SCORE`: of two boxes that tie, rounding decides which one suppresses the other. It is
  swapped.

The forms agree if at most `SHARE` of all detections remain, at most `SWAPPED` are swapped and at
most `AT_END` are at an end: more are no coincidence, but boxes that have moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from smnas.detectors.components import DETECTIONS_PER_IMAGE, NMS_THRESHOLD, SCORE_THRESHOLD
from smnas.errors import DeployError

BOX_PX = 0.1
"""Pixels of the detector's input."""

SCORE = 1e-3
SHARE = 0.005
SWAPPED = 0.01
AT_END = 0.05
OVERLAP = NMS_THRESHOLD - 1e-3

Detections = Mapping[str, Tensor]
"""`boxes`, `scores` and `labels` of a picture."""


@dataclass(frozen=True)
class Parity:
    """How far two forms agree.

    Args:
        pictures: that both have looked at.
        detections: of both forms together.
        at_end: without a partner, but where a list ends.
        swapped: without a partner, but by a tie.
        alone: without a partner.
        box_px: largest distance of two partners' corners, pixels of the input.
        score: largest difference of their scores.
        worst: the surest without a partner, in words, at an end only if there is no other; None if
            there is none.
    """

    pictures: int
    detections: int
    at_end: int
    swapped: int
    alone: int
    box_px: float
    score: float
    worst: str | None

    @property
    def agrees(self) -> bool:
        limits = ((self.alone, SHARE), (self.swapped, SWAPPED), (self.at_end, AT_END))
        few = all(count <= share * self.detections for count, share in limits)
        return self.detections > 0 and few

    def check(self, what: str) -> None:
        """Refuses forms that do not agree.

        Args:
            what: the second form, for the message.

        Raises:
            DeployError: with how many detections have no partner, and the surest.
        """
        if not self.detections:
            raise DeployError(
                f"{what}: wanted detections to compare, got none in {self.pictures} pictures; train"
                " the detector first, or name pictures in which it finds something"
            )
        if not self.agrees:
            raise DeployError(
                f"{what}: wanted at most {SHARE:.1%} of the detections without a partner (boxes"
                f" within {BOX_PX} px, scores within {SCORE:g}), {SWAPPED:.0%} swapped and"
                f" {AT_END:.0%} at a list's end, got {self.alone}, {self.swapped} and {self.at_end}"
                f" of {self.detections} in {self.pictures} pictures; the surest: {self.worst}"
            )

    def to_json(self) -> dict[str, Any]:
        shares = {"share_alone": SHARE, "share_swapped": SWAPPED, "share_at_end": AT_END}
        rule = {"box_px": BOX_PX, "score": SCORE, **shares}
        return {**vars(self), "agrees": self.agrees, "tolerance": rule}


def compare(first: Sequence[Detections], second: Sequence[Detections]) -> Parity:
    """What two forms of a detector have found in the same pictures, compared by the rule above."""
    totals = {"detections": 0, "at_end": 0, "swapped": 0, "alone": 0}
    box_px = score = 0.0
    surest = (False, -1.0)
    worst: str | None = None
    for number, (one, other) in enumerate(zip(first, second, strict=True), 1):
        pairs = _partners(one, other)
        box_px = max(box_px, *(_distances(one, other)[i, j].item() for i, j in pairs), 0.0)
        score = max(score, *(_difference(one, other, i, j) for i, j in pairs), 0.0)
        totals["detections"] += len(one["scores"]) + len(other["scores"])
        for own, its, taken in (
            (one, other, {i for i, _ in pairs}),
            (other, one, {j for _, j in pairs}),
        ):
            for index in range(len(own["scores"])):
                if index in taken:
                    continue
                why = _why_alone(own, its, index)
                totals[why] += 1
                sure = (why != "at_end", own["scores"][index].item())
                if sure > surest:
                    surest, worst = sure, f"picture {number}: {_words(own, index)}"
    return Parity(len(first), **totals, box_px=box_px, score=score, worst=worst)


def _partners(one: Detections, other: Detections) -> list[tuple[int, int]]:
    """Pairs of indices, nearest boxes first."""
    distances = _distances(one, other)
    near = (distances <= BOX_PX) & (one["labels"][:, None] == other["labels"])
    near &= (one["scores"][:, None] - other["scores"]).abs() <= SCORE
    rows, columns = near.nonzero(as_tuple=True)
    order = distances[rows, columns].argsort(stable=True)
    pairs: list[tuple[int, int]] = []
    left, right = set(range(len(one["scores"]))), set(range(len(other["scores"])))
    for i, j in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if i in left and j in right:
            left.remove(i)
            right.remove(j)
            pairs.append((i, j))
    return pairs


def _distances(one: Detections, other: Detections) -> Tensor:
    return (one["boxes"][:, None] - other["boxes"]).abs().amax(dim=2)


def _difference(one: Detections, other: Detections, i: int, j: int) -> float:
    return abs(one["scores"][i] - other["scores"][j]).item()


def _why_alone(own: Detections, its: Detections, index: int) -> str:
    score = own["scores"][index]
    ends = [SCORE_THRESHOLD]
    ends += [d["scores"].min().item() for d in (own, its) if len(d["scores"]) >= _FULL]
    if any(abs(score.item() - end) <= SCORE for end in ends):
        return "at_end"
    rivals = (its["labels"] == own["labels"][index]) & ((its["scores"] - score).abs() <= SCORE)
    overlaps = box_iou(own["boxes"][index][None], its["boxes"][rivals])
    return "swapped" if (overlaps >= OVERLAP).any() else "alone"


def _words(found: Detections, index: int) -> str:
    box = ", ".join(f"{value:.1f}" for value in found["boxes"][index].tolist())
    return f"label {int(found['labels'][index])}, score {found['scores'][index]:.4f}, box {box}"


_FULL = DETECTIONS_PER_IMAGE


def on_cpu(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A picture's detections as `compare` takes them."""
    return {name: torch.as_tensor(found[name]).cpu() for name in ("boxes", "scores", "labels")}
