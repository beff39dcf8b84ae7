"""What a full training is made with: settings, checks, the record that a folder is known by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smnas.deploy.saved import PLAN_FILE, Plan, read_plan
from smnas.errors import ConfigError, DeployError
from smnas.training.recipe import Recipe

WATCHED = ("val", "search")


@dataclass(frozen=True)
class Training:
    """How a found detector is trained.

    Args:
        data: folder in COCO format.
        recipe: the run's, or what the user has said instead.
        seed: of initialisation, order and augmentation.
        average: decay of the moving average of the weights, in [0, 1); 0 for none.
        watch: what is evaluated during the training: `val`, or `search`, a split of train that is
            then not trained on.
        search_split: part of train that `search` holds out, in (0, 1).
        every: epochs between two evaluations; 0 evaluates at the end only.
        patience: evaluations without a better mAP after which the training ends, with the weights
            of the best one; None trains to the end and keeps the last.
        start: file of the trial's weights that it begins with; None starts from scratch.
        amp: mixed precision.
        device: `cpu` or `cuda`.
        processes: that share each batch.

    Raises:
        ConfigError: a value is out of its range.
    """

    data: Path
    recipe: Recipe
    seed: int = 0
    average: float = 0.9998
    watch: str = "val"
    search_split: float = 0.25
    every: int = 1
    patience: int | None = None
    start: Path | None = None
    amp: bool = False
    device: str = "cpu"
    processes: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.average < 1:
            raise ConfigError(f"--ema: wanted a number from 0 to below 1, got {self.average}")
        if self.watch not in WATCHED:
            raise ConfigError(f"--watch: wanted one of {list(WATCHED)}, got {self.watch!r}")
        if not 0 < self.search_split < 1:
            raise ConfigError(
                f"--search-split: wanted a number between 0 and 1, got {self.search_split}"
            )
        if self.patience is not None and not self.every:
            raise ConfigError("--patience: wanted evaluations to judge by, got --every 0")

    def shared_by(self, processes: int) -> Training:
        """The same training in so many processes."""
        return replace(self, processes=processes)

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        paths = {name: None if record[name] is None else str(record[name]) for name in _PATHS}
        jitter = self.recipe.scale_jitter
        recipe = record["recipe"] | {"scale_jitter": None if jitter is None else list(jitter)}
        return record | paths | {"recipe": recipe}


_PATHS = ("data", "start")


def check_same(folder: Path, plan: Plan, training: Training) -> bool:
    """Whether a folder holds this very training already.

    Args:
        folder: that a user has named; new or not.
        plan: of the detector.
        training: how it shall be trained.

    Raises:
        DeployError: it holds another one; says in what it differs.
    """
    if not (folder / PLAN_FILE).is_file():
        return False
    record = read_plan(folder)
    # a run may be named in several ways
    own = replace(plan, origin=record["plan"].origin, title=record["plan"].title)
    before = _flat({"detector": record["plan"].to_json(), **record["training"]})
    now = _flat({"detector": own.to_json(), **training.to_json()})
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise DeployError(
                f"{folder} belongs to another training: {key}: it has {before.get(key)!r}, this"
                f" one has {now.get(key)!r}; name another folder with -o"
            )
    return True


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in record.items():
        inner = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": _plain(value)}
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def use_threads(threads: int | None) -> None:
    """CPU threads of torch's operators in this process; None leaves torch's own number."""
    if threads:
        torch.set_num_threads(threads)
