"""What describe says of exports: what can be written, what not and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from found_detectors import SPACE, SPACE_ARGS
from torch import nn
from whole_search import smnas

from smnas.deploy import support
from smnas.detectors import components
from smnas.detectors.space import load_space


def test_parts_of_torchvision_can_be_written_as_everything() -> None:
    space = load_space(SPACE, {**SPACE_ARGS, "library": "torchvision"})
    assert support.limits(space) == {}
    assert support.lines(space) == ["export: ONNX, ONNX of any size, Python, LazyConfig"]


def test_foreign_backbones_and_detectors_are_flagged() -> None:
    class Mine(nn.Module):
        pass

    space = load_space(SPACE, {**SPACE_ARGS, "library": "torchvision"})
    space.detector.model.backbone.backbone = Mine()
    first, second = support.lines(space)
    assert first == "export: ONNX, ONNX of any size, LazyConfig"
    assert second == "no export as Python: its backbones are of Mine, not one of smnas's"
    space.detector = Mine()
    assert support.lines(space)[0] == "export: nothing" and len(support.lines(space)) == 5


def test_an_option_that_rules_a_format_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None does today; the command line shows those that will."""
    monkeypatch.setattr(support, "UNSUPPORTED", {("rpn", "ga_rpn"): {"ONNX": "no such operator"}})
    # `auto` is torchvision here, also where detectron2 is installed
    monkeypatch.setattr(components, "_has_detectron2", lambda: False)
    done = smnas("describe", SPACE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "  ga_rpn: no export as ONNX: no such operator\n" in done.stdout
    assert done.stdout.count("no export") == 1


@pytest.mark.detectron2
def test_parts_of_detectron2_are_flagged() -> None:
    pytest.importorskip("detectron2", reason="needs detectron2, see docs/detectron2.md")
    space = load_space(SPACE, {**SPACE_ARGS, "library": "detectron2"})
    assert set(support.limits(space)) == {"ONNX", "ONNX of any size", "Python"}
