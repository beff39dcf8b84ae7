"""A found detector for plain detectron2: its LazyConfig (`smnas export --detectron2`).

Builds the detector without weights, writes one file. Needs detectron2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from smnas.deploy.saved import Plan
from smnas.detectors.space import load_space
from smnas.errors import DeployError
from smnas.records import Sample
from smnas.spaces import make_importable


def lazy_config(
    space: str,
    space_args: Mapping[str, Any],
    sample: Sample,
    num_classes: int,
    title: str = "A detector",
) -> str:
    """The text of a LazyConfig file.

    Args:
        space: `package.module:Class` with an argument `library`.
        space_args: its arguments; what they say of a library does not count.
        sample: of that space.
        num_classes: without background.
        title: what the detector is, in one line.

    Raises:
        MissingLibraryError: detectron2 is not installed.
        SpaceError: the space cannot be built, or the sample does not belong to it.
    """
    arguments = {**space_args, "num_classes": num_classes, "library": "detectron2"}
    # only its config is wanted: it takes neither memory nor random numbers
    with torch.device("meta"):
        detector = load_space(space, arguments).freeze(dict(sample))
    from smnas.detectors.detectron2.lazy import to_python

    return to_python(detector.config, detector.input_size, title)


def export_lazy_config(plan: Plan, path: Path) -> None:
    """Writes the LazyConfig of a detector, whichever library it was measured with.

    Args:
        plan: of the detector.
        path: of the file, which is overwritten.

    Raises:
        DeployError: the file cannot be written.
        UserError: as `lazy_config`.
    """
    make_importable(Path.cwd())
    text = lazy_config(plan.space, plan.space_args, plan.sample, plan.num_classes, plan.title)
    try:
        path.write_text(text)
    except OSError as error:
        raise DeployError(f"export: {path} cannot be written: {error.strerror}") from error
