"""One candidate -> one outcome: the program that both runners start (`smnas trial`).

Reads from top to bottom: freeze the space, build the detector, measure its cost and latency, train it from
scratch, evaluate it on the search split. The only module that sets torch's global seed, because the process is
this trial's own.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from smnas import machine
from smnas.data.coco import CocoDataset, DataFolder, collate
from smnas.data.split import split_ids
from smnas.encoding import Encoding
from smnas.errors import ConfigError, DataError, SpaceError, TrialFailure
from smnas.objectives.cost import measure_cost, peak_memory_mb
from smnas.objectives.latency import Latency, measure_latency
from smnas.quiet import QuietDevice
from smnas.records import Candidate, Failed, Measured, Outcome, Sample
from smnas.runner import write_outcome
from smnas.spaces import open_space
from smnas.training.evaluation import evaluate
from smnas.training.loop import EpochStats, epoch_order, train
from smnas.training.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """What a trial needs besides its sample: the options of `smnas trial`.

    Args:
        space: `package.module:Class` or an experiment file.
        data: folder in COCO format; only its train part is read.
        epochs: at least 1.
        batch: pictures in a step.
        lr: peak learning rate at batch 4.
        scale_jitter: smallest and largest zoom, None for none.
        flip: probability of a horizontal flip.
        search_split: part of train that is held out to rank detectors, in (0, 1).
        max_latency_ms: what is slower is not trained; None for no bound.
        seed: of initialisation, order and augmentation.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads of training; None for torch's own default.
        precision: `fp32` or `amp`; None for `amp` on CUDA, `fp32` elsewhere.
        checkpoint: keep the trained weights in the trial's folder.
    """

    space: str
    data: Path
    epochs: int = 6
    batch: int = 4
    lr: float = 0.02
    scale_jitter: tuple[float, float] | None = None
    flip: float = 0.5
    search_split: float = 0.25
    max_latency_ms: float | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    precision: str | None = None
    checkpoint: bool = True

    def __post_init__(self) -> None:
        if self.precision not in (None, "fp32", "amp"):
            raise ConfigError(f"--precision: wanted fp32 or amp, got {self.precision!r}")
        if self.max_latency_ms is not None and not self.max_latency_ms > 0:
            raise ConfigError(
                f"--max-latency-ms: wanted a number above 0, got {self.max_latency_ms}"
            )
        if not 0 < self.search_split < 1:
            raise ConfigError(
                f"--search-split: wanted a number between 0 and 1, got {self.search_split}"
            )

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            epochs=self.epochs,
            batch=self.batch,
            lr=self.lr,
            flip=self.flip,
            scale_jitter=self.scale_jitter,
        )

    @property
    def torch_device(self) -> torch.device:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device: wanted cuda, but torch finds no CUDA device")
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @property
    def amp(self) -> bool:
        return self.precision == "amp" or (
            self.precision is None and self.torch_device.type == "cuda"
        )


class Reporter(Protocol):
    """Where a trial's results go: a folder here, NNI's manager there."""

    def epoch(self, record: dict[str, Any]) -> None: ...

    def end(self, outcome: Outcome) -> None: ...


def run_trial(settings: Settings, sample: Sample, report: Callable[[dict[str, Any]], None]) -> Outcome:
    """Measures one sample.

    Args:
        settings: of the trial.
        sample: of the space.
        report: called after each epoch with its number, loss and metrics.

    Returns:
        `Measured` with `map`, `ap50`, `ap75`, `ap_small/medium/large`, `latency_ms` with its spread and count,
        `params_m`, `macs_g`, `train_seconds`, `peak_memory_mb`; or `Failed` with what had been measured.

    Raises:
        UserError: settings, data or sample are wrong.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    device = settings.torch_device
    measured: dict[str, float] = {}
    try:
        training, held_out = open_data(settings)
        detector = build(settings, sample, training.num_classes).to(device)
        training = training.view(training.image_ids, detector.input_size)
        held_out = held_out.view(held_out.image_ids, detector.input_size)
        measured |= measure_cost(detector, detector.input_size).to_metrics()
        quiet = QuietDevice(str(device))
        latency = _latency(detector, settings, quiet)
        measured |= latency.to_metrics()
        _check_bound(latency, settings)
        info = _fit(detector, training, held_out, settings, quiet, report, measured)
    except TrialFailure as failure:
        return Failed(failure.reason, failure.detail, measured)
    except torch.OutOfMemoryError as error:
        return Failed("out_of_memory", str(error), measured)
    measured["peak_memory_mb"] = peak_memory_mb(device)
    return Measured(measured, info | {"latency": latency.to_json(), "device": latency.device})


def open_data(settings: Settings) -> tuple[CocoDataset, CocoDataset]:
    """The train part without the search split, and the search split. Never reads val.

    Raises:
        DataError: the data is missing, unreadable or not COCO, or too small to split.
    """
    whole = CocoDataset(DataFolder.open(settings.data).train)
    train_ids, held_out_ids = split_ids(whole.image_ids, settings.search_split)
    if not train_ids or not held_out_ids:
        raise DataError(f"data {settings.data}: wanted at least 2 training pictures, got {len(whole)}")
    return whole.view(train_ids, None), whole.view(held_out_ids, None)


def build(settings: Settings, sample: Sample, num_classes: int) -> nn.Module:
    """The detector of a sample, plain and with fresh weights."""
    space = open_space(settings.space, num_classes=num_classes)
    Encoding.of(space).check(sample)
    return space.freeze(dict(sample))


def check_settings(settings: Settings) -> None:
    """Looks at everything that a trial will need, without building or training a detector.

    Raises:
        UserError: something is missing or wrong.
    """
    _ = settings.recipe, settings.torch_device
    training, held_out = open_data(settings)
    for dataset in (training, held_out):
        missing = dataset.missing_pictures()
        if missing:
            raise DataError(
                f"data {settings.data}: {len(missing)} pictures are missing, for instance {missing[0]}"
            )
    open_space(settings.space, num_classes=training.num_classes)


def _latency(detector: nn.Module, settings: Settings, quiet: QuietDevice) -> Latency:
    return measure_latency(
        detector,
        detector.input_size,
        device=settings.torch_device,
        quiet=quiet,
        precision="amp" if settings.amp else "fp32",
        channels_last=settings.torch_device.type == "cuda",
        # the machine is quiet meanwhile, so all of its cores are there, as where it will be deployed
        threads=len(os.sched_getaffinity(0)),
        seed=settings.seed,
    )


def _check_bound(latency: Latency, settings: Settings) -> None:
    bound = settings.max_latency_ms
    if bound is not None and latency.median_ms > bound:
        raise TrialFailure("over_latency", f"{latency.median_ms:.1f} ms, the bound is {bound:g} ms")


def _fit(
    detector: nn.Module,
    training: CocoDataset,
    held_out: CocoDataset,
    settings: Settings,
    quiet: QuietDevice,
    report: Callable[[dict[str, Any]], None],
    measured: dict[str, float],
) -> dict[str, Any]:
    """Trains and evaluates after each epoch; adds to `measured` and returns what else is worth keeping."""
    device, generator = settings.torch_device, torch.Generator().manual_seed(settings.seed)
    curve: list[dict[str, Any]] = []
    started = time.monotonic()

    def batches(epoch: int) -> Iterator[tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]]:
        for chosen in epoch_order(len(training), generator).split(settings.batch):
            yield collate([training[i] for i in chosen.tolist()])

    def after_epoch(epoch: int, stats: EpochStats) -> None:
        metrics = evaluate(
            detector, held_out, device=device, batch=settings.batch, quiet=quiet, amp=settings.amp
        )
        curve.append({"epoch": epoch, "loss": stats.loss, **metrics})
        report(curve[-1])

    stats = train(
        detector,
        batches,
        settings.recipe,
        device=device,
        generator=generator,
        quiet=quiet,
        on_epoch=after_epoch,
        amp=settings.amp,
        channels_last=device.type == "cuda",
    )
    measured |= {k: v for k, v in curve[-1].items() if k not in ("epoch", "loss")}
    measured["train_seconds"] = stats.seconds
    return {"curve": curve, "trial_seconds": time.monotonic() - started}
