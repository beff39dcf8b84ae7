from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from nni.experiment.config import ExperimentConfig

from smnas.encoding import Encoding
from smnas.errors import ConfigError
from smnas.experiment import SearchSettings, load_experiment
from smnas.spaces import open_space
from smnas.tuner import ParetoTuner

GOOD = {
    "experimentName": "mine",
    "searchSpace": {"x": {"_type": "choice", "_value": [1, 2]}},
    "trialCommand": "smnas trial mine.yml --data x",
    "trialConcurrency": 2,
    "maxTrialNumber": 10,
    "maxExperimentDuration": "2h",
    "maxTrialDuration": "30m",
    "trainingService": {"platform": "local"},
    "tuner": {
        "className": "smnas.tuner.ParetoTuner",
        "codeDirectory": ".",
        "classArgs": {"space": "a.b:C", "reference_point": {"latency_ms": 100}, "seed": 3},
    },
}


def write(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "mine.yml"
    content = {**GOOD, **changes}
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return path


def test_a_good_file(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path))
    assert experiment.name == "mine" and experiment.workers == 2 and experiment.max_trials == 10
    assert experiment.max_hours == 2.0 and experiment.trial_seconds == 1800.0
    assert experiment.directory == tmp_path
    assert experiment.search.space == "a.b:C" and experiment.search.seed == 3
    objectives = experiment.search.objective_vector()
    assert dict(objectives.directions) == {"latency_ms": "minimize", "map": "maximize"}
    assert dict(objectives.reference) == {"latency_ms": 100, "map": 0.0}


def test_defaults(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        experimentName=None,
        maxTrialNumber=None,
        maxExperimentDuration=None,
        maxTrialDuration=None,
    )
    experiment = load_experiment(path)
    assert experiment.name == "mine"
    assert (experiment.max_trials, experiment.max_hours, experiment.trial_seconds) == (None,) * 3


def with_class_args(**changes: object) -> dict:
    args = {**GOOD["tuner"]["classArgs"], **changes}  # type: ignore[index]
    return {
        "className": "x.Y",
        "codeDirectory": ".",
        "classArgs": {k: v for k, v in args.items() if v is not None},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maxTrialNumbr": 3}, "no setting named 'maxTrialNumbr'; did you mean 'maxTrialNumber'"),
        ({"maxTrialNumber": 0}, "maxTrialNumber: wanted a number above 0, got 0"),
        ({"trialConcurrency": -1}, "trialConcurrency: wanted a number above 0, got -1"),
        ({"maxTrialDuration": "soon"}, "maxTrialDuration: wanted a time such as 30m or 2h"),
        ({"maxExperimentDuration": "0h"}, "maxExperimentDuration: wanted a number above 0"),
        ({"trialCommand": None}, "wanted trialCommand, got none"),
        ({"tuner": None}, "wanted tuner, got none"),
        ({"trialConcurrency": "two"}, "trialConcurrency: wanted"),
        ({"trialCommand": "smnas trial --data x"}, "wanted smnas trial SPACE, got no SPACE"),
        (
            {"trialCommand": "smnas trial other.yml"},
            "wanted this file or a.b:C as the trial's space",
        ),
        (
            {
                "trialCommand": "smnas trial a.b:C",
                "tuner": with_class_args(recipe={"epochs": 2}),
            },
            "wanted this file or a.b:C as the trial's space",
        ),
        ({"tuner": with_class_args(recipe={"epoch": 2})}, "recipe: .*; did you mean 'epochs'?"),
        ({"tuner": with_class_args(recipe={"flip": 2})}, r"recipe.flip: wanted a number in \[0, 1"),
        ({"tuner": with_class_args(recipe=[2])}, "recipe: wanted keys and values"),
        ({"tuner": with_class_args(pruning={"margn": 0})}, "pruning: .*; did you mean 'margin'?"),
        ({"tuner": with_class_args(pruning=0.02)}, "pruning: wanted keys and values, got 0.02"),
        (
            {"tuner": with_class_args(early_stoping={})},
            "no setting named 'early_stoping'; did you mean 'early_stopping'",
        ),
        (
            {"tuner": with_class_args(recipe={"epochs": 3}, early_stopping={"rungs": [1, 3]})},
            "early_stopping: rungs: wanted epochs before the last of 3, got 3",
        ),
        ({"tuner": with_class_args(proxy_tau=7)}, "proxy_tau: wanted a number from -1 to 1, got 7"),
        ({"tuner": with_class_args(proxy_tau="high")}, "proxy_tau: wanted a number, got 'high'"),
        ({"trialCommand": "smnas trial 'x"}, "trialCommand: No closing quotation"),
        ({"tuner": with_class_args(populaton=4)}, "did you mean 'population'"),
        ({"tuner": with_class_args(space=None)}, "classArgs: wanted space: package.module:Class"),
        ({"tuner": with_class_args(population="8")}, "population: wanted a whole number, got '8'"),
        ({"tuner": with_class_args(seed=True)}, "seed: wanted a whole number, got True"),
        ({"tuner": with_class_args(objectives=["map"])}, "objectives: wanted keys and values"),
        ({"tuner": with_class_args(objectives={"map": "up"})}, "map: wanted minimize or maximize"),
        (
            {"tuner": with_class_args(reference_point={})},
            r"wanted a value for each of \['latency_ms'",
        ),
        ({"trainingService": {"platform": "moon"}}, "mine.yml: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_experiment(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("- a\n- b\n", "wanted keys and values"), ("a: [", "no YAML"), ("", "got None")],
)
def test_what_is_no_experiment_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.yml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_experiment(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="experiment file .*none.yml: No such file"):
        load_experiment(tmp_path / "none.yml")


def test_settings_survive_json() -> None:
    args = GOOD["tuner"]["classArgs"]  # type: ignore[index]
    settings = SearchSettings.from_class_args(args, "here")
    assert SearchSettings.from_class_args(settings.to_json(), "here") == settings


@pytest.fixture(autouse=True)
def _home_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NNI wants the SSH key that a remote experiment names to be there."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id_rsa").touch()
    monkeypatch.setenv("HOME", str(home))


FILES = sorted((Path(__file__).parents[1] / "experiments").rglob("*.yml"))
SHIPPED = [path for path in FILES if path.parent.name != "general"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name + "-" + path.stem)
def test_nnictl_takes_every_shipped_file(path: Path) -> None:
    """What `nnictl create` does with a file before it starts anything, and the tuner's check."""
    config = ExperimentConfig.load(path)
    config.validate()
    assert config.tuner.class_name == "smnas.tuner.ParetoTuner"
    ParetoTuner(**config.tuner.class_args)


def test_an_experiment_without_a_space_is_for_nnictl_only() -> None:
    (general,) = [path for path in FILES if path.parent.name == "general"]
    with pytest.raises(
        ConfigError, match="forest.yml: tuner.classArgs: wanted space: .* nnictl only"
    ):
        load_experiment(general)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name + "-" + path.stem)
def test_every_shipped_experiment_loads(path: Path) -> None:
    experiment = load_experiment(path)
    assert bool(experiment.search.baselines) == (experiment.search.stage == "structural")
    assert re.match(rf"(/\S+/)?smnas trial {path.name} ", experiment.trial_command)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name + "-" + path.stem)
def test_search_space_files_are_in_step_with_their_spaces(path: Path) -> None:
    encoding = Encoding.of(open_space(str(path)))
    kept = json.loads(path.with_suffix(".search_space.json").read_text())
    assert kept == encoding.nni_search_space()
    for sample in load_experiment(path).search.baselines.values():
        encoding.check(sample)
