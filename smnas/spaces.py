"""SPACE on the command line: `package.module:Class`, or an experiment file that names one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nni.mutable import Mutable

from smnas.experiment import SearchSettings, read_yaml
from smnas.training.recipe import Recipe


def open_space(reference: str, **arguments: Any) -> Mutable:
    """Builds the search space that a reference names.

    Args:
        reference: `package.module:Class`, or the path of an experiment file (`.yml`, `.yaml`).
            Modules are also found in the current folder and beside the experiment file.
        arguments: given to the space on top of the experiment's `space_args`.

    Raises:
        ConfigError: the experiment file is wrong.
        SpaceError: the space cannot be found or built.
    """
    # torch comes with it, and the other functions here do without
    from smnas.detectors.space import load_space

    make_importable(Path.cwd())
    settings = _settings(reference)
    if settings is None:
        return load_space(reference, arguments)
    make_importable(Path(reference).resolve().parent)
    space = settings.named_space(f"{reference}: tuner.classArgs")
    return load_space(space, {**settings.space_args, **arguments})


def open_recipe(reference: str, overrides: Mapping[str, Any]) -> Recipe:
    """How detectors of a space are trained: as its experiment file says, else by default.

    Args:
        reference: as for `open_space`.
        overrides: `{argument of Recipe: value}`, instead of the file's.

    Raises:
        ConfigError: the experiment file or a value is wrong.
    """
    settings = _settings(reference)
    return replace(Recipe(**settings.recipe) if settings else Recipe(), **overrides)


def study_seed(reference: str) -> int:
    """The seed that the trials of a study share: the experiment file's, 0 for a plain space.

    Raises:
        ConfigError: the experiment file is wrong.
    """
    settings = _settings(reference)
    return settings.seed if settings else 0


def trial_concurrency(reference: str) -> int | None:
    """How many trials an experiment file wants at a time; None for a plain space."""
    if not _is_experiment(reference):
        return None
    return int(read_yaml(Path(reference)).get("trialConcurrency", 1))


def _is_experiment(reference: str) -> bool:
    return reference.endswith((".yml", ".yaml"))


def _settings(reference: str) -> SearchSettings | None:
    """What the experiment file says; None where the reference is none."""
    if not _is_experiment(reference):
        return None
    path = Path(reference)
    tuner = read_yaml(path).get("tuner")
    class_args = tuner.get("classArgs") if isinstance(tuner, dict) else None
    return SearchSettings.from_class_args(class_args, f"{path}: tuner.classArgs")


def make_importable(folder: Path) -> None:
    """Lets modules of a folder be imported, after all others: a user's search space is one."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
