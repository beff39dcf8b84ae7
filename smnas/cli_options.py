"""Options that several commands have in common. Imports nothing heavy."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """Where a detector is built and works."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Library(StrEnum):
    """What detectors are built with."""

    auto = "auto"
    torchvision = "torchvision"
    detectron2 = "detectron2"


Target = Annotated[
    str, typer.Argument(help="RUN#ID, or a folder of smnas train.", metavar="RUN#ID|DIR")
]
Classes = Annotated[int | None, typer.Option(min=1, help="Classes, where the run does not say it.")]
Data = Annotated[
    Path | None,
    typer.Option(help="Data set in COCO format; default the recorded one, else SMNAS_DATA."),
]
OnDevice = Annotated[Device, typer.Option(help="Where to work.")]
Precision = Annotated[str | None, typer.Option(help="fp32 or amp; default amp on CUDA, else fp32.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default torch's own.")]
