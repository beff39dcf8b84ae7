"""Out of a run into plain detectron2: a detector's LazyConfig (`smnas export --detectron2`).

Reads the journal, builds the detector without weights, writes one file. Needs detectron2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from smnas.detectors.space import load_space
from smnas.errors import ConfigError, RunError
from smnas.journal import History
from smnas.records import Measured, Sample
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


def export_lazy_config(
    history: History, candidate_id: int, path: Path, num_classes: int | None = None
) -> None:
    """Writes the LazyConfig of a run's candidate, whichever library it was measured with.

    Args:
        history: the run.
        candidate_id: of any of its candidates.
        path: of the file, which is overwritten.
        num_classes: for candidates of which it is not recorded.

    Raises:
        RunError: there is no such candidate, or the file cannot be written.
        ConfigError: the number of classes is needed and was not given.
        UserError: as `lazy_config`.
    """
    trials = {trial.candidate.id: trial for trial in history.trials()}
    if candidate_id not in trials:
        raise RunError(f"export: wanted a candidate of the run, got id {candidate_id}")
    trial = trials[candidate_id]
    info = trial.outcome.info if isinstance(trial.outcome, Measured) else {}
    classes = info.get("num_classes", num_classes)
    if classes is None:
        raise ConfigError("export: wanted --classes N, because this run did not record it")
    make_importable(Path.cwd())
    experiment = history.experiment_of(trial.candidate)
    text = lazy_config(
        experiment["space"],
        experiment["space_args"],
        trial.candidate.sample,
        classes,
        f"Detector {candidate_id} of {history.header['name']}",
    )
    try:
        path.write_text(text)
    except OSError as error:
        raise RunError(f"export: {path} cannot be written: {error.strerror}") from error
