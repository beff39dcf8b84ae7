"""The form for exporters finds what the detector finds, and leaves the detector as it was."""

from __future__ import annotations

import pytest
import torch
from found_detectors import HEADS, noise, plan_of, spread
from torch import nn

from smnas.deploy.graph import Graph, _suppressed
from smnas.deploy.parity import compare
from smnas.deploy.verify import findings
from smnas.detectors.norms import WeightStandardizedConv2d
from smnas.errors import DeployError


def as_detector(graph: Graph) -> nn.Module:
    class Called(nn.Module):
        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            names = ("boxes", "scores", "labels")
            return [dict(zip(names, graph(image), strict=True)) for image in images]

    return Called()


@pytest.mark.parametrize(
    ("head", "neck"), [*((head, "fpn") for head in HEADS), ("rcnn", "none"), ("retinanet", "none")]
)
def test_it_finds_the_same(head: str, neck: str) -> None:
    detector = spread(plan_of(head, neck).build())
    before = findings(detector, noise(3))
    graph = Graph(detector)
    parity = compare(before, findings(as_detector(graph), noise(3)))
    assert parity.agrees and parity.alone == 0 and parity.detections > 100
    assert not any(isinstance(m, WeightStandardizedConv2d) for m in graph.modules())
    after = findings(detector, noise(3))
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(before, after, strict=True))


def test_nothing_found_is_an_empty_list() -> None:
    detector = plan_of("rcnn").build().eval()  # untrained heads say background
    boxes, scores, labels = Graph(detector)(torch.zeros(3, 72, 96))
    assert boxes.shape == (0, 4) and scores.shape == labels.shape == (0,)


def test_suppression_by_hand() -> None:
    """Two boxes over each other in one group, the same in another, one that is not valid."""
    box, other = [0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 10.0, 10.0]
    boxes = torch.tensor([box, other, box, other, [20.0, 20.0, 30.0, 30.0]])
    scores = torch.tensor([0.5, 0.6, 0.8, 0.7, 0.9])
    groups, valid = torch.tensor([0, 0, 1, 1, 0]), torch.tensor([True] * 4 + [False])
    found, best, kept = _suppressed(boxes, scores, groups, valid, 0.5, 3, 30)
    assert best.tolist() == pytest.approx([0.8, 0.6, -1.0])
    assert found[:2].tolist() == [box, other] and kept[:2].tolist() == [1, 0]


def test_other_detectors_are_refused() -> None:
    with pytest.raises(DeployError, match="wanted a detector of torchvision's parts, got NoneType"):
        Graph(nn.Linear(1, 1))
