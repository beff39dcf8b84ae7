"""The full training of a found detector (`smnas train`): all of train, averaged weights, resume.

It is the trial's loop with the trial's recipe, longer. What an epoch draws at random follows from
the seed, the number of the epoch and the process alone, so a training that was killed goes on from
its last whole epoch as if nothing had been. Several processes (`torchrun`) share each batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fasteners import InterProcessLock
from torch import nn
from torch.utils.data import DataLoader, Sampler

from smnas.data.coco import CocoDataset, DataFolder, collate
from smnas.data.split import split_ids
from smnas.deploy.progress import MovingAverage, Scalars, save_whole
from smnas.deploy.ranks import Ranks
from smnas.deploy.saved import (
    WEIGHTS_FILE,
    Category,
    Plan,
    check_classes,
    fill,
    load_state,
    write_plan,
)
from smnas.deploy.score import Scores, score
from smnas.deploy.settings import Training, check_same
from smnas.detectors.components import parse_input_size
from smnas.errors import DataError, DeployError, RunError, TrialFailure
from smnas.training.evaluation import evaluate
from smnas.training.loop import EpochStats, Trainer, epoch_batches, train

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
RESULT = "metrics.json"
"""In the training's folder: where it stands, the best weights so far, what came out."""

Say = Callable[[str], None]


def say_now(line: str) -> None:
    """Prints a line at once, into pipes and files too."""
    print(line, flush=True)


def train_detector(
    plan: Plan, training: Training, folder: Path, ranks: Ranks, workers: int = 0, say: Say = say_now
) -> dict[str, Any]:
    """Trains a detector, or goes on with it, or says again what came out.

    Args:
        plan: of the detector.
        training: how; the number of processes is that of `ranks`.
        folder: that holds it all: plan, checkpoint, weights, scalars, result.
        ranks: this process among the others.
        workers: processes that load pictures for this one.
        say: takes a line for the user, in the first process only.

    Returns:
        What `metrics.json` holds: `metrics` on val (None where the data has no val), `classes`,
        `epochs` that were trained, `best_epoch`, `seconds`; in the first process only.

    Raises:
        DeployError: the folder is another training's, or in use; the training diverged or did not
            fit into memory.
        UserError: data or space are wrong.
    """
    with _only_training(folder, ranks):
        known = ranks.agreed(check_same(folder, plan, training) if ranks.first else None)
        if known and (folder / RESULT).is_file():
            return dict(json.loads((folder / RESULT).read_text()))
        data = _Data(plan, training)
        if ranks.first:
            write_plan(folder, plan, data.categories, training=training.to_json())
        run = _Run(plan, training, folder, ranks, data, workers, say)
        try:
            run.train()
        except TrialFailure as failure:
            raise DeployError(f"training: {failure.reason}: {failure.detail}") from failure
        except torch.OutOfMemoryError as error:
            raise DeployError(
                f"training: out of memory; take a smaller --batch: {error}"
            ) from error
        return run.finish() if ranks.first else {}


class _Data:
    """The pictures that are trained on, those that are watched, and val.

    Args:
        plan: of the detector; its number of classes is the data's.
        training: which data, and what is watched.

    Raises:
        DataError: data are missing, wrong, or of another number of classes.
    """

    def __init__(self, plan: Plan, training: Training) -> None:
        folder = DataFolder.open(training.data)
        whole = CocoDataset(folder.train)
        if whole.num_classes != plan.num_classes:
            raise DataError(
                f"data {training.data}: wanted {plan.num_classes} classes, as the run had, got"
                f" {whole.num_classes}"
            )
        self.categories: list[Category] = [
            {"id": key, "name": name}
            for key, name in zip(whole.category_ids, whole.categories, strict=True)
        ]
        self.val = None if folder.val is None else CocoDataset(folder.val)
        if self.val is not None:
            check_classes(self.val, whole.categories, "train")
        train_ids, watched = whole.image_ids, self.val
        if training.watch == "search":
            train_ids, held_out = split_ids(whole.image_ids, training.search_split)
            watched = whole.view(held_out, None)
        elif training.patience is not None and watched is None:
            raise DataError(
                f"data {training.data}: wanted annotations/instances_val*.json to judge by, got"
                " none; --watch search holds a part of train out"
            )
        self.train, self.watched = whole.view(train_ids, None), watched


class _Run:
    """One process's part in a training, from its checkpoint to its end."""

    def __init__(
        self,
        plan: Plan,
        training: Training,
        folder: Path,
        ranks: Ranks,
        data: _Data,
        workers: int,
        say: Say,
    ) -> None:
        self._training, self._folder, self._ranks, self._say = training, folder, ranks, say
        self._quiet, self._workers = ranks.quiet(), workers
        self._detector = _first_weights(plan, training).to(ranks.device)
        if ranks.device.type == "cuda":
            self._detector.to(memory_format=torch.channels_last)
        self._average = MovingAverage(self._detector, training.average)
        size = parse_input_size(str(self._detector.input_size))
        self._train = data.train.view(data.train.image_ids, size)
        self._watched, self._val = (
            None if part is None else part.view(part.image_ids, size)
            for part in (data.watched, data.val)
        )
        self._state: dict[str, Any] = {"epoch": 0, "curve": [], "seconds": 0.0, "best": None}
        self._scalars: Scalars | None = None

    def train(self) -> None:
        """Trains from where the checkpoint stands to the end."""
        generator = torch.Generator()
        batches = _Batches(self._train, self._training.recipe.batch, self._training.seed)
        loader = batches.loader(self._ranks, self._workers)

        def of_epoch(epoch: int) -> DataLoader[Any]:
            seed = self._ranks.seed(self._training.seed, epoch)
            generator.manual_seed(seed)
            # torchvision's detectors sample proposals with it
            torch.manual_seed(seed)
            batches.epoch = epoch
            return loader

        train(
            self._ranks.together(self._detector),
            of_epoch,
            self._training.recipe,
            device=self._ranks.device,
            generator=generator,
            quiet=self._quiet,
            on_epoch=self._after_epoch,
            amp=self._training.amp,
            channels_last=self._ranks.device.type == "cuda",
            on_start=lambda trainer: self._begin(trainer, len(batches)),
            on_step=self._after_step,
        )
        if self._scalars is not None:
            self._scalars.close()

    def finish(self) -> dict[str, Any]:
        """Keeps the weights, evaluates them on val, and writes down what came out."""
        detector = self._average.detector
        if (self._folder / BEST).is_file():
            fill(detector, load_state(self._folder / BEST, "training"), self._folder / BEST)
        scores = None if self._val is None else self._score(detector, self._val)
        result = self._result(scores)
        save_whole(_on_cpu(detector), self._folder / WEIGHTS_FILE)
        _write_json(self._folder / RESULT, result)
        return result

    def _begin(self, trainer: Trainer, steps: int) -> int:
        self._trainer, self._steps = trainer, steps
        path = self._folder / CHECKPOINT
        if path.is_file():
            saved = load_state(path, "training")
            self._detector.load_state_dict(saved["detector"])
            self._average.load_state_dict(saved["average"])
            trainer.load_state_dict(saved["trainer"])
            self._state = saved["state"]
            self._tell(f"going on after epoch {self._state['epoch']}")
        if self._ranks.first:
            first_step = self._state["epoch"] * steps
            self._scalars = Scalars(self._folder / "tensorboard", first_step)
        return self._training.recipe.epochs if self._patience_over() else self._state["epoch"]

    def _after_step(self, step: int, values: Mapping[str, float]) -> None:
        self._average.update()
        if self._ranks.device.type == "cuda":
            # the quiet window wants an idle device
            torch.cuda.synchronize(self._ranks.device)
        if self._scalars is not None:
            self._scalars.step(step, values)

    def _after_epoch(self, epoch: int, stats: EpochStats) -> bool:
        self._state["epoch"] = epoch + 1
        self._state["seconds"] += stats.seconds
        if self._ranks.first:
            line = {"epoch": epoch + 1, "loss": stats.loss, **self._watch(epoch)}
            self._state["curve"].append(line)
            self._keep()
            self._tell(" ".join(f"{name} {value:.4g}" for name, value in line.items()))
        return self._ranks.agreed(self._patience_over())

    def _watch(self, epoch: int) -> dict[str, float]:
        """Metrics on what is watched, if it is time for it; keeps the best weights."""
        every, last = self._training.every, self._training.recipe.epochs - 1
        due = every and ((epoch + 1) % every == 0 or epoch == last)
        if self._watched is None or not due:
            return {}
        metrics = evaluate(
            self._average.detector,
            self._watched,
            device=self._ranks.device,
            batch=self._training.recipe.batch,
            quiet=self._quiet,
            amp=self._training.amp,
            workers=self._workers,
        )
        assert self._scalars is not None
        self._scalars.epoch((epoch + 1) * self._steps, metrics, self._training.watch)
        self._compare(epoch, metrics["map"])
        return metrics

    def _compare(self, epoch: int, value: float) -> None:
        if self._training.patience is None:
            return
        best = self._state["best"]
        if best is None or value > best["map"]:
            self._state["best"] = {"epoch": epoch + 1, "map": value, "evaluations": 0}
            save_whole(_on_cpu(self._average.detector), self._folder / BEST)
        else:
            best["evaluations"] += 1

    def _patience_over(self) -> bool:
        best, patience = self._state["best"], self._training.patience
        return best is not None and patience is not None and best["evaluations"] >= patience

    def _keep(self) -> None:
        state = {
            "detector": self._detector.state_dict(),
            "average": self._average.state_dict(),
            "trainer": self._trainer.state_dict(),
            "state": self._state,
        }
        save_whole(state, self._folder / CHECKPOINT)

    def _score(self, detector: nn.Module, dataset: CocoDataset) -> Scores:
        return score(
            detector,
            dataset,
            device=self._ranks.device,
            batch=self._training.recipe.batch,
            quiet=self._quiet,
            amp=self._training.amp,
            workers=self._workers,
        )

    def _result(self, scores: Scores | None) -> dict[str, Any]:
        best = self._state["best"]
        return {
            **(scores.to_json() if scores else {"metrics": None, "classes": []}),
            "epochs": self._state["epoch"],
            "best_epoch": None if best is None else best["epoch"],
            "chosen_on": None if best is None else self._training.watch,
            "weights": "moving average" if self._training.average else "last step",
            "started_from": "scratch" if self._training.start is None else "the trial's weights",
            "seconds": self._state["seconds"],
            "curve": self._state["curve"],
        }

    def _tell(self, line: str) -> None:
        if self._ranks.first:
            self._say(line)


class _Batches(Sampler[list[int]]):
    """A process's part of each batch of an epoch, in an order that the epoch's number decides."""

    epoch = 0

    def __init__(self, dataset: CocoDataset, batch: int, seed: int) -> None:
        self._dataset, self._batch, self._seed = dataset, batch, seed
        self._ranks = Ranks()

    def loader(self, ranks: Ranks, workers: int) -> DataLoader[Any]:
        """What loads them for a process."""
        self._ranks = ranks
        return DataLoader(
            self._dataset,
            batch_sampler=self,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            # its own, so that starting an epoch draws nothing from torch's
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[list[int]]:
        # the same in all processes
        generator = torch.Generator().manual_seed(Ranks().seed(self._seed, self.epoch))
        whole = epoch_batches(len(self._dataset), self._batch, generator)
        return iter([self._ranks.share(batch) for batch in whole])

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._batch)


def _first_weights(plan: Plan, training: Training) -> nn.Module:
    detector = plan.build(training.seed)
    if training.start is not None:
        fill(detector, load_state(training.start, plan.origin), training.start)
    return detector


def _on_cpu(detector: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in detector.state_dict().items()}


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record, indent=1) + "\n")
    new.replace(path)


@contextmanager
def _only_training(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Holds the folder against a second training in it, such as what a killed `torchrun` has left
    running.
    """
    if not ranks.first:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = InterProcessLock(folder / ".lock")
        acquired = lock.acquire(blocking=False)
    except OSError as error:
        raise RunError(f"folder {folder}: cannot be written: {error.strerror}") from error
    if not acquired:
        raise RunError(f"folder {folder}: another training is running in it")
    try:
        yield
    finally:
        lock.release()
