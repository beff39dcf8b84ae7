"""One candidate -> one outcome: the program that both runners start (`smnas trial`).

Reads from top to bottom: freeze the space, build the detector, measure its cost and latency, train
it from scratch, evaluate it on the search split. The only module that sets torch's global seed,
because the process is this trial's own.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import nni
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from smnas.data.coco import CocoDataset, DataFolder, collate
from smnas.data.split import split_ids
from smnas.detectors.components import parse_input_size
from smnas.detectors.nas import ModelSpace
from smnas.detectors.norms import describe_norm
from smnas.errors import ConfigError, DataError, TrialFailure, UserError
from smnas.nni_runs import end_with_manager
from smnas.objectives.cost import measure_cost, peak_memory_mb
from smnas.objectives.latency import Latency, measure_latency
from smnas.quiet import QuietDevice
from smnas.records import Candidate, Failed, Measured, Outcome, Sample
from smnas.runner import CURVE, EXAMPLES_FILE, local_workers, write_outcome
from smnas.spaces import open_space, trial_concurrency
from smnas.training.evaluation import evaluate
from smnas.training.examples import find_examples
from smnas.training.loop import EpochStats, epoch_batches, train
from smnas.training.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """What a trial needs besides its sample: the options of `smnas trial`.

    Args:
        space: `package.module:Class` or an experiment file.
        data: folder in COCO format; only its train part is read.
        recipe: of the training.
        search_split: part of train that is held out to rank detectors, in (0, 1).
        max_latency_ms: what is slower is not trained; None for no bound.
        seed: of initialisation, order and augmentation.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads of training; None for torch's own default.
        precision: `fp32` or `amp`; None for `amp` on CUDA, `fp32` elsewhere.
        checkpoint: keep the trained weights in the trial's folder.
        latency_threads: CPU threads while latency is measured; the same for all trials of a study,
            however many workers share the machine.
        loader_workers: processes that load pictures, on CUDA; a CPU loads in the trial's own
            process.
        library: that the detector is built with; None takes the experiment's.
    """

    space: str
    data: Path
    recipe: Recipe = Recipe()
    search_split: float = 0.25
    max_latency_ms: float | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    precision: str | None = None
    checkpoint: bool = True
    latency_threads: int = 1
    loader_workers: int = 4
    library: str | None = None

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
    def torch_device(self) -> torch.device:
        return find_device(self.device)

    @property
    def workers(self) -> int:
        """Loading processes: none on a CPU, where they would take the cores that train."""
        return 0 if self.torch_device.type == "cpu" else self.loader_workers

    @property
    def amp(self) -> bool:
        return self.precision == "amp" or (
            self.precision is None and self.torch_device.type == "cuda"
        )


def find_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` stands for here.

    Raises:
        ConfigError: `cuda` is wanted and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device: wanted cuda, but torch finds no CUDA device")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


class Reporter(Protocol):
    """Where a trial's results go: a folder here, NNI's manager there."""

    def epoch(self, record: dict[str, Any]) -> None: ...

    def end(self, outcome: Outcome) -> None: ...


def run_trial(
    settings: Settings,
    sample: Sample,
    report: Callable[[dict[str, Any]], None],
    folder: Path | None = None,
) -> Outcome:
    """Measures one sample.

    Args:
        settings: of the trial.
        sample: of the space.
        report: called before training, as epoch 0, with the number of epochs and what has been
            measured; then after each epoch with its number, loss and metrics.
        folder: where the trained weights and a few example detections are kept; None keeps none.

    Returns:
        `Measured` with `map`, `ap50`, `ap75`, `ap_small/medium/large`, `latency_ms` with its spread
        and count, `params_m`, `macs_g`, `train_seconds`, `peak_memory_mb`; or `Failed` with what
        had been measured.

    Raises:
        UserError: settings, data or sample are wrong.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = settings.torch_device
    quiet = QuietDevice(str(device))
    measured: dict[str, float] = {}
    try:
        with quiet.working():
            training, held_out = open_data(settings)
            num_classes = training.num_classes
            detector = build(settings, sample, num_classes).to(device)
            size = parse_input_size(str(detector.input_size))
            measured |= measure_cost(detector, size).to_metrics()
        training = training.view(training.image_ids, size)
        held_out = held_out.view(held_out.image_ids, size)
        latency = _latency(detector, size, settings, quiet)
        measured |= latency.to_metrics()
        _check_bound(latency, settings)
        report({"epoch": 0, "epochs": settings.recipe.epochs, **measured})
        metrics, info = _fit(detector, training, held_out, settings, quiet, report)
        measured |= metrics
        if folder is not None:
            _keep_examples(detector, held_out, settings, quiet, folder)
    except TrialFailure as failure:
        return Failed(failure.reason, failure.detail, measured)
    except torch.OutOfMemoryError as error:
        return Failed("out_of_memory", str(error), measured)
    measured["peak_memory_mb"] = peak_memory_mb(device)
    if folder is not None and settings.checkpoint:
        torch.save(detector.state_dict(), folder / "checkpoint.pt")
    info |= {"latency": latency.to_json(), "device": latency.device, "num_classes": num_classes}
    return Measured(measured, info)


def open_data(settings: Settings) -> tuple[CocoDataset, CocoDataset]:
    """The train part without the search split, and the search split. Never reads val.

    Raises:
        DataError: the data is missing, unreadable or not COCO, or too small to split.
    """
    whole = CocoDataset(DataFolder.open(settings.data).train)
    train_ids, held_out_ids = split_ids(whole.image_ids, settings.search_split)
    if not train_ids or not held_out_ids:
        raise DataError(
            f"data {settings.data}: wanted at least 2 training pictures, got {len(whole)}"
        )
    return whole.view(train_ids, None), whole.view(held_out_ids, None)


def build(settings: Settings, sample: Sample, num_classes: int) -> nn.Module:
    """The detector of a sample, plain and with fresh weights of the trial's seed."""
    return fresh_detector(
        lambda: open_space(settings.space, settings.library, num_classes=num_classes),
        sample,
        settings.seed,
    )


def fresh_detector(open_it: Callable[[], ModelSpace], sample: Sample, seed: int) -> nn.Module:
    """The detector that a trial with this seed starts from, weight by weight.

    The same network has the same weights whichever space its sample is of.

    Args:
        open_it: builds the search space, which draws from torch's generator, too.
        sample: of that space.
        seed: of torch's global generator.
    """
    space = open_it()
    torch.manual_seed(seed)
    return space.freeze(dict(sample))


def check_settings(settings: Settings) -> None:
    """Looks at everything that a trial will need, without building or training a detector.

    Raises:
        UserError: something is missing or wrong.
    """
    _ = settings.torch_device
    training, held_out = open_data(settings)
    for dataset in (training, held_out):
        missing = dataset.missing_pictures()
        if missing:
            raise DataError(
                f"data {settings.data}: {len(missing)} pictures are missing,"
                f" for instance {missing[0]}"
            )
    open_space(settings.space, settings.library, num_classes=training.num_classes)


def _latency(
    detector: nn.Module, size: tuple[int, int], settings: Settings, quiet: QuietDevice
) -> Latency:
    return measure_latency(
        detector,
        size,
        device=settings.torch_device,
        quiet=quiet,
        precision="amp" if settings.amp else "fp32",
        channels_last=settings.torch_device.type == "cuda",
        threads=settings.latency_threads,
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
) -> tuple[dict[str, float], dict[str, Any]]:
    """Trains, evaluating after each epoch; returns the last metrics and what else is worth
    keeping.
    """
    device, generator = settings.torch_device, torch.Generator().manual_seed(settings.seed)
    loader = training_loader(training, settings, generator)
    curve: list[dict[str, Any]] = []

    def after_epoch(epoch: int, stats: EpochStats) -> None:
        metrics = evaluate(
            detector,
            held_out,
            device=device,
            batch=settings.recipe.batch,
            quiet=quiet,
            amp=settings.amp,
            workers=settings.workers,
        )
        curve.append({"epoch": epoch + 1, "loss": stats.loss, **metrics})
        report(curve[-1])

    stats = train(
        detector,
        lambda epoch: loader,
        settings.recipe,
        device=device,
        generator=generator,
        quiet=quiet,
        on_epoch=after_epoch,
        amp=settings.amp,
        channels_last=device.type == "cuda",
    )
    last = {name: value for name, value in curve[-1].items() if name not in ("epoch", "loss")}
    recipe = f"{settings.recipe.describe()}, {describe_norm(detector)}"
    info = {"curve": curve, "batch_parts": stats.parts, "recipe": recipe}
    return last | {"train_seconds": stats.seconds}, info


def _keep_examples(
    detector: nn.Module,
    held_out: CocoDataset,
    settings: Settings,
    quiet: QuietDevice,
    folder: Path,
) -> None:
    found = find_examples(
        detector, held_out, device=settings.torch_device, quiet=quiet, amp=settings.amp
    )
    found["data"] = str(settings.data.resolve())
    (folder / EXAMPLES_FILE).write_text(json.dumps(found))


def training_loader(
    dataset: CocoDataset, settings: Settings, generator: torch.Generator
) -> DataLoader:
    """Batches of a trial's training, in a new order each epoch that the generator draws."""
    return DataLoader(
        dataset,
        batch_sampler=_Shuffled(len(dataset), settings.recipe.batch, generator),
        collate_fn=collate,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        # its own, so that starting an epoch draws nothing from the trial's generators
        generator=torch.Generator().manual_seed(settings.seed),
    )


class _Shuffled(Sampler[list[int]]):
    """Batches of indices, in a new order each epoch."""

    def __init__(self, length: int, batch: int, generator: torch.Generator) -> None:
        self._length, self._batch, self._generator = length, batch, generator

    def __iter__(self) -> Iterator[list[int]]:
        return iter(epoch_batches(self._length, self._batch, self._generator))

    def __len__(self) -> int:
        return -(-self._length // self._batch)


# -- the program ----------------------------------------------------------------------------------


_NNI_TRIAL = "NNI_TRIAL_JOB_ID"


class FolderReporter:
    """Writes a trial's results into its folder: `curve.jsonl` as it goes, `outcome.json` at the
    end.

    Args:
        folder: of the trial; made if it is not there.
        sample: of the trial.
    """

    def __init__(self, folder: Path, sample: Sample) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._candidate = folder, Candidate(0, "trial", sample)
        self._curve = folder / CURVE
        self._curve.unlink(missing_ok=True)

    def epoch(self, record: dict[str, Any]) -> None:
        print(" ".join(f"{name} {value:.4g}" for name, value in record.items()), flush=True)
        with self._curve.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def end(self, outcome: Outcome) -> None:
        write_outcome(self._folder, self._candidate, outcome)


class NniReporter:
    """Sends a trial's results to NNI's manager, which draws `default` (mAP) and keeps the rest.

    Before training, mAP is drawn as 0, and the sample goes along: an assessor hears nothing else.

    A failure is reported as well, as the record that the journal keeps: the exit status tells NNI
    that the trial failed, but the tuner would not hear why. A result reaches it from a remote
    machine too, where it could not read the trial's folder.

    Args:
        sample: of the trial.
    """

    def __init__(self, sample: Sample) -> None:
        self._sample = sample

    def epoch(self, record: dict[str, Any]) -> None:
        if record["epoch"] == 0:
            before = {"default": 0.0, **record, "sample": dict(self._sample)}
            nni.report_intermediate_result(before)
        else:
            nni.report_intermediate_result({"default": record["map"], **record})

    def end(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            nni.report_final_result(outcome.to_json())
            return
        info = {**outcome.info, "nni_trial": nni.get_trial_id()}
        metrics = dict(outcome.metrics)
        nni.report_final_result({"default": metrics["map"], **metrics, "info": info})


def run_from_command_line(
    settings: Settings, sample_file: Path | None, folder: Path | None, check_only: bool
) -> int:
    """What `smnas trial` does; returns its exit status: 0 measured, 1 failed.

    Args:
        settings: from the options.
        sample_file: JSON of the sample; None under NNI, which hands it over itself.
        folder: where the outcome goes; None prints it, and takes the trial's own under NNI.
        check_only: look at settings, space and data, and stop.

    Raises:
        UserError: the settings, the sample or the data are wrong.
    """
    _end_with_parent()
    if check_only:
        check_settings(settings)
        return 0
    under_nni = sample_file is None and _NNI_TRIAL in os.environ
    if under_nni:
        end_with_manager()
    sample = nni.get_next_parameter() if under_nni else read_sample(sample_file)
    reporters: list[Reporter] = [NniReporter(sample)] if under_nni else []
    if under_nni and folder is None:
        folder = Path(os.environ["NNI_OUTPUT_DIR"])
    if folder is not None:
        reporters.append(FolderReporter(folder, sample))
    try:
        outcome = _guarded(settings, sample, reporters, folder)
    except UserError as error:
        _end(reporters, Failed("error", str(error)))
        raise
    except KeyboardInterrupt:
        # NNI says no more than that; when it stops the whole experiment it hears no result either
        if under_nni:
            why = "NNI stopped the trial: longer than maxTrialDuration, or cancelled by its user"
            _end(reporters, Failed("timeout", why))
        raise
    if not reporters:
        print(json.dumps(outcome.to_json()), flush=True)
    _end(reporters, outcome)
    return 0 if isinstance(outcome, Measured) else 1


def _end(reporters: Sequence[Reporter], outcome: Outcome) -> None:
    for reporter in reporters:
        reporter.end(outcome)


def nni_threads(space: str) -> int | None:
    """This trial's share of the cores under NNI, which divides them among nobody; None elsewhere.

    Args:
        space: the trial's SPACE; an experiment file tells how many trials share the machine.
    """
    concurrency = trial_concurrency(space) if _NNI_TRIAL in os.environ else None
    return None if concurrency is None else local_workers(concurrency)[0].threads


def _guarded(
    settings: Settings, sample: Sample, reporters: list[Reporter], folder: Path | None
) -> Outcome:
    """The trial's outcome; an error that nobody foresaw becomes one too, with its traceback."""

    def report(record: dict[str, Any]) -> None:
        for reporter in reporters:
            reporter.epoch(record)

    try:
        return run_trial(settings, sample, report, folder)
    except UserError:
        raise
    except Exception as error:
        traceback.print_exc()
        return Failed("error", f"{type(error).__name__}: {error}\n{traceback.format_exc()[-2000:]}")


def read_sample(path: Path | None) -> Sample:
    """The sample in a JSON file.

    Raises:
        ConfigError: there is no file, or it holds no JSON object.
    """
    if path is None:
        raise ConfigError("trial: wanted --sample FILE with the sample to measure, got none")
    try:
        sample = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--sample {path}: wanted a JSON file: {error}") from error
    if not isinstance(sample, dict):
        raise ConfigError(f"--sample {path}: wanted a JSON object, got {sample!r:.60}")
    return sample


def _end_with_parent() -> None:
    """Ends this process when the search that started it ends, however that happens.

    The embedded runner holds the other end of standard input; it closes when the runner's process
    dies.
    """
    if not os.environ.get("SMNAS_WATCH_STDIN"):
        return

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()
