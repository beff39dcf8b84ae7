"""Detectors written down for plain detectron2: the file builds the same and trains by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from two_libraries import (
    E0,
    E0_ARGUMENTS,
    MODULAR,
    STRUCTURAL,
    STRUCTURES,
    build,
    count,
    smallest_input,
)
from whole_search import smnas

from smnas.data.digits import make_digits
from smnas.deploy.lazy_config import export_lazy_config, lazy_config
from smnas.deploy.saved import open_detector
from smnas.errors import RunError
from smnas.journal import Journal, read
from smnas.records import Candidate, Measured

PLAIN = """
import sys
sys.modules["smnas"] = sys.modules["search_spaces"] = None  # not to be imported
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import SimpleTrainer

torch.set_num_threads(1)
config, data, count = sys.argv[1:]
for part in ("train", "val"):
    truth = f"{data}/annotations/instances_{part}.json"
    register_coco_instances(f"my_{part}", {}, truth, f"{data}/{part}")
cfg = LazyConfig.load(config)
model = instantiate(cfg.model)
assert sum(p.numel() for p in model.parameters()) == int(count)
cfg.optimizer.params.model = model
cfg.dataloader.train.total_batch_size = 2
cfg.dataloader.train.num_workers = 0
before = [p.clone() for p in model.parameters()]
trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), instantiate(cfg.optimizer))
instantiate(cfg.lr_multiplier)
trainer.train(0, 2)
assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
print("trained")
"""


def write_run(folder: Path) -> Path:
    """A run folder with one measured RetinaNet of torchvision's."""
    experiment = {"space": STRUCTURAL, "library": "torchvision", "stage": "structural"}
    space_args = {"input_sizes": ["96x96"], "norm": "gn", "head_width": 64, "neck_ends": [5]}
    journal = Journal.open(
        folder / "journal.jsonl",
        {"name": "toy", "experiment": {**experiment, "space_args": space_args}},
    )
    sample = {**STRUCTURES[6], "backbone": "resnet18", "neck_end": 5, "input_size": "96x96"}
    journal.asked(Candidate(3, "structural", sample))
    journal.told(3, Measured({"latency_ms": 1.0, "map": 0.1}, {"num_classes": 10}))
    journal.close()
    return folder


def test_only_a_run_s_candidates_can_be_exported(tmp_path: Path) -> None:
    write_run(tmp_path)
    with pytest.raises(RunError, match="#4: wanted a candidate of the run, got id 4"):
        open_detector(f"{tmp_path}#4")


detectron2 = pytest.mark.detectron2


@detectron2
def test_plain_detectron2_builds_it_and_trains(tmp_path: Path) -> None:
    """Without smnas, which must not even be importable."""
    pytest.importorskip("detectron2", reason="needs detectron2, see docs/detectron2.md")
    run = write_run(tmp_path / "run")
    export_lazy_config(open_detector(f"{run}#3").plan, tmp_path / "config.py")
    text = (tmp_path / "config.py").read_text()
    assert "import smnas" not in text and "from smnas" not in text
    assert "Detector 3 of toy" in text
    candidate = read(run).trials()[0].candidate
    ours = build("detectron2", candidate.sample, "96x96", num_classes=10, norm="gn")
    make_digits(tmp_path / "data", train=4, val=1, size=(96, 96), seed=0)
    (tmp_path / "plain.py").write_text(PLAIN)
    command = [sys.executable, "plain.py", "config.py", "data", str(count(ours))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.stdout.endswith("trained\n"), done.stderr[-2000:]


@detectron2
@pytest.mark.parametrize("sample", [*STRUCTURES, E0], ids=str)
def test_the_written_model_is_the_built_one(sample: dict, tmp_path: Path) -> None:
    """Name by name and shape by shape, so that checkpoints go from one to the other."""
    pytest.importorskip("detectron2", reason="needs detectron2, see docs/detectron2.md")
    from detectron2.config import LazyConfig, instantiate

    size, space, arguments = smallest_input(sample), STRUCTURAL, {"neck_ends": [5, 6, 7]}
    if sample is E0:
        space, arguments = MODULAR, E0_ARGUMENTS
    own = {**arguments, "input_sizes": [size], "head_width": 64}
    text = lazy_config(space, own, {**sample, "input_size": size}, 3)
    (tmp_path / "config.py").write_text(text)
    written = instantiate(LazyConfig.load(str(tmp_path / "config.py")).model)
    ours = build("detectron2", sample, size, space, **arguments).model
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert {name: value.shape for name, value in written.state_dict().items()} == shapes
    kinds = [type(module) for module in ours.modules()]
    assert [type(module) for module in written.modules()] == kinds


def test_sample_files_are_not_runs(tmp_path: Path) -> None:
    (tmp_path / "sample.json").write_text(json.dumps(STRUCTURES[0]))
    done = smnas("export", "sample.json", "--detectron2", "c.py", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "smnas: detector: wanted RUN#ID or a folder of smnas train, got 'sample.json'\n"
    )
