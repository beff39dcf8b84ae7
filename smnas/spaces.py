"""SPACE on the command line: `package.module:Class`, or an experiment file that names one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from nni.mutable import Mutable

from smnas.detectors.space import load_space
from smnas.experiment import SearchSettings, read_yaml


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
    make_importable(Path.cwd())
    if not reference.endswith((".yml", ".yaml")):
        return load_space(reference, arguments)
    path = Path(reference)
    tuner = read_yaml(path).get("tuner")
    class_args = tuner.get("classArgs") if isinstance(tuner, dict) else None
    settings = SearchSettings.from_class_args(class_args, f"{path}: tuner.classArgs")
    make_importable(path.resolve().parent)
    return load_space(settings.space, {**settings.space_args, **arguments})


def make_importable(folder: Path) -> None:
    """Lets modules of a folder be imported, after all others: a user's search space is one."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
