"""The trial program on tiny digit scenes: every way it can end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from smnas import trial
from smnas.cli import app
from smnas.data.coco import CocoDataset, DataFolder
from smnas.data.digits import make_digits
from smnas.data.split import split_ids
from smnas.detectors.space import load_space
from smnas.errors import ConfigError, DataError, SpaceError, TrialFailure
from smnas.records import Failed, Measured, outcome_from_json
from smnas.training.recipe import Recipe
from smnas.trial import Settings, run_from_command_line, run_trial

SPACE = "search_spaces.structural:StructuralSpace"
SAMPLE = {
    "backbone": "mobilenet_v2",
    "neck": "fpn",
    "neck_start": 3,
    "neck_end": 5,
    "neck_width": 64,
    "rpn": "rpn",
    "head": "rcnn",
    "input_size": "96x96",
}

YAML = """
tuner:
  classArgs:
    space: search_spaces.structural:StructuralSpace
    space_args: {input_sizes: [96x96], head_width: 64}
    reference_point: {latency_ms: 100}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digits(folder, train=8, val=2, size=(96, 96))
    return folder


@pytest.fixture
def settings(data: Path, tmp_path: Path) -> Settings:
    path = tmp_path / "tiny.yml"
    path.write_text(YAML)
    return Settings(str(path), data, Recipe(epochs=2, batch=4), device="cpu", threads=1)


@pytest.fixture(autouse=True)
def _one_thread_afterwards() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def changed(settings: Settings, **values: object) -> Settings:
    return Settings(**{**vars(settings), **values})  # type: ignore[arg-type]


ONE_EPOCH = Recipe(epochs=1, batch=4)


def test_a_trial_measures_everything_and_twice_the_same(settings: Settings, tmp_path: Path) -> None:
    epochs: list[dict[str, Any]] = []
    outcome = run_trial(settings, SAMPLE, epochs.append, tmp_path)
    assert isinstance(outcome, Measured)
    metrics = outcome.metrics
    assert {
        "map", "ap50", "ap75", "latency_ms", "latency_iqr_ms", "latency_count", "params_m",
        "macs_g", "train_seconds", "peak_memory_mb",
    } <= set(metrics)  # fmt: skip
    assert 0 <= metrics["map"] <= metrics["ap50"] <= 1
    assert [e["epoch"] for e in epochs] == [0, 1, 2] and epochs[-1]["map"] == metrics["map"]
    before = epochs.pop(0)
    assert before["epochs"] == 2 and before["latency_ms"] == metrics["latency_ms"]
    assert "map" not in before
    recipe = outcome.info["recipe"]
    assert recipe.startswith("2 epochs, batch 4, ")
    assert recipe.endswith(", GroupNorm with weight standardisation")
    assert outcome.info["curve"] == epochs and outcome.info["latency"]["input_size"] == (96, 96)
    again = run_trial(settings, SAMPLE, lambda epoch: None)
    assert isinstance(again, Measured)
    exact = ("map", "ap50", "ap75", "params_m", "macs_g")
    assert {n: metrics[n] for n in exact} == {n: again.metrics[n] for n in exact}
    assert again.info["curve"] == outcome.info["curve"]
    # the weights that were kept are the trained ones, and fit the detector
    detector = trial.build(settings, SAMPLE, 10)
    assert metrics["params_m"] == sum(p.numel() for p in detector.parameters()) / 1e6
    detector.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    # what it finds in a few pictures of the search split, for reports
    examples = json.loads((tmp_path / "examples.json").read_text())
    _, held_out = trial.open_data(settings)
    shown = {Path(picture["file"]).name for picture in examples["pictures"]}
    assert shown and shown <= {held_out.coco.imgs[key]["file_name"] for key in held_out.image_ids}


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_the_control_of_a_structure_is_the_structure(settings: Settings, backbone: str) -> None:
    """One network, written as a structural and as a modular sample: the same weights, the same
    course of training."""
    structural = {**SAMPLE, "backbone": backbone}
    space = load_space(
        "search_spaces.modular:ModularSpace", {"structure": structural, "input_sizes": ["96x96"]}
    )
    path = settings.data.parent / "inside.yml"
    path.write_text(YAML.replace("structural:StructuralSpace", "modular:ModularSpace"))
    measured = [
        run_trial(changed(settings, space=reference, recipe=ONE_EPOCH), sample, lambda record: None)
        for reference, sample in (
            (settings.space, structural),
            (str(path), space.from_structural(structural)),
        )
    ]
    structure, control = measured
    assert isinstance(structure, Measured) and isinstance(control, Measured)
    assert control.info["curve"] == structure.info["curve"]
    for name in ("map", "params_m", "macs_g"):
        assert control.metrics[name] == structure.metrics[name]


def test_another_seed_trains_otherwise(settings: Settings) -> None:
    def loss(seed: int) -> float:
        outcome = run_trial(
            changed(settings, seed=seed, recipe=ONE_EPOCH), SAMPLE, lambda epoch: None
        )
        assert isinstance(outcome, Measured)
        return outcome.info["curve"][0]["loss"]

    assert loss(0) != loss(1)


def test_what_is_too_slow_is_not_trained(settings: Settings) -> None:
    outcome = run_trial(changed(settings, max_latency_ms=1e-3), SAMPLE, pytest.fail)
    assert isinstance(outcome, Failed) and outcome.reason == "over_latency"
    assert "the bound is 0.001 ms" in outcome.detail
    assert outcome.metrics["latency_ms"] > 1e-3 and outcome.metrics["params_m"] > 0
    assert "map" not in outcome.metrics


def test_a_detector_that_finds_nothing_has_map_0(settings: Settings) -> None:
    outcome = run_trial(
        changed(settings, recipe=replace(ONE_EPOCH, lr=1e-9)), SAMPLE, lambda epoch: None
    )
    assert isinstance(outcome, Measured) and outcome.metrics["map"] == 0.0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TrialFailure("nan_loss", "step 3: loss nan"), "nan_loss"),
        (TrialFailure("out_of_memory", "also with half the batch"), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
    ],
)
def test_failures_keep_what_was_measured(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(trial, "train", fail)
    outcome = run_trial(settings, SAMPLE, lambda epoch: None)
    assert isinstance(outcome, Failed) and outcome.reason == reason
    assert set(outcome.metrics) >= {"latency_ms", "params_m", "macs_g"}


def test_nan_loss_for_real(settings: Settings) -> None:
    outcome = run_trial(
        changed(settings, recipe=replace(ONE_EPOCH, lr=1e30)), SAMPLE, lambda epoch: None
    )
    assert isinstance(outcome, Failed) and outcome.reason == "nan_loss"


def test_trains_on_train_without_the_search_split_and_never_opens_val(
    settings: Settings, data: Path, tmp_path: Path
) -> None:
    training, held_out = trial.open_data(settings)
    whole = CocoDataset(DataFolder.open(data).train)
    assert (training.image_ids, held_out.image_ids) == split_ids(whole.image_ids, 0.25)
    hidden = data / "val"
    hidden.rename(tmp_path / "val")
    hidden.mkdir()
    try:
        assert isinstance(
            run_trial(changed(settings, recipe=ONE_EPOCH), SAMPLE, lambda e: None), Measured
        )
    finally:
        hidden.rmdir()
        (tmp_path / "val").rename(hidden)


def test_the_program_writes_its_folder(settings: Settings, tmp_path: Path) -> None:
    sample = tmp_path / "sample.json"
    sample.write_text(json.dumps(SAMPLE))
    folder = tmp_path / "trial"
    assert run_from_command_line(settings, sample, folder, check_only=False) == 0
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    record = json.loads((folder / "outcome.json").read_text())
    assert record["sample"] == SAMPLE and record["outcome"]["state"] == "measured"
    assert record["outcome"]["info"]["curve"] == curve[1:]
    assert curve[0]["epoch"] == 0 and curve[0]["epochs"] == 2 and "latency_ms" in curve[0]
    assert (folder / "checkpoint.pt").exists()


def test_an_unforeseen_error_is_an_outcome_with_its_traceback(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(trial, "train", fail)
    sample = tmp_path / "sample.json"
    sample.write_text(json.dumps(SAMPLE))
    assert run_from_command_line(settings, sample, tmp_path, check_only=False) == 1
    outcome = json.loads((tmp_path / "outcome.json").read_text())["outcome"]
    assert outcome["reason"] == "error" and "ZeroDivisionError: of ours" in outcome["detail"]
    assert "Traceback" in capsys.readouterr().err


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What a trial in this process sends to NNI's manager."""
    sent: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "abc")
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path / "nni"))
    monkeypatch.setattr(trial.nni, "get_next_parameter", lambda: dict(SAMPLE))
    monkeypatch.setattr(trial.nni, "get_trial_id", lambda: "abc")
    for kind in ("intermediate", "final"):
        monkeypatch.setattr(
            trial.nni,
            f"report_{kind}_result",
            lambda metrics, kind=kind: sent.append((kind, metrics)),
        )
    return sent


def test_nni_gets_every_epoch_and_the_final_metrics(
    settings: Settings, tmp_path: Path, sent: list[tuple[str, dict[str, Any]]]
) -> None:
    assert run_from_command_line(settings, None, None, check_only=False) == 0
    assert [kind for kind, _ in sent] == ["intermediate"] * 3 + ["final"]
    before = sent.pop(0)[1]
    assert before["sample"] == SAMPLE and before["default"] == before["epoch"] == 0
    assert before["latency_ms"] == sent[-1][1]["latency_ms"] and before["epochs"] == 2
    assert all(metrics["default"] == metrics["map"] for _, metrics in sent)
    final = sent[-1][1]
    assert final["latency_ms"] > 0
    assert final["info"]["nni_trial"] == "abc" and final["info"]["device"]
    kept = json.loads((tmp_path / "nni" / "outcome.json").read_text())["outcome"]["metrics"]
    assert {name: final[name] for name in kept} == kept
    assert (tmp_path / "nni" / "checkpoint.pt").exists()


def test_nni_hears_why_a_trial_failed(
    settings: Settings, sent: list[tuple[str, dict[str, Any]]]
) -> None:
    slow = changed(settings, max_latency_ms=1e-3)
    assert run_from_command_line(slow, None, None, check_only=False) == 1
    ((kind, record),) = sent
    assert kind == "final" and record["reason"] == "over_latency"
    outcome = outcome_from_json(record)
    assert isinstance(outcome, Failed) and outcome.metrics["latency_ms"] > 1e-3
    sent.clear()
    with pytest.raises(DataError):
        run_from_command_line(changed(settings, data=Path("nowhere")), None, None, False)
    ((kind, record),) = sent
    assert record["reason"] == "error" and "nowhere" in record["detail"]


def test_a_trial_that_nni_stops_says_so(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    sent: list[tuple[str, dict[str, Any]]],
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_from_command_line(settings, None, None, check_only=False)
    (before, _), (kind, record) = sent
    assert before == "intermediate"
    assert kind == "final" and record["reason"] == "timeout"


def test_under_nni_seed_and_threads_come_from_the_experiment_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yml"
    path.write_text(f"trialConcurrency: 2\n{YAML}    seed: 7\n")
    given: list[Settings] = []
    monkeypatch.setattr(
        trial, "run_from_command_line", lambda settings, *rest: given.append(settings) or 0
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    runner = CliRunner()
    runner.invoke(app, ["trial", str(path), "--data", "x"])
    monkeypatch.setenv("NNI_TRIAL_JOB_ID", "abc")
    runner.invoke(app, ["trial", str(path), "--data", "x"])
    runner.invoke(app, ["trial", str(path), "--data", "x", "--seed", "0", "--threads", "3"])
    runner.invoke(app, ["trial", SPACE, "--data", "x"])
    assert [(s.seed, s.threads) for s in given] == [(7, None), (7, 2), (0, 3), (0, None)]


def test_check_only_looks_at_settings_space_and_pictures(
    settings: Settings, tmp_path: Path
) -> None:
    assert run_from_command_line(settings, None, None, check_only=True) == 0
    data = tmp_path / "digits"
    make_digits(data, train=3, val=2, size=(96, 96))
    next((data / "train").iterdir()).unlink()
    with pytest.raises(DataError, match="1 pictures are missing, for instance .*digits/train/"):
        run_from_command_line(changed(settings, data=data), None, None, check_only=True)
    with pytest.raises(SpaceError):
        run_from_command_line(changed(settings, space="x:Y"), None, None, check_only=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "fp8"}, "--precision: wanted fp32 or amp, got 'fp8'"),
        ({"max_latency_ms": 0.0}, "--max-latency-ms: wanted a number above 0, got 0.0"),
        ({"search_split": 1.0}, "--search-split: wanted a number between 0 and 1, got 1.0"),
    ],
)
def test_wrong_settings(settings: Settings, values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(settings, **values)


def test_a_sample_of_another_space_is_refused(settings: Settings) -> None:
    with pytest.raises(SpaceError, match="input_size"):
        run_trial(settings, {**SAMPLE, "input_size": "512x512"}, lambda epoch: None)


def test_one_training_picture_cannot_be_split(settings: Settings, tmp_path: Path) -> None:
    make_digits(tmp_path / "one", train=1, val=1, size=(96, 96))
    with pytest.raises(DataError, match="wanted at least 2 training pictures, got 1"):
        run_trial(changed(settings, data=tmp_path / "one"), SAMPLE, lambda epoch: None)


def test_cuda_where_there_is_none(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="wanted cuda, but torch finds no CUDA device"):
        run_trial(changed(settings, device="cuda"), SAMPLE, lambda epoch: None)


def test_a_trial_ends_with_the_search_that_started_it() -> None:
    """Its standard input is a pipe; when the other end is gone, so is the trial."""
    program = (
        "import time; from smnas.trial import _end_with_parent; _end_with_parent(); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        env={"SMNAS_WATCH_STDIN": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=50) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_trial_on_cuda_uses_mixed_precision(settings: Settings) -> None:
    outcome = run_trial(changed(settings, device="cuda"), SAMPLE, lambda epoch: None)
    assert isinstance(outcome, Measured)
    assert (
        outcome.info["latency"]["precision"] == "amp" and outcome.info["latency"]["channels_last"]
    )
    assert outcome.metrics["peak_memory_mb"] > 0
