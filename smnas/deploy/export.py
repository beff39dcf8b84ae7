"""Out of smnas: a found detector as ONNX or as one Python file, each checked against the detector.

A file takes its place only when it agrees with the detector.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from smnas.deploy.graph import CELL
from smnas.deploy.onnx_export import OnnxDetector, export_onnx
from smnas.deploy.predict import numbered
from smnas.deploy.progress import save_whole
from smnas.deploy.python_file import plain_state, to_python, write_python
from smnas.deploy.saved import Opened, data_of
from smnas.deploy.verify import (
    FEWEST_PICTURES,
    at_size,
    check_onnx,
    check_pictures,
    check_python,
    side_by_side,
)
from smnas.detectors.components import parse_input_size
from smnas.errors import ConfigError, DeployError

Size = tuple[int, int]


def to_onnx(
    opened: Opened,
    path: Path,
    data: Path | None = None,
    *,
    dynamic: bool = False,
    pictures: int = FEWEST_PICTURES,
    threads: int = 1,
    compiled: bool = True,
) -> dict[str, Any]:
    """Writes a detector as ONNX, compares it with the detector and times both.

    Args:
        opened: the detector, with weights.
        path: of the file.
        data: whose training pictures are looked at; None for the detector's own.
        dynamic: for pictures of any size whose sides are multiples of 32 pixels.
        pictures: how many are looked at, at least `FEWEST_PICTURES`.
        threads: CPU threads of one operator while latency is measured.
        compiled: also time the detector compiled by torch.

    Returns:
        `parity`: one `Parity.to_json` with its `size` for each size looked at; `latency`: see
        `smnas.deploy.verify.side_by_side`.

    Raises:
        DeployError: the detector cannot be exported, or the file does not find the same.
        UserError: data or weights are missing or wrong.
    """
    detector = opened.load(torch.device("cpu"))
    size = parse_input_size(str(detector.input_size))
    sizes = _whole_cells(size) if dynamic else [size]
    inputs = [check_pictures(data_of(opened, data), one, _enough(pictures)) for one in sizes]
    parity = []
    with _kept_if_right(path) as (new,):
        export_onnx(detector, size, new, dynamic=dynamic, categories=opened.categories)
        onnx = OnnxDetector(new, threads)
        for one, own in zip(sizes, inputs, strict=True):
            found = check_onnx(at_size(copy.deepcopy(detector), one), onnx, own)
            parity.append(found.to_json() | {"size": list(one)})
    timed = at_size(detector, sizes[0])
    latency = side_by_side(timed, onnx, sizes[0], threads, compiled)
    return {"parity": parity, "latency": latency}


def to_python_file(
    opened: Opened, path: Path, data: Path | None = None, *, pictures: int = FEWEST_PICTURES
) -> dict[str, Any]:
    """Writes a detector as a Python file with its weights beside it, and compares what that finds
    by itself.

    Args:
        opened: the detector, with weights.
        path: of the file; the weights have its name with the ending `.pt`.
        data: whose training pictures are looked at; None for the detector's own.
        pictures: how many are looked at, at least `FEWEST_PICTURES`.

    Returns:
        `parity`, as of `to_onnx`; `weights`, the path of that file.

    Raises:
        DeployError: the detector cannot be written down, or the file does not find the same.
        UserError: data or weights are missing or wrong.
    """
    weights = path.with_suffix(".pt")
    if weights == path:
        raise ConfigError(f"export: wanted a file that ends in .py, got {path}")
    detector = opened.load(torch.device("cpu"))
    size = parse_input_size(str(detector.input_size))
    inputs = check_pictures(data_of(opened, data), size, _enough(pictures))
    text = python_text(opened, detector)
    with _kept_if_right(path, weights) as (new, new_weights):
        write_python(text, new)
        save_whole(plain_state(detector), new_weights)
        parity = check_python(new, new_weights, detector, inputs)
    return {"parity": [parity.to_json() | {"size": list(size)}], "weights": str(weights)}


def python_text(opened: Opened, detector: nn.Module) -> str:
    """The text of the file that rebuilds a detector; see `python_file.to_python`."""
    plan = opened.plan
    return to_python(
        detector, plan.title, opened.categories or numbered(plan.num_classes), plan.sample
    )


def parity_line(record: dict[str, Any]) -> str:
    """One parity in words."""
    width, height = record["size"]
    return (
        f"{record['pictures']} pictures of {width}x{height}, {record['detections']} detections:"
        f" {record['alone']} without a partner ({record['swapped']} swapped,"
        f" {record['at_end']} at a list's end), boxes within"
        f" {record['box_px']:.2g} px, scores within {record['score']:.2g}"
    )


def latency_table(latency: dict[str, Any]) -> Table:
    """The forms of a detector side by side."""
    card = latency["eager"]
    table = Table(title=f"{card['device']}, {card['threads']} CPU threads", title_justify="left")
    table.add_column("form")
    for name in ("median ms", "IQR ms", "count"):
        table.add_column(name, justify="right")
    for name, one in latency.items():
        if "error" in one:
            table.add_row(name, "-", "-", "-")
        else:
            numbers = f"{one['median_ms']:.2f}", f"{one['iqr_ms']:.2f}", str(one["count"])
            table.add_row(name, *numbers)
    errors = [f"{name}: {one['error']}" for name, one in latency.items() if "error" in one]
    table.caption = "\n".join(errors) or None
    return table


def _whole_cells(size: Size) -> list[Size]:
    """The size in whole cells, and another one, wider and higher by different numbers of them."""
    width, height = (max(3, -(-side // CELL)) * CELL for side in size)
    return [(width, height), (width + CELL, height + 2 * CELL)]


@contextmanager
def _kept_if_right(*paths: Path) -> Iterator[list[Path]]:
    """Files to write first, beside those they take the place of if the block ends well.

    Raises:
        DeployError: the folder cannot be written.
    """
    folder = paths[0].parent
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as place:
            new = [Path(place) / path.name for path in paths]
            yield new
            for one, path in zip(new, paths, strict=True):
                os.replace(one, path)
    except OSError as error:
        raise DeployError(f"export: {folder} cannot be written: {error.strerror}") from error


def _enough(pictures: int) -> int:
    if pictures < FEWEST_PICTURES:
        raise ConfigError(f"--pictures: wanted at least {FEWEST_PICTURES}, got {pictures}")
    return pictures
