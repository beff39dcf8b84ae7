"""The import rule of the house: what must stay light, and who may import which library."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "smnas").rglob("*.py"), *(ROOT / "search_spaces").rglob("*.py")])

BLOCKED_IMPORTS = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} must not be imported here")

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocker())
for module in sys.argv[2].split(","):
    __import__(module)
"""


def import_blocked(blocked: str, modules: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED_IMPORTS, blocked, modules]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("blocked", "modules"),
    [
        (
            "torch,torchvision,nni,pymoo,matplotlib,pycocotools",
            "smnas,smnas.records,smnas.errors,smnas.journal,smnas.study,smnas.runner,smnas.cli,"
            "smnas.quiet,smnas.gpu,smnas.machine,smnas.objectives.vector,smnas.data.split,"
            "smnas.training.recipe,smnas.report.command,smnas.cli_deploy,smnas.cli_options",
        ),
        (
            "torch,torchvision,detectron2,matplotlib,pytorch_lightning",
            "smnas.encoding,smnas.experiment,smnas.optimizer,smnas.pareto,smnas.display,"
            "smnas.report.tables,smnas.report.result,smnas.stages,smnas.detectors.operators,"
            "smnas.report.page,smnas.report.frame",
        ),
    ],
)
def test_light_modules_import_without_the_heavy_libraries(blocked: str, modules: str) -> None:
    done = import_blocked(blocked, modules)
    assert done.returncode == 0, done.stderr


def test_the_blocker_blocks() -> None:
    done = import_blocked("torch", "smnas.trial")
    assert done.returncode != 0 and "torch must not be imported here" in done.stderr


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("matplotlib", {"smnas/report/plots.py"}),
        ("pandas", {"smnas/report/frame.py", "smnas/__init__.py"}),
        ("pymoo.algorithms", {"smnas/algorithms.py"}),
        ("sklearn", {"smnas/regression.py", "smnas/surrogate.py", "smnas/data/digits.py"}),
        (
            "pymoo",
            {
                "smnas/algorithms.py",
                "smnas/operators.py",
                "smnas/pareto.py",
                "smnas/report/result.py",
                "smnas/__init__.py",
            },
        ),
        ("pycocotools", {"smnas/data/coco.py", "smnas/training/evaluation.py"}),
        (
            "detectron2",
            {
                f"smnas/detectors/detectron2/{name}.py"
                for name in (
                    "backbones", "configs", "evaluation", "guided_anchoring", "layers", "lazy",
                    "parts", "registry",
                )  # fmt: skip
            },
        ),
        (
            "smnas.detectors.detectron2",
            {
                *(str(p.relative_to(ROOT)) for p in SOURCES if p.parent.name == "detectron2"),
                "smnas/training/evaluation.py",
                "smnas/deploy/lazy_config.py",
            },
        ),
        ("nni.nas", {"smnas/detectors/nas.py", "smnas/nas.py"}),
        ("pynvml", {"smnas/gpu.py"}),
        ("fasteners", {"smnas/quiet.py", "smnas/search.py", "smnas/deploy/train.py"}),
        ("onnx", set()),
        ("onnxruntime", {"smnas/deploy/onnx_export.py"}),
        ("torch.utils.tensorboard", {"smnas/deploy/progress.py"}),
        (
            "smnas.deploy",
            {
                *(str(p.relative_to(ROOT)) for p in SOURCES if p.parent.name == "deploy"),
                "smnas/cli.py",
                "smnas/cli_deploy.py",
            },
        ),
        ("smnas.cli", set()),
    ],
)
def test_who_imports_what(library: str, allowed: set[str]) -> None:
    pattern = re.compile(rf"^\s*(from|import) {re.escape(library)}\b", re.MULTILINE)
    found = {str(p.relative_to(ROOT)) for p in SOURCES if pattern.search(p.read_text())}
    assert found <= allowed


@pytest.mark.parametrize(
    "pattern",
    [
        r"np\.random\.(?!default_rng|Generator|SeedSequence)\w+",
        r"^import random|^from random|\brandom\.seed",
        r"torch\.(rand|randn|randint|randperm)\((?!.*generator=)",
    ],
)
def test_no_global_random_state(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in SOURCES
        for line in path.read_text().splitlines()
        if re.search(pattern, line)
    ]
    assert not found


def test_only_programs_of_their_own_seed_torch() -> None:
    found = {str(p.relative_to(ROOT)) for p in SOURCES if "torch.manual_seed" in p.read_text()}
    assert found == {"smnas/trial.py", "smnas/deploy/train.py"}
