"""Experiment files: NNI's own YAML, read with NNI's own loader, checked into frozen dataclasses.

The same file runs under `smnas search` and `nnictl create`. What only the search needs stands under
`tuner.classArgs`, what a trial needs in `trialCommand`. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from nni.experiment.config import ExperimentConfig
from nni.experiment.config.utils import parse_time

from smnas.detectors.components import LIBRARIES
from smnas.errors import ConfigError, check_names, nearest
from smnas.objectives.vector import DEFAULT_DIRECTIONS, Objectives
from smnas.records import Sample
from smnas.stopping import early_stopping_from, pruning_from
from smnas.training.recipe import Recipe

DATA_VARIABLE = "SMNAS_DATA"
"""Environment variable: the data set that the shipped experiment files take for their own."""


@dataclass(frozen=True)
class SearchSettings:
    """What `tuner.classArgs` holds.

    Args:
        space: `package.module:Class` of an NNI model space; None to search NNI's own search space
            under `nnictl`, with objectives of one's own.
        space_args: its arguments.
        objectives: `{metric: "minimize" | "maximize"}`; default latency against mAP.
        reference_point: `{metric: value}` for the hypervolume; `map` may be left out (0).
        algorithm: name or `package.module:Class`, see `smnas.optimizer`.
        algorithm_args: of the algorithm.
        population: at least 2.
        recipe: how trials train: `{argument: value}` of `smnas.training.recipe.Recipe`.
        proxy_tau: Kendall's tau between mAP after this recipe and after long training, where it has
            been measured, -1 to 1; None where it is not known. Only reports read it.
        seed: at least 0.
        baselines: `{name: sample}`, known good detectors; asked first.
        generational: wait for whole generations.
        noise_aware: measure the front again at the end of the search, and report with it what is
            beaten by no more than the spread of latency.
        pruning: skip trainings that cannot pay, `{argument: value}` of `smnas.stopping.Pruning`;
            None for none.
        early_stopping: end trainings that will probably not pay, `{argument: value}` of
            `smnas.stopping.EarlyStopping`; None for none.
        stage: `structural` or `modular`; the name of a later stage's folder.
        groups: detectors of the earlier stage's front whose inside is searched, at least 1; counts
            in a later stage only.
        library: that detectors are built with: `auto`, `detectron2` or `torchvision`; None leaves
            it to the space.
    """

    space: str | None = None
    space_args: Mapping[str, Any] = field(default_factory=dict)
    objectives: Mapping[str, str] = field(
        default_factory=lambda: {"latency_ms": "minimize", "map": "maximize"}
    )
    reference_point: Mapping[str, float] = field(default_factory=dict)
    algorithm: str = "nsga2"
    algorithm_args: Mapping[str, Any] = field(default_factory=dict)
    population: int = 20
    recipe: Mapping[str, Any] = field(default_factory=dict)
    proxy_tau: float | None = None
    seed: int = 0
    baselines: Mapping[str, Sample] = field(default_factory=dict)
    generational: bool = False
    noise_aware: bool = False
    # None rather than empty: a journal from before these keys still belongs to its experiment
    pruning: Mapping[str, Any] | None = None
    early_stopping: Mapping[str, Any] | None = None
    stage: str = "structural"
    groups: int = 3
    library: str | None = None

    @classmethod
    def from_class_args(cls, args: Mapping[str, Any] | None, where: str) -> SearchSettings:
        """Checks names and types.

        Raises:
            ConfigError: names the place, the key, what was wanted and what was got.
        """
        given = dict(args or {})
        fields = {f.name: f for f in dataclasses.fields(cls)}
        check_names(given, fields, where)
        if "space" not in given and "objectives" not in given:
            raise ConfigError(
                f"{where}: wanted space: package.module:Class, or objectives of your own for the"
                " experiment's search space, got neither"
            )
        for name, value in given.items():
            _check_type(f"{where}: {name}", value, _KINDS[str(fields[name].type)])
        settings = cls(**given)
        settings._check_library(where)
        settings.objective_vector()
        recipe = Recipe.from_mapping(settings.recipe, where)
        pruning_from(settings.pruning, where)
        early_stopping_from(
            settings.early_stopping, where, recipe.epochs if settings.space else None
        )
        if settings.proxy_tau is not None and not -1 <= settings.proxy_tau <= 1:
            wanted = "wanted a number from -1 to 1"
            raise ConfigError(f"{where}: proxy_tau: {wanted}, got {settings.proxy_tau!r}")
        return settings

    @property
    def space_arguments(self) -> dict[str, Any]:
        """`space_args`, and the library where one is set."""
        own = {} if self.library is None else {"library": self.library}
        return {**self.space_args, **own}

    def _check_library(self, where: str) -> None:
        if self.library is None:
            return
        if self.library not in LIBRARIES:
            near = nearest(self.library, LIBRARIES)
            wanted = f"wanted one of {list(LIBRARIES)}"
            raise ConfigError(f"{where}: library: {wanted}, got {self.library!r}{near}")
        if "library" in self.space_args:
            raise ConfigError(f"{where}: library: wanted it here or in space_args, got both")

    def named_space(self, where: str) -> str:
        """The `space`, where there has to be one.

        Raises:
            ConfigError: there is none.
        """
        if self.space is None:
            raise ConfigError(
                f"{where}: wanted space: package.module:Class, got none; without one the experiment"
                " runs under nnictl only"
            )
        return self.space

    def objective_vector(self) -> Objectives:
        """The objectives with their reference point.

        Raises:
            ConfigError: a direction or a reference value is missing or wrong.
        """
        known = {name: 0.0 for name, d in DEFAULT_DIRECTIONS.items() if d == "maximize"}
        defaults = {name: value for name, value in known.items() if name in self.objectives}
        return Objectives(self.objectives, {**defaults, **self.reference_point})

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Experiment:
    """One experiment file.

    Args:
        path: of the file.
        name: `experimentName`, else the file's stem.
        search: `tuner.classArgs`.
        trial_command: shell command of a trial.
        directory: where it runs (`trialCodeDirectory`).
        workers: `trialConcurrency`.
        gpus_per_trial: `trialGpuNumber`; more than 0 gives each worker a GPU.
        max_trials: `maxTrialNumber`, None for no limit.
        max_hours: `maxExperimentDuration` in hours, None for no limit.
        trial_seconds: `maxTrialDuration` in seconds, None for no limit.
    """

    path: Path
    name: str
    search: SearchSettings
    trial_command: str
    directory: Path
    workers: int
    gpus_per_trial: int = 0
    max_trials: int | None = None
    max_hours: float | None = None
    trial_seconds: float | None = None


def load_experiment(path: Path) -> Experiment:
    """Reads and checks an experiment file.

    Raises:
        ConfigError: the file is missing or no YAML, or a key or value is wrong; names file and key.
    """
    config = _load_nni(path)
    search = SearchSettings.from_class_args(
        None if config.tuner is None else config.tuner.class_args, f"{path}: tuner.classArgs"
    )
    try:
        config.validate()
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{path}: {_nni_reason(error)}") from error
    search.named_space(f"{path}: tuner.classArgs")
    base = path.resolve().parent
    if not config.trial_command:
        raise ConfigError(f"{path}: wanted trialCommand, got none")
    experiment = Experiment(
        path=path,
        name=config.experiment_name or path.stem,
        search=search,
        trial_command=config.trial_command,
        directory=(base / config.trial_code_directory).resolve(),
        workers=config.trial_concurrency,
        gpus_per_trial=config.trial_gpu_number or 0,
        max_trials=config.max_trial_number,
        max_hours=_hours(config.max_experiment_duration),
        trial_seconds=_seconds(config.max_trial_duration),
    )
    _check_trial_command(experiment)
    return experiment


_FIRST_LEVEL = [
    "experimentName", "experimentType", "searchSpaceFile", "searchSpace", "trialCommand",
    "trialCodeDirectory", "trialConcurrency", "trialGpuNumber", "maxExperimentDuration",
    "maxTrialNumber", "maxTrialDuration", "nniManagerIp", "useAnnotation", "debug", "logLevel",
    "experimentWorkingDirectory", "tunerGpuIndices", "tuner", "assessor", "trainingService",
    "sharedStorage",
]  # fmt: skip

_POSITIVE = ["trialConcurrency", "maxTrialNumber", "maxExperimentDuration", "maxTrialDuration"]


def _load_nni(path: Path) -> ExperimentConfig:
    data = read_yaml(path)
    # NNI's own message for a misspelt key names neither the file nor what was meant
    for key in data:
        if _plain(key) not in {_plain(known) for known in _FIRST_LEVEL}:
            raise ConfigError(f"{path}: no setting named {key!r}{nearest(str(key), _FIRST_LEVEL)}")
    for key in _POSITIVE:
        if key in data:
            _check_positive(f"{path}: {key}", data[key])
    for key in ("trialCommand", "trialConcurrency", "tuner", "trainingService"):
        if key not in data:
            raise ConfigError(f"{path}: wanted {key}, got none")
    try:
        return ExperimentConfig.load(path)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(f"{path}: {_nni_reason(error)}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that must hold a mapping.

    Raises:
        ConfigError: the file is missing, unreadable, no YAML, or holds something else.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"experiment file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"experiment file {path}: no YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(data, dict):
        raise ConfigError(f"experiment file {path}: wanted keys and values, got {data!r:.60}")
    return data


def _check_trial_command(experiment: Experiment) -> None:
    """The trial must build the space that is searched, and train as the file says: it reads both
    from this very file.
    """
    words = _words(experiment)
    # on remote workers smnas is named by its whole path
    if len(words) < 2 or (Path(words[0]).name, words[1]) != ("smnas", "trial"):
        return
    if len(words) < 3 or words[2].startswith("-"):
        raise ConfigError(
            f"{experiment.path}: trialCommand: wanted smnas trial SPACE, got no SPACE"
        )
    named = (experiment.directory / words[2]).resolve()
    same_file = named == experiment.path.resolve()
    search = experiment.search
    own = search.space_args or search.recipe or search.library
    plain_space = words[2] == search.space and not own
    if not (same_file or plain_space):
        raise ConfigError(
            f"{experiment.path}: trialCommand: wanted this file or {experiment.search.space} "
            f"as the trial's space, got {words[2]}"
        )


def _words(experiment: Experiment) -> list[str]:
    try:
        return shlex.split(experiment.trial_command)
    except ValueError as error:
        raise ConfigError(f"{experiment.path}: trialCommand: {error}") from error


def _check_positive(where: str, value: Any) -> None:
    seconds = value
    if isinstance(value, str):
        try:
            seconds = parse_time(value)
        except (ValueError, KeyError, IndexError) as error:
            raise ConfigError(f"{where}: wanted a time such as 30m or 2h, got {value!r}") from error
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigError(f"{where}: wanted a number above 0, got {value!r}")


_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "str": (str, "text"),
    "str | None": ((str, type(None)), "text"),
    "int": (int, "a whole number"),
    "bool": (bool, "true or false"),
    "float | None": ((int, float, type(None)), "a number"),
    "Mapping[str, Any]": (dict, "keys and values"),
    "Mapping[str, Any] | None": ((dict, type(None)), "keys and values"),
    "Mapping[str, str]": (dict, "keys and values"),
    "Mapping[str, float]": (dict, "keys and values"),
    "Mapping[str, Sample]": (dict, "keys and values"),
}


def _check_type(where: str, value: Any, kind: tuple[type | tuple[type, ...], str]) -> None:
    wanted, words = kind
    mistaken_bool = wanted is int and isinstance(value, bool)
    if mistaken_bool or not isinstance(value, wanted):
        raise ConfigError(f"{where}: wanted {words}, got {value!r}")


def _plain(key: Any) -> str:
    return str(key).replace("_", "").lower()


def _nni_reason(error: Exception) -> str:
    """What NNI says; where it asserts without a word, the line that it asserts."""
    line = traceback.extract_tb(error.__traceback__)[-1].line
    return re.sub(r"\s+", " ", str(error)) or f"{type(error).__name__}: {line}"


def _seconds(duration: str | int | None) -> float | None:
    return None if duration is None else float(parse_time(duration))


def _hours(duration: str | int | None) -> float | None:
    seconds = _seconds(duration)
    return None if seconds is None or math.isinf(seconds) else seconds / 3600
