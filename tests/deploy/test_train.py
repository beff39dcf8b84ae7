"""The full training: what it keeps, that it goes on exactly, that processes share it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from found_detectors import IDS, keep_weights, plan_of, write_digits, write_run
from whole_search import assert_refused, command, environment, smnas

from smnas.deploy.progress import Scalars
from smnas.deploy.ranks import Ranks
from smnas.deploy.settings import Training
from smnas.deploy.train import CHECKPOINT, RESULT, train_detector
from smnas.errors import DeployError
from smnas.training.recipe import Recipe

RECIPE = Recipe(epochs=3, batch=2, lr=0.02)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


def training_of(data: Path, **settings: object) -> Training:
    return Training(**{"data": data, "recipe": RECIPE, "every": 0, **settings})  # type: ignore


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


class Killed(Exception):
    pass


def test_a_training_goes_on_exactly_and_ends_once(data: Path, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, after one that was kept; then whole; then asked again."""
    plan, whole = plan_of("retinanet"), tmp_path / "whole"
    training = training_of(data)
    lines: list[str] = []
    result = train_detector(plan, training, whole, Ranks(), say=lines.append)
    assert result["epochs"] == 3 and len(result["curve"]) == 3 and len(lines) == 3
    assert result["started_from"] == "scratch" and result["best_epoch"] is None
    assert len(result["classes"]) == 10 and 0 <= result["metrics"]["map"] <= 1
    assert json.loads((whole / RESULT).read_text()) == result

    def kill(line: str) -> None:
        if line.startswith("epoch 2"):
            raise Killed

    parts = tmp_path / "parts"
    with pytest.raises(Killed):
        train_detector(plan, training, parts, Ranks(), say=kill)
    assert not (parts / "weights.pt").exists()
    again: list[str] = []
    train_detector(plan, training, parts, Ranks(), say=again.append)
    assert again[0] == "going on after epoch 2" and len(again) == 2
    assert_equal(weights(parts), weights(whole))
    third: list[str] = []
    assert train_detector(plan, training, whole, Ranks(), say=third.append) == result
    assert not third


def test_another_training_in_the_same_folder_is_refused(data: Path, tmp_path: Path) -> None:
    plan = plan_of("retinanet")
    short = training_of(data, recipe=Recipe(epochs=1, batch=2), average=0.0)
    result = train_detector(plan, short, tmp_path, Ranks(), say=lambda line: None)
    assert result["weights"] == "last step"
    longer = training_of(data, recipe=Recipe(epochs=2, batch=2), average=0.0)
    with pytest.raises(DeployError, match="another training: recipe.epochs: it has 1, this one"):
        train_detector(plan, longer, tmp_path, Ranks())
    with pytest.raises(DeployError, match="detector.sample.head: it has 'retinanet'"):
        train_detector(plan_of("rcnn"), short, tmp_path, Ranks())


def test_patience_ends_it_with_the_best_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mAP is made up: .3, .2, .1 on a part of train that is not trained on."""
    values = iter((0.3, 0.2, 0.1))
    seen: list[set[int]] = []

    def evaluate(model: object, dataset: object, **options: object) -> dict[str, float]:
        seen.append(set(dataset.image_ids))  # type: ignore[attr-defined]
        return {"map": next(values)}

    monkeypatch.setattr("smnas.deploy.train.evaluate", evaluate)
    recipe = Recipe(epochs=9, batch=2, lr=0.02)
    training = training_of(data, recipe=recipe, every=1, patience=2, watch="search")
    result = train_detector(
        plan_of("retinanet"), training, tmp_path, Ranks(), say=lambda line: None
    )
    assert result["epochs"] == 3 and result["best_epoch"] == 1 and result["chosen_on"] == "search"
    assert [line["map"] for line in result["curve"]] == [0.3, 0.2, 0.1]
    assert_equal(weights(tmp_path), torch.load(tmp_path / "best.pt", weights_only=True))
    last = torch.load(tmp_path / CHECKPOINT, weights_only=True)["average"]
    assert any(
        not torch.equal(value, last[f"module.{name}"]) for name, value in weights(tmp_path).items()
    )
    truth = json.loads((data / "annotations" / "instances_train.json").read_text())
    assert seen and seen[0] < {image["id"] for image in truth["images"]}


def test_the_command_line_trains_and_evaluates(data: Path, tmp_path: Path) -> None:
    """From the trial's weights; the scalars can be read again, and evaluate says the same."""
    run = write_run(tmp_path / "run")
    target = f"run#{IDS['retinanet']}"
    words = ("train", target, "--epochs", 1, "-o", "out", "--from-trial", "--json")
    refused = smnas(*words, "--data", data, cwd=tmp_path)
    assert_refused(refused, "wanted its weights, got no file")
    keep_weights(run, "retinanet")
    done = smnas(*words, "--data", data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["started_from"] == "the trial's weights"
    kept = json.loads((tmp_path / "out" / "detector.json").read_text())["training"]
    assert kept["recipe"]["batch"] == 2 and kept["recipe"]["flip"] == 0  # the run's
    assert scalars(tmp_path / "out" / "tensorboard")["train/total"] == [0, 1, 2]
    again = smnas("evaluate", "out", "--json", cwd=tmp_path)
    found = json.loads(again.stdout)
    assert found["metrics"] == pytest.approx(record["metrics"]) and found["pictures"] == 3
    text = smnas("evaluate", target, "--data", data, cwd=tmp_path).stdout
    assert "objects" in text and "all" in text


def scalars(folder: Path) -> dict[str, list[int]]:
    """Steps of each scalar that TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_scalars_that_go_on_within_the_same_second_are_read_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard reads the files of one second by process number."""
    for process, steps in ((2, range(6)), (1, range(3, 9))):
        monkeypatch.setattr(os, "getpid", lambda number=process: number)
        written = Scalars(tmp_path, steps[0])
        for step in steps:
            written.step(step, {"total": 1.0})
        written.close()
    assert scalars(tmp_path)["train/total"] == list(range(9))


def arguments(data: Path, out: Path, epochs: int, *more: object) -> list[object]:
    target = f"run#{IDS['retinanet']}"
    common = ["train", target, "--epochs", epochs, "-o", out, "--data", data, "--every", 0]
    return [*common, "--device", "cpu", "--threads", 1, *more]


@pytest.mark.slow
def test_killed_for_good_and_uninterrupted_end_with_the_same_weights(
    data: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "run")
    words = command(*arguments(data, Path("killed"), 40))
    process = subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"epoch 2 "):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "weights.pt").exists()
    done = smnas(*arguments(data, Path("killed"), 40), cwd=tmp_path)
    assert done.returncode == 0 and "going on after epoch" in done.stdout, done.stderr
    assert smnas(*arguments(data, Path("whole"), 40), cwd=tmp_path).returncode == 0
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    steps = scalars(tmp_path / "killed" / "tensorboard")["train/total"]
    assert steps == list(range(120))


@pytest.mark.slow
def test_two_processes_share_each_batch(data: Path, tmp_path: Path) -> None:
    """Both end with one set of weights; the first one writes; a batch must be divisible."""
    write_run(tmp_path / "run")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "-m", "smnas.cli"]
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment(), "timeout": 500}
    options |= {"capture_output": True, "text": True}
    words = [*torchrun, *map(str, arguments(data, Path("two"), 2))]
    done = subprocess.run(words, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 1 ") == 1
    record = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert (
        record["epochs"] == 2 and len(scalars(tmp_path / "two" / "tensorboard")["train/total"]) == 6
    )
    odd = [*torchrun, *map(str, arguments(data, Path("odd"), 2, "--batch", 3))]
    done = subprocess.run(odd, **options)
    assert done.returncode != 0 and "--batch: wanted a multiple of the 2 processes" in done.stderr
