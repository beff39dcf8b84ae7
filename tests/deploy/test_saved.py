"""What a user may name: a candidate of a run, a folder of a training, and what is neither."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from found_detectors import IDS, SPACE, keep_weights, plan_of, write_run

from smnas.deploy.saved import candidate, data_of, open_detector, write_plan
from smnas.errors import ConfigError, DataError, DeployError, RunError

CPU = torch.device("cpu")


def test_a_candidate_of_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", data="/data/mine")
    target = f"{run}#{IDS['rcnn']}"
    opened = open_detector(target)
    assert opened.plan.space == SPACE and opened.plan.title == "Detector 3 of toy"
    assert opened.plan.num_classes == 10 and opened.plan.library == "torchvision"
    assert opened.data == Path("/data/mine") and opened.categories is None
    with pytest.raises(DeployError, match="#3: wanted its weights, got no file .*trials/3"):
        opened.load(CPU)
    weights = keep_weights(run, "rcnn")
    (weights.parent / "examples.json").write_text(
        json.dumps({"categories": ["red", "white"], "pictures": []})
    )
    opened = open_detector(target)
    assert opened.categories == ({"id": 1, "name": "red"}, {"id": 2, "name": "white"})
    # of later releases
    more = {"categories": ["red", "white"], "category_ids": [7, 90], "data": "/d", "pictures": []}
    (weights.parent / "examples.json").write_text(json.dumps(more))
    opened = open_detector(target)
    assert opened.categories == ({"id": 7, "name": "red"}, {"id": 90, "name": "white"})
    assert opened.data == Path("/d")
    detector = opened.load(CPU)
    assert not detector.training
    state = torch.load(weights, weights_only=True)
    assert all(torch.equal(v, state[name]) for name, v in detector.state_dict().items())


def test_the_recipe_is_the_run_s_with_what_the_user_says(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    opened, recipe = candidate(f"{run}#3")
    assert opened.data is None
    made = recipe({"epochs": 12, "lr": None, "scale_jitter": (0.5, 1.5)})
    assert (made.epochs, made.batch, made.lr, made.flip) == (12, 2, 0.02, 0.0)
    assert made.scale_jitter == (0.5, 1.5)
    with pytest.raises(ConfigError, match="#3: recipe.flip: wanted a number in"):
        recipe({"flip": 2.0})


def test_the_data_are_those_named_then_those_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, _ = candidate(f"{write_run(tmp_path / 'run')}#3")
    monkeypatch.delenv("SMNAS_DATA", raising=False)
    with pytest.raises(DataError, match="#3: wanted --data FOLDER, because it is not recorded"):
        data_of(opened, None)
    monkeypatch.setenv("SMNAS_DATA", "elsewhere")
    assert data_of(opened, None) == Path("elsewhere")
    assert data_of(replace(opened, data=Path("known")), None) == Path("known")
    assert data_of(replace(opened, data=Path("known")), Path("named")) == Path("named")


def test_weights_in_a_later_stage_and_with_nni(tmp_path: Path) -> None:
    run = write_run(tmp_path / "experiment" / "smnas")
    own = run / "modular" / "trials" / "3"
    own.mkdir(parents=True)
    (own / "checkpoint.pt").touch()
    assert open_detector(f"{run}#3").weights == own / "checkpoint.pt"


def test_what_is_neither(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(RunError, match="#99: wanted a candidate of the run, got id 99"):
        open_detector(f"{run}#99")
    with pytest.raises(DeployError, match="wanted RUN#ID or a folder of smnas train, got"):
        open_detector(str(tmp_path))
    with pytest.raises(DeployError, match="train: wanted RUN#ID, got"):
        candidate(str(tmp_path))
    write_plan(tmp_path, plan_of("rcnn"), [], training={"data": "x"})
    with pytest.raises(DeployError, match="its training is not over"):
        open_detector(str(tmp_path))


def test_weights_of_another_detector(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    weights = keep_weights(run, "rcnn")
    torch.save({"weight": torch.zeros(1)}, weights)
    with pytest.raises(DeployError, match="wanted this detector's weights"):
        open_detector(f"{run}#3").load(CPU)
    weights.write_text("no weights")
    with pytest.raises(DeployError, match="cannot be read"):
        open_detector(f"{run}#3").load(CPU)
