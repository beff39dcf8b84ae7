"""ONNX under ONNX Runtime finds what the detector finds, at its size and at others, or it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from found_detectors import IDS, keep_weights, noise, plan_of, spread, write_digits, write_run
from whole_search import assert_refused, smnas

from smnas.deploy import export
from smnas.deploy.onnx_export import OnnxDetector, export_onnx
from smnas.deploy.parity import compare
from smnas.deploy.verify import at_size, findings, side_by_side
from smnas.errors import DeployError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with weights, and data."""
    folder = tmp_path_factory.mktemp("export")
    run = write_run(folder / "run", data=str(write_digits(folder / "data", train=20, val=1)))
    keep_weights(run, "retinanet")
    return folder


@pytest.mark.slow
def test_the_command_line_compares_and_times(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = f"run#{IDS['retinanet']}"
    words = ("export", target, "-o", "model.onnx", "--no-compile")
    done = smnas(*words, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["onnx"]
    (parity,) = record["parity"]
    assert parity["pictures"] == 20 and parity["alone"] == 0 and parity["size"] == [96, 72]
    assert parity["detections"] > 100 and parity["box_px"] < 0.01 and parity["score"] < 1e-4
    assert {name: one["count"] >= 5 for name, one in record["latency"].items()} == {
        "eager": True, "onnxruntime": True,
    }  # fmt: skip

    class Wrong(OnnxDetector):
        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            found = super().forward(images)
            return [one | {"boxes": one["boxes"] + 1} for one in found]

    before = (folder / "model.onnx").read_bytes()
    monkeypatch.setattr(export, "OnnxDetector", Wrong)
    refused = smnas(*words, cwd=folder)
    assert_refused(refused, "wanted at most 0.5% of the detections without a partner")
    assert (folder / "model.onnx").read_bytes() == before
    assert not list(folder.glob(".export-*"))


def test_files_take_their_places_only_when_all_is_well(tmp_path: Path) -> None:
    old, none = tmp_path / "old.py", tmp_path / "none.pt"
    old.write_text("old")
    with pytest.raises(DeployError), export._kept_if_right(old, none) as new:
        for path in new:
            path.write_text("new")
        raise DeployError("they do not agree")
    assert old.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["old.py"]
    with export._kept_if_right(old, none) as new:
        for path in new:
            path.write_text("new")
    assert old.read_text() == none.read_text() == "new" and len(list(tmp_path.iterdir())) == 2


def test_a_python_file_by_the_command_line(folder: Path) -> None:
    target = f"run#{IDS['retinanet']}"
    done = smnas("export", target, "--python", "found.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "20 pictures of 96x72" in done.stdout and "0 without a partner" in done.stdout
    assert (folder / "found.pt").is_file()
    assert "Detector 6 of toy" in (folder / "found.py").read_text()


def test_what_export_wants(folder: Path) -> None:
    refused = smnas("export", "run#6", cwd=folder)
    assert_refused(refused, "wanted -o FILE.onnx, --python or --detectron2, got none")
    refused = smnas("export", "run#3", "-o", "model.onnx", cwd=folder)
    assert_refused(refused, "run#3: wanted its weights")
    few = write_digits(folder / "few", train=2, val=1)
    refused = smnas("export", "run#6", "-o", "model.onnx", "--data", few, cwd=folder)
    assert_refused(refused, "wanted at least 20 training pictures to compare detectors on, got 2")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["rcnn", "cascade3"])
def test_any_size_in_whole_cells(head: str, tmp_path: Path) -> None:
    """With proposals of both kinds; a picture in which nothing is found is fine, too."""
    detector, path = spread(plan_of(head).build()), tmp_path / "model.onnx"
    export_onnx(detector, (96, 72), path, dynamic=True)
    onnx = OnnxDetector(path, threads=1)
    for size in ((96, 96), (160, 128)):
        pictures = noise(3, size)
        parity = compare(findings(at_size(detector, size), pictures), findings(onnx, pictures))
        assert parity.agrees and parity.detections > 100, parity


@pytest.mark.slow
def test_compilers_that_fail_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(pictures: list[torch.Tensor]) -> None:
        raise RuntimeError("no compiler\nmore")

    monkeypatch.setattr(torch, "compile", lambda detector: fail)
    detector = spread(plan_of("retinanet").build())
    found = side_by_side(detector, detector, (96, 72), 1, compiled=True)  # type: ignore[arg-type]
    (error,) = found["torch.compile"].values()
    assert error.endswith("cannot be compiled (batch 1, fp32): RuntimeError: no compiler")
    table = export.latency_table(dict(found))
    assert table.row_count == 3 and "no compiler" in str(table.caption)
