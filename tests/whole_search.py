"""What tests of whole searches share: the command line, and experiments of made-up trials."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from smnas import cli
from smnas.journal import Asked, read

HERE = Path(__file__).parent
FAKE_TRIAL = HERE / "fake_trial.py"
BASELINE = {
    "backbone": "resnet50",
    "neck": "fpn",
    "neck_start": 2,
    "neck_end": 5,
    "neck_width": 256,
    "rpn": "rpn",
    "head": "rcnn",
    "input_size": "128x128",
}


def write_experiment(
    folder: Path,
    seconds: float = 0.0,
    name: str = "toy",
    trials: int = 20,
    **class_args: object,
) -> Path:
    """An experiment file whose trials take `seconds` and no training."""
    path = folder / f"{name}.yml"
    content = {
        "searchSpace": {"unused": {"_type": "choice", "_value": [1, 2]}},
        "trialCommand": f"PYTHONPATH={HERE.parent} {sys.executable} {FAKE_TRIAL} {seconds}",
        "trialConcurrency": 1,
        "maxTrialNumber": trials,
        "trainingService": {"platform": "local"},
        "tuner": {
            "className": "smnas.tuner.ParetoTuner",
            "codeDirectory": ".",
            "classArgs": {
                "space": "search_spaces.structural:StructuralSpace",
                "space_args": {"input_sizes": ["96x96", "128x128"]},
                "reference_point": {"latency_ms": 60},
                "population": 6,
                "baselines": {"faster_rcnn": BASELINE},
                **class_args,
            },
        },
    }
    path.write_text(yaml.safe_dump(content))
    return path


def smnas(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line in this process, where torch is loaded already."""
    out, err = io.StringIO(), io.StringIO()
    status: str | int | None = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["smnas", *map(str, words)])
        patch.setenv("COLUMNS", "250")
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess([], status, out.getvalue(), err.getvalue())


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "smnas.cli", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE.parent)}


def asked(run: Path) -> list[str]:
    return [e.candidate.identity for e in read(run).events if isinstance(e, Asked)]


def outcomes(run: Path) -> int:
    journal = run / "journal.jsonl"
    return journal.read_text().count('"event":"outcome"') if journal.exists() else 0


def assert_refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("smnas: "), done.stderr
    assert message in lines[0]
