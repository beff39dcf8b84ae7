"""One Python file: it builds the same detector, in training too, and needs no smnas."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from found_detectors import HEADS, noise, plan_of, spread
from torch import nn
from two_libraries import STRUCTURES, build, smallest_input

from smnas.deploy.parity import compare
from smnas.deploy.python_file import plain_state, to_python, write_python
from smnas.deploy.verify import check_python, findings
from smnas.errors import DeployError

CATEGORIES = [{"id": k, "name": f"digit {k}"} for k in range(1, 11)]


def write(detector: nn.Module, folder: Path) -> Path:
    path = folder / "exported.py"
    write_python(to_python(detector, "A detector", CATEGORIES, {"head": "x"}), path)
    torch.save(plain_state(detector), path.with_suffix(".pt"))
    return path


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same(detector: nn.Module, path: Path, pictures: list[torch.Tensor]) -> nn.Module:
    text = path.read_text()
    assert "import smnas" not in text and "from smnas" not in text
    compile(text, path, "exec")
    other = imported(path).load()
    parity = compare(findings(detector, pictures), findings(other, pictures))
    assert parity.alone == parity.swapped == parity.at_end == 0 and parity.detections > 0
    assert parity.box_px < 1e-3 and parity.score < 1e-5
    return other


def losses(detector: nn.Module) -> dict[str, float]:
    target = {"boxes": torch.tensor([[5.0, 5.0, 50.0, 60.0]]), "labels": torch.tensor([3])}
    torch.manual_seed(0)  # the detectors sample their proposals
    found = detector.train()(noise(1), [target])
    return {name: loss.item() for name, loss in found.items()}


@pytest.mark.parametrize("head", HEADS)
def test_it_finds_and_learns_the_same(head: str, tmp_path: Path) -> None:
    detector = spread(plan_of(head).build())
    other = assert_same(detector, write(detector, tmp_path), [*noise(2), *noise(1, (131, 77))])
    assert losses(other) == pytest.approx(losses(detector), rel=1e-5)


_LARGE = ("resnet34", "resnet50", "resnet101", "resnext50", "resnext101")


@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(s, marks=[pytest.mark.slow] if s["backbone"] in _LARGE else [])
        for s in STRUCTURES
    ],
    ids=lambda sample: str(sample["backbone"]),
)
def test_every_structure_can_be_written(sample: dict, tmp_path: Path) -> None:
    size = smallest_input(sample)
    detector = spread(build("torchvision", sample, size, num_classes=10))
    width, height = map(int, size.split("x"))
    assert_same(detector, write(detector, tmp_path), noise(1, (width, height)))


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_other_norms_can_be_written(norm: str, tmp_path: Path) -> None:
    sample = {**STRUCTURES[6], "neck_end": 6, "input_size": "160x160"}
    detector = spread(build("torchvision", sample, "160x160", num_classes=10, norm=norm))
    assert_same(detector, write(detector, tmp_path), noise(1, (160, 160)))


@pytest.mark.slow
def test_it_runs_where_smnas_is_not(tmp_path: Path) -> None:
    """In another process; a file with other weights is noticed."""
    detector = spread(plan_of("cascade3").build())
    path = write(detector, tmp_path)
    assert check_python(path, path.with_suffix(".pt"), detector, noise(2)).agrees
    path.write_text(path.read_text() + "import smnas\n")
    with pytest.raises(DeployError, match="does not run by itself: .*smnas"):
        check_python(path, path.with_suffix(".pt"), detector, noise(2))


def test_only_detectors_of_torchvision_s_parts() -> None:
    with pytest.raises(DeployError, match="--python: wanted a detector of torchvision's parts"):
        to_python(nn.Linear(1, 1), "A layer", CATEGORIES, {})
