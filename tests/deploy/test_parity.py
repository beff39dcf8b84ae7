"""Two forms of a detector compared: each sentence of the rule by a case that turns on it."""

from __future__ import annotations

import pytest
import torch

from smnas.deploy.parity import compare
from smnas.errors import DeployError

BOX = [10.0, 10.0, 30.0, 30.0]
FAR = [50.0, 50.0, 80.0, 70.0]


def found(*rows: tuple[list[float], float, int]) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([box for box, _, _ in rows]).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in rows])
    return {"boxes": boxes, "scores": scores, "labels": torch.tensor([k for *_, k in rows]).long()}


def moved(box: list[float], by: float) -> list[float]:
    return [box[0] + by, *box[1:]]


def test_order_does_not_matter_and_distances_are_the_largest() -> None:
    one = found((BOX, 0.9, 1), (FAR, 0.4, 2))
    other = found((moved(FAR, 0.05), 0.4005, 2), (BOX, 0.9, 1))
    parity = compare([one], [other])
    assert (
        parity.agrees
        and parity.detections == 4
        and parity.alone == parity.swapped == parity.at_end == 0
    )
    assert parity.box_px == pytest.approx(0.05, abs=1e-4)
    assert parity.score == pytest.approx(0.0005, abs=1e-6)
    parity.check("the copy")


@pytest.mark.parametrize(
    "other",
    [
        found((BOX, 0.9, 2)),  # another label
        found((moved(BOX, 0.11), 0.9, 1)),  # a corner too far
        found((BOX, 0.902, 1)),  # another score
        found(),
    ],
)
def test_what_differs_is_alone(other: dict[str, torch.Tensor]) -> None:
    parity = compare([found((BOX, 0.9, 1))], [other])
    assert parity.alone + parity.swapped == 1 + len(other["scores"]) and not parity.agrees
    wanted = "the copy: wanted at most 0.5% .*, 1% swapped and .*; the surest: picture 1: label 1"
    with pytest.raises(DeployError, match=wanted):
        parity.check("the copy")


def test_each_is_one_partner_only() -> None:
    parity = compare([found((BOX, 0.9, 1))], [found((BOX, 0.9, 1), (BOX, 0.9, 1))])
    # the second lies over the first with the same score: of two that tie, one suppresses the other
    assert (parity.alone, parity.swapped) == (0, 1)
    parity = compare([found((BOX, 0.9, 1))], [found((BOX, 0.9, 1), (FAR, 0.9, 1))])
    assert (parity.alone, parity.swapped) == (1, 0)


def test_ends_of_lists_do_not_count() -> None:
    nothing = found()
    assert compare([found((BOX, 0.0509, 1))], [nothing]).at_end == 1
    assert compare([found((BOX, 0.0511, 1))], [nothing]).alone == 1
    rows = [([40.0 * k, 0.0, 40.0 * k + 20, 20.0], 0.9 - 0.005 * k, 1) for k in range(100)]
    last = ([0.0, 100.0, 20.0, 120.0], rows[-1][1] + 0.0005, 1)
    full = found(*rows)
    # a full list ends elsewhere: its last is the other's hundredth, which rounding has pushed out
    other = found(*rows[:-1], last)
    parity = compare([full], [other])
    assert (parity.alone, parity.at_end) == (0, 2)
    assert compare([found(*rows[:50])], [found(*rows[:49])]).alone == 1


def test_a_tie_in_suppression_is_a_swap() -> None:
    near = moved(BOX, 2.0)  # IoU 18 / 20
    parity = compare([found((BOX, 0.6, 1))], [found((near, 0.6005, 1))])
    assert (parity.alone, parity.swapped) == (0, 2)
    parity = compare([found((BOX, 0.6, 1))], [found((near, 0.602, 1))])
    assert parity.alone == 2
    parity = compare([found((BOX, 0.6, 1))], [found((moved(BOX, 9.0), 0.6, 1))])  # IoU 11 / 20
    assert parity.swapped == 2
    parity = compare([found((BOX, 0.6, 1))], [found((moved(BOX, 10.5), 0.6, 1))])  # 9.5 / 20
    assert parity.alone == 2


def test_one_in_two_hundred_may_remain() -> None:
    rows = [([40.0 * k, 0.0, 40.0 * k + 20, 20.0], 0.9 - 0.002 * k, 1) for k in range(51)]
    whole, less = found(*rows), found(*rows[:25], *rows[26:])
    assert compare([whole, whole], [whole, less]).agrees  # 1 of 203
    assert not compare([whole, whole], [less, less]).agrees  # 2 of 202


def test_two_in_two_hundred_may_be_swapped() -> None:
    rows = [([40.0 * k, 0.0, 40.0 * k + 20, 20.0], 0.9 - 0.002 * k, 1) for k in range(51)]
    whole = found(*rows)
    one = found(*rows[:-1], (moved(rows[-1][0], 1.0), rows[-1][1], 1))
    assert compare([whole, whole], [whole, one]).agrees  # 2 of 204
    assert not compare([whole, whole], [one, one]).agrees  # 4 of 204


def test_five_in_a_hundred_may_be_at_an_end() -> None:
    """Where all scores are low, moved boxes must not pass for ends of lists."""
    rows = [([40.0 * k, 0.0, 40.0 * k + 20, 20.0], 0.0505, 1) for k in range(100)]
    assert compare([found(*rows)], [found(*rows[:91])]).agrees  # 9 of 191
    assert not compare([found(*rows)], [found(*rows[:90])]).agrees  # 10 of 190
    parity = compare([found(*rows)], [found(*((moved(box, 1.0), s, k) for box, s, k in rows))])
    assert parity.at_end == 200 and not parity.agrees
    with pytest.raises(DeployError, match="got 0, 0 and 200 of 200 .*; the surest: picture 1"):
        parity.check("the copy")


def test_without_detections_nothing_is_shown() -> None:
    parity = compare([found()], [found()])
    assert not parity.agrees
    with pytest.raises(DeployError, match="wanted detections to compare, got none in 1 pictures"):
        parity.check("the copy")
