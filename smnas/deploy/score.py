"""COCO metrics of a detector over all classes and of each, as records and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from smnas.data.coco import CocoDataset, DataFolder
from smnas.deploy.saved import Opened, check_classes, data_of
from smnas.detectors.components import parse_input_size
from smnas.errors import DataError
from smnas.quiet import QuietDevice
from smnas.training.evaluation import METRICS, coco_table, detect


@dataclass(frozen=True)
class Scores:
    """What a detector reaches.

    Args:
        metrics: of all classes, by name, 0 to 1 (see `smnas.training.evaluation.METRICS`).
        classes: one a category: `id`, `name`, number of `objects`, and the metrics it has.
        pictures: how many were looked at.
    """

    metrics: Mapping[str, float]
    classes: Sequence[Mapping[str, Any]]
    pictures: int

    def to_json(self) -> dict[str, Any]:
        return {
            "metrics": dict(self.metrics),
            "classes": [dict(one) for one in self.classes],
            "pictures": self.pictures,
        }


def score(
    model: nn.Module,
    dataset: CocoDataset,
    *,
    device: torch.device,
    batch: int,
    quiet: QuietDevice,
    amp: bool = False,
    workers: int = 0,
) -> Scores:
    """Evaluates a detector; arguments as of `smnas.training.evaluation.evaluate`.

    Raises:
        DataError: the data has no object.
    """
    results = detect(
        model, dataset, device=device, batch=batch, quiet=quiet, amp=amp, workers=workers
    )
    with quiet.working():
        metrics, classes = coco_table(dataset.coco, results, dataset.image_ids)
    named = zip(dataset.category_ids, dataset.categories, strict=True)
    rows = [
        {"id": key, "name": name, "objects": _objects(dataset, key), **classes.get(key, {})}
        for key, name in named
    ]
    return Scores(metrics, rows, len(dataset))


def open_val(opened: Opened, data: Path | None, input_size: str) -> CocoDataset:
    """The val part that a detector is evaluated on, at its size.

    Args:
        opened: the detector; it may know its data.
        data: folder that the user has named; goes before the detector's own.
        input_size: WIDTHxHEIGHT.

    Raises:
        DataError: no data are known, they have no val, or other classes.
    """
    folder = data_of(opened, data)
    val = DataFolder.open(folder).val
    if val is None:
        raise DataError(f"data {folder}: wanted annotations/instances_val*.json, got none")
    dataset = CocoDataset(val, input_size=parse_input_size(input_size))
    if dataset.num_classes != opened.plan.num_classes:
        raise DataError(
            f"data {folder}: wanted {opened.plan.num_classes} classes, as the detector has, got"
            f" {dataset.num_classes}"
        )
    if opened.categories:
        check_classes(dataset, [str(one["name"]) for one in opened.categories], "the detector")
    return dataset


def table(record: Mapping[str, Any], title: str) -> Table:
    """A record of `Scores.to_json` for the terminal: one line a class, all of them first."""
    columns = [name for name in METRICS if name in record["metrics"]]
    found = Table(title=title, title_justify="left")
    found.add_column("class")
    for name in ("objects", *columns):
        found.add_column(name, justify="right")
    objects = sum(one["objects"] for one in record["classes"])
    for row in ({"name": "all", "objects": objects, **record["metrics"]}, *record["classes"]):
        values = [f"{row[name]:.3f}" if name in row else "-" for name in columns]
        found.add_row(row["name"], str(row["objects"]), *values)
    return found


def _objects(dataset: CocoDataset, category_id: int) -> int:
    ids = dataset.coco.getAnnIds(dataset.image_ids, [category_id], iscrowd=False)
    return len(ids)
