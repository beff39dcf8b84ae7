"""Detectors outside of their search: what each is built from, and where its weights are.

A candidate of a run (`RUN#ID`) and a folder that `smnas train` has written are opened alike; every
command for found detectors begins here.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smnas.data.coco import CocoDataset
from smnas.errors import DataError, DeployError, RunError
from smnas.experiment import DATA_VARIABLE
from smnas.journal import History, Trial, read_run
from smnas.nni_runs import split_reference, trial_file
from smnas.records import Measured, Sample
from smnas.report.pictures import read_examples
from smnas.spaces import make_importable, recorded_space
from smnas.training.recipe import Recipe
from smnas.trial import fresh_detector

PLAN_FILE = "detector.json"
WEIGHTS_FILE = "weights.pt"
"""In a folder of `smnas train`: what is built, and its weights when the training is over."""

TRIAL_WEIGHTS = "checkpoint.pt"
"""In the folder of a trial."""

Category = Mapping[str, Any]
"""`id` and `name`, as in COCO."""


@dataclass(frozen=True)
class Plan:
    """What a detector is built from.

    Args:
        origin: `RUN#ID`, as it was named.
        title: what it is, in a few words.
        space: `package.module:Class`.
        space_args: of the run.
        library: that the run's trials were built with; None for runs from before there was a
            choice, and for spaces that know none.
        seed: of the run.
        sample: of the space.
        num_classes: without background.
    """

    origin: str
    title: str
    space: str
    space_args: Mapping[str, Any]
    library: str | None
    seed: int
    sample: Sample
    num_classes: int

    def build(self, seed: int | None = None) -> nn.Module:
        """The detector, newly initialised from torch's global generator.

        Args:
            seed: of that generator; None for the run's.

        Raises:
            SpaceError: the space cannot be found or built.
            MissingLibraryError: the run's library is not installed here.
        """
        make_importable(Path.cwd())
        experiment = {"space": self.space, "space_args": self.space_args, "library": self.library}
        return fresh_detector(
            lambda: recorded_space(experiment, num_classes=self.num_classes),
            self.sample,
            self.seed if seed is None else seed,
        )

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "sample": dict(self.sample), "space_args": dict(self.space_args)}


@dataclass(frozen=True)
class Opened:
    """A detector with weights.

    Args:
        plan: what it is.
        weights: file of its state dict, which may be missing.
        categories: in the order of labels; None where they are not known.
        data: folder of the data that it was trained on, where that is known.
        folder: of `smnas train`; None for a run's candidate.
    """

    plan: Plan
    weights: Path
    categories: tuple[Category, ...] | None = None
    data: Path | None = None
    folder: Path | None = None

    def load(self, device: torch.device) -> nn.Module:
        """The detector with its weights on a device, in evaluation mode.

        Raises:
            DeployError: there are no weights, or they are another detector's.
            UserError: as `Plan.build`.
        """
        state = load_state(self.weights, self.plan.origin)
        detector = self.plan.build()
        fill(detector, state, self.weights)
        return detector.to(device).eval()


def open_detector(target: str, num_classes: int | None = None) -> Opened:
    """The detector that a user names.

    Args:
        target: `RUN#ID`, or a folder of `smnas train`.
        num_classes: for runs that have not recorded it.

    Raises:
        DeployError: it is neither.
        RunError: there is no such run or candidate.
    """
    reference = split_reference(target)
    if reference is not None:
        return _of_run(target, *reference, num_classes)
    return _of_folder(Path(target))


def candidate(
    target: str, num_classes: int | None = None
) -> tuple[Opened, Callable[[Mapping[str, Any]], Recipe]]:
    """What a training of a run's candidate begins with.

    Args:
        target: `RUN#ID`.
        num_classes: for runs that have not recorded it.

    Returns:
        The candidate; what makes the recipe, the run's with other values where they are not None.

    Raises:
        DeployError: it is no `RUN#ID`.
        RunError: there is no such run or candidate.
    """
    reference = split_reference(target)
    if reference is None:
        raise DeployError(f"train: wanted RUN#ID, got {target!r}")
    opened = _of_run(target, *reference, num_classes)
    history = read_run(reference[0])
    trial = find_candidate(history, reference[1], target)
    own = history.experiment_of(trial.candidate).get("recipe", {})

    def recipe(others: Mapping[str, Any]) -> Recipe:
        given = {name: value for name, value in others.items() if value is not None}
        return Recipe.from_mapping({**own, **given}, target)

    return opened, recipe


def plan_of(
    history: History, candidate_id: int, origin: str, num_classes: int | None = None
) -> Plan:
    """What a candidate of a run is built from, whatever became of it.

    Args:
        history: the run.
        candidate_id: of any of its candidates.
        origin: `RUN#ID`, for messages and records.
        num_classes: where the candidate has not recorded it.

    Raises:
        RunError: there is no such candidate.
        DeployError: the number of classes is needed and was not given.
    """
    trial = find_candidate(history, candidate_id, origin)
    info = trial.outcome.info if isinstance(trial.outcome, Measured) else {}
    classes = info.get("num_classes", num_classes)
    if classes is None:
        raise DeployError(f"{origin}: wanted --classes N, because this run did not record it")
    experiment = history.experiment_of(trial.candidate)
    return Plan(
        origin,
        f"Detector {candidate_id} of {history.header['name']}",
        experiment["space"],
        experiment["space_args"],
        experiment.get("library"),
        experiment.get("seed", 0),
        trial.candidate.sample,
        classes,
    )


def data_of(opened: Opened, given: Path | None) -> Path:
    """The folder of data that is meant: the given one, the detector's own, or `SMNAS_DATA`.

    Raises:
        DataError: none of them is known.
    """
    found = given or opened.data or os.environ.get(DATA_VARIABLE)
    if not found:
        raise DataError(f"{opened.plan.origin}: wanted --data FOLDER, because it is not recorded")
    return Path(found)


def check_classes(dataset: CocoDataset, wanted: Sequence[str], whose: str) -> None:
    """Labels are numbers: the same ones must mean the same classes.

    Args:
        dataset: pictures to look at.
        wanted: names of the classes in the order of labels.
        whose: they are, for the message.

    Raises:
        DataError: the data have other classes, or in another order.
    """
    if list(dataset.categories) != list(wanted):
        raise DataError(
            f"data {dataset.part.annotations}: wanted the classes {', '.join(wanted)}, as {whose}"
            f" has, got {', '.join(dataset.categories) or 'none'}"
        )


def find_candidate(history: History, candidate_id: int, origin: str) -> Trial:
    """A candidate of a run with what became of it.

    Raises:
        RunError: the run has none of that id.
    """
    trials = {trial.candidate.id: trial for trial in history.trials()}
    if candidate_id not in trials:
        raise RunError(f"{origin}: wanted a candidate of the run, got id {candidate_id}")
    return trials[candidate_id]


def write_plan(folder: Path, plan: Plan, categories: Sequence[Category], **more: Any) -> None:
    """Makes a folder one that `open_detector` knows; `more` is kept in the file beside the plan."""
    record = {"plan": plan.to_json(), "categories": list(categories), **more}
    (folder / PLAN_FILE).write_text(json.dumps(record, indent=1) + "\n")


def read_plan(folder: Path) -> dict[str, Any]:
    """What `write_plan` has written: `plan`, `categories` and more.

    Raises:
        DeployError: the folder has no such file, or it cannot be read.
    """
    path = folder / PLAN_FILE
    try:
        record = dict(json.loads(path.read_text()))
        return record | {"plan": Plan(**record["plan"])}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DeployError(
            f"detector: wanted RUN#ID or a folder of smnas train, got {str(folder)!r}"
        ) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DeployError(f"{path}: cannot be read: {error}") from error


def load_state(path: Path, origin: str) -> Any:
    """What torch has saved in a file of weights.

    Args:
        path: of the file.
        origin: the detector that it belongs to, for messages.

    Raises:
        DeployError: there is no such file, or it holds something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DeployError(f"{origin}: wanted its weights, got no file {path}") from error
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise DeployError(f"{origin}: {path}: cannot be read: {error}") from error


def fill(detector: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Gives a detector the weights of a file.

    Raises:
        DeployError: they are another detector's.
    """
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        raise DeployError(f"{path}: wanted this detector's weights: {error}") from error


def _of_run(target: str, run: Path, candidate_id: int, num_classes: int | None) -> Opened:
    history = read_run(run)
    plan = plan_of(history, candidate_id, target, num_classes)
    trial = find_candidate(history, candidate_id, target)
    examples = read_examples(run, trial) or {}
    names = examples.get("categories", ())
    # records of the first releases have no ids
    ids = examples.get("category_ids", range(1, len(names) + 1))
    categories = tuple({"id": k, "name": name} for k, name in zip(ids, names, strict=True))
    given = examples.get("data") or history.experiment_of(trial.candidate).get("data")
    data = None if given is None else Path(given)
    return Opened(plan, trial_file(run, trial, TRIAL_WEIGHTS), categories or None, data)


def _of_folder(folder: Path) -> Opened:
    record = read_plan(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise DeployError(
            f"{folder}: its training is not over; the same smnas train command goes on with it"
        )
    categories, data = tuple(record["categories"]), Path(record["training"]["data"])
    return Opened(record["plan"], weights, categories, data, folder)
