"""Images a second of our short training against the plain loops that others write.

    python benchmarks/throughput.py DATA

The same detector is trained from the same weights on the same pictures of DATA (a folder in COCO
format), batch and machine: by smnas's loop and data set as a trial uses them; by the plain loop of
torchvision's detection references (zero_grad, losses, backward, step, the loss looked at) with
their transforms and loader; and, where it is installed, by detectron2's `SimpleTrainer` with that
loader. All begin with nothing decoded, so a whole short training counts, its slow first epoch
included; contestants take turns, in another order each round. Prints images a second, the share of
time spent waiting for data and our speed as a ratio; writes benchmarks/results/throughput.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import write_results
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from smnas.data.coco import CocoDataset, DataFolder
from smnas.detectors.components import parse_input_size
from smnas.quiet import QuietDevice
from smnas.spaces import open_space
from smnas.training.loop import train
from smnas.training.recipe import Recipe
from smnas.trial import Settings, fresh_detector, training_loader

SPACE = "search_spaces.structural:StructuralSpace"
SAMPLE = {
    "backbone": "resnet18", "neck": "fpn", "neck_start": 2, "neck_end": 5, "neck_width": 128,
    "rpn": "rpn", "head": "rcnn",
}  # fmt: skip
SEED = 0
REFERENCE_WORKERS = 4
"""Loading processes of torchvision's references by default."""


@dataclass(frozen=True)
class Job:
    """What everybody has to do.

    Args:
        data: whose `train` is trained on.
        image_ids: the pictures; all have objects, because the references leave out others.
        input_size: WIDTHxHEIGHT.
        recipe: epochs, batch and learning rate.
        device: where to train.
    """

    data: Path
    image_ids: list[int]
    input_size: str
    recipe: Recipe
    device: torch.device

    def detector(self, num_classes: int) -> nn.Module:
        arguments = {"num_classes": num_classes, "input_sizes": [self.input_size]}
        sample = {**SAMPLE, "input_size": self.input_size}
        detector = fresh_detector(lambda: open_space(SPACE, None, **arguments), sample, SEED)
        return detector.to(self.device).train()


@dataclass(frozen=True)
class Pace:
    """How a training went: seconds in all, seconds of them spent waiting for data, pictures."""

    seconds: float
    waiting: float
    pictures: int


class Waiting:
    """A loader that notes how long its batches were waited for, and how many pictures came."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.seconds, self.pictures = loader, 0.0, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        start = time.perf_counter()
        for batch in self.loader:
            self.seconds += time.perf_counter() - start
            self.pictures += len(batch[0])
            yield batch
            start = time.perf_counter()
        self.seconds += time.perf_counter() - start


def by_smnas(job: Job) -> Pace:
    """The loop, data set and loader of a trial, in fp32."""
    settings = Settings(SPACE, job.data, job.recipe, device=job.device.type)
    dataset = CocoDataset(
        DataFolder.open(job.data).train,
        image_ids=job.image_ids,
        input_size=parse_input_size(job.input_size),
    )
    generator = torch.Generator().manual_seed(SEED)
    loader = Waiting(training_loader(dataset, settings, generator))
    detector = job.detector(dataset.num_classes)
    start = time.perf_counter()
    train(
        detector,
        lambda epoch: loader,
        job.recipe,
        device=job.device,
        generator=generator,
        quiet=QuietDevice(str(job.device)),
        on_epoch=lambda epoch, stats: None,
    )
    return Pace(time.perf_counter() - start, loader.seconds, loader.pictures)


def by_torchvision(job: Job, workers: int) -> Pace:
    """The plain loop of torchvision's detection references."""
    detector, loader, optimizer = plain_parts(job, workers)
    start = time.perf_counter()
    for _ in range(job.recipe.epochs):
        for images, targets in loader:
            images = [image.to(job.device) for image in images]
            targets = [{k: v.to(job.device) for k, v in target.items()} for target in targets]
            losses = detector(images, targets)
            loss = sum(losses.values())
            if not math.isfinite(loss.item()):
                raise SystemExit(f"the plain loop diverged: {losses}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Pace(time.perf_counter() - start, loader.seconds, loader.pictures)


def by_detectron2(job: Job, workers: int) -> Pace:
    """detectron2's trainer: our detector and torchvision's loader in its loop."""
    from detectron2.engine import SimpleTrainer

    detector, loader, optimizer = plain_parts(job, workers)

    class Unpacked(nn.Module):
        """detectron2 hands a batch over as one argument, wherever it is."""

        def __init__(self) -> None:
            super().__init__()
            self.detector = detector

        def forward(self, batch: Any) -> Any:
            images, targets = batch
            images = [image.to(job.device) for image in images]
            return self.detector(
                images, [{k: v.to(job.device) for k, v in target.items()} for target in targets]
            )

    class Endless:
        """detectron2's loaders never end."""

        def __iter__(self) -> Iterator[Any]:
            while True:
                yield from loader

    steps = job.recipe.epochs * len(loader)
    trainer = SimpleTrainer(Unpacked().train(), Endless(), optimizer)
    start = time.perf_counter()
    trainer.train(0, steps)
    return Pace(time.perf_counter() - start, loader.seconds, loader.pictures)


def plain_parts(job: Job, workers: int) -> tuple[nn.Module, Waiting, torch.optim.Optimizer]:
    """Detector, loader and optimiser as torchvision's references make them."""
    dataset, num_classes = plain_dataset(job)
    loader = DataLoader(
        dataset,
        batch_size=job.recipe.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=as_lists,
        generator=torch.Generator().manual_seed(SEED),
    )
    detector = job.detector(num_classes)
    rates = {"lr": job.recipe.lr / 10, "momentum": 0.9, "weight_decay": 1e-4}
    return detector, Waiting(loader), torch.optim.SGD(detector.parameters(), **rates)


def plain_dataset(job: Job) -> tuple[Dataset[Any], int]:
    """torchvision's COCO data set with the transforms of its references, and its classes.

    Pictures come at the size of their files; the detector scales them.
    """
    part = DataFolder.open(job.data).train
    # boxes of whole pixels would stay integers
    floats = {tv_tensors.Image: torch.float32, tv_tensors.BoundingBoxes: torch.float32}
    steps = [
        v2.RandomHorizontalFlip(job.recipe.flip),
        v2.ToImage(),
        v2.ToDtype({**floats, "others": None}, scale=True),
        v2.ConvertBoundingBoxFormat("XYXY"),
        v2.SanitizeBoundingBoxes(),
        v2.ToPureTensor(),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        pictures = CocoDetection(part.images, str(part.annotations), transforms=v2.Compose(steps))
    wrapped = wrap_dataset_for_transforms_v2(pictures, target_keys=("boxes", "labels"))
    wanted = set(job.image_ids)
    places = [place for place, key in enumerate(pictures.ids) if key in wanted]
    return Subset(wrapped, places), max(pictures.coco.cats)


def as_lists(batch: list[Any]) -> tuple[list[Any], list[Any]]:
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=64, help="cut to whole batches")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", default="128x96")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not find_spec("detectron2"):
        print("detectron2 is not installed: left out")
    job = make_job(arguments)
    contestants = find_contestants(job)
    for warm_up in find_contestants(first_batch(job)).values():
        warm_up()
    paces = run_rounds(contestants, arguments.rounds)
    rows = [summary(name, paces[name], paces["smnas"]) for name in contestants]
    show(rows)
    settings = {k: v for k, v in vars(arguments).items() if k != "data"}
    results = {
        "data": arguments.data.name,
        "device": str(job.device),
        "settings": settings | {"images": len(job.image_ids)},
        "rows": rows,
    }
    print(write_results("throughput", results))


def make_job(arguments: argparse.Namespace) -> Job:
    whole = CocoDataset(DataFolder.open(arguments.data).train)
    usable = [key for key in whole.image_ids if whole.coco.imgToAnns.get(key)]
    count = min(arguments.images, len(usable)) // arguments.batch * arguments.batch
    if count == 0:
        raise SystemExit(f"wanted a batch of pictures with objects, got {len(usable)} of them")
    recipe = Recipe(epochs=arguments.epochs, batch=arguments.batch)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Job(arguments.data, usable[:count], arguments.size, recipe, device)


def first_batch(job: Job) -> Job:
    """The same for one step, so that nobody pays for what a process does once."""
    short = replace(job.recipe, epochs=1)
    return replace(job, image_ids=job.image_ids[: short.batch], recipe=short)


def find_contestants(job: Job) -> dict[str, Callable[[], Pace]]:
    """Each by its name; with as many loading processes as ours has, and with the references'."""
    own = Settings(SPACE, job.data, device=job.device.type).workers
    found: dict[str, Callable[[], Pace]] = {"smnas": partial(by_smnas, job)}
    for workers in dict.fromkeys([own, REFERENCE_WORKERS]):
        found[f"torchvision, {workers} loaders"] = partial(by_torchvision, job, workers)
    if find_spec("detectron2"):
        found[f"detectron2, {own} loaders"] = partial(by_detectron2, job, own)
    return found


def run_rounds(contestants: dict[str, Callable[[], Pace]], rounds: int) -> dict[str, list[Pace]]:
    """One training of each a round; who begins changes from round to round."""
    names = list(contestants)
    paces: dict[str, list[Pace]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            pace = contestants[name]()
            paces[name].append(pace)
            print(f"round {number + 1}: {name}: {pace.pictures / pace.seconds:.2f} images/s")
    return paces


def summary(name: str, paces: list[Pace], ours: list[Pace]) -> dict[str, Any]:
    """Means over rounds with lowest and highest; the ratio is ours to theirs, round by round."""
    speeds = [pace.pictures / pace.seconds for pace in paces]
    ratios = [(own.pictures / own.seconds) / speed for own, speed in zip(ours, speeds, strict=True)]
    return {
        "name": name,
        "images_per_s": fmean(speeds),
        "images_per_s_range": [min(speeds), max(speeds)],
        "waiting_share": fmean(pace.waiting / pace.seconds for pace in paces),
        "ratio": fmean(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Throughput of a short training (mean over rounds, lowest to highest)")
    for name in ("loop", "images/s", "waiting for data", "smnas to it"):
        table.add_column(name)
    for row in rows:
        speeds, ratios = row["images_per_s_range"], row["ratio_range"]
        table.add_row(
            row["name"],
            f"{row['images_per_s']:.2f} ({speeds[0]:.2f} to {speeds[1]:.2f})",
            f"{100 * row['waiting_share']:.1f} %",
            f"{row['ratio']:.2f} ({ratios[0]:.2f} to {ratios[1]:.2f})",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
