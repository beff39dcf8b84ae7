"""SPACE on the command line: `package.module:Class`, or an experiment file that names one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nni.mutable import Mutable

from smnas.errors import ConfigError
from smnas.experiment import SearchSettings, read_yaml
from smnas.training.recipe import Recipe


def open_space(reference: str, library: str | None = None, **arguments: Any) -> Mutable:
    """Builds the search space that a reference names.

    Args:
        reference: `package.module:Class`, or the path of an experiment file (`.yml`, `.yaml`).
            Modules are also found in the current folder and beside the experiment file.
        library: that detectors are built with; goes before the experiment's.
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
        own = {} if library is None else {"library": library}
        return load_space(reference, {**own, **arguments})
    make_importable(Path(reference).resolve().parent)
    where = f"{reference}: tuner.classArgs"
    space = settings.named_space(where)
    settings = with_library(settings, where, library)
    return load_space(space, {**settings.space_arguments, **arguments})


def recorded_space(experiment: Mapping[str, Any], **arguments: Any) -> Mutable:
    """Builds the search space of a run, with the library that its trials were built with.

    Args:
        experiment: `History.experiment_of` one of its candidates.
        arguments: given to the space on top of the run's own.

    Raises:
        SpaceError: the space cannot be found or built.
        MissingLibraryError: the run's library is not installed here.
    """
    from smnas.detectors.space import load_space, takes_argument

    space, own = experiment["space"], {}
    if takes_argument(space, "library") and "library" not in experiment["space_args"]:
        # runs from before there was a choice were built with torchvision
        own["library"] = experiment.get("library") or "torchvision"
    return load_space(space, {**experiment["space_args"], **own, **arguments})


def with_library(
    settings: SearchSettings, where: str, library: str | None = None
) -> SearchSettings:
    """Settings that name the library which detectors are built with: what `auto` is here.

    Args:
        settings: of an experiment; unchanged if its space knows no libraries.
        where: they stand, for messages.
        library: goes before the settings' own.

    Raises:
        ConfigError: a library for a space that knows none.
        SpaceError: the space cannot be found.
        MissingLibraryError: the library is not installed.
    """
    from smnas.detectors.components import resolve_library
    from smnas.detectors.space import takes_argument

    wanted = library or settings.library
    if settings.space is not None and takes_argument(settings.space, "library"):
        name = resolve_library(wanted or settings.space_args.get("library", "auto"))
        space_args = {k: v for k, v in settings.space_args.items() if k != "library"}
        return replace(settings, library=name, space_args=space_args)
    if wanted:
        raise ConfigError(
            f"{where}: library: wanted none, for {settings.space or 'no space'} has no such"
            f" argument, got {wanted!r}"
        )
    return settings


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
