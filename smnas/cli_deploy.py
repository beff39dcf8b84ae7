"""`smnas train`, `evaluate`, `predict`, `export`: `smnas.cli` puts them among its commands.

Heavy libraries are imported inside, as in `smnas.cli`.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from smnas.cli_options import Classes, Data, Device, OnDevice, Precision, Target, Threads
from smnas.errors import ConfigError, UserError

if TYPE_CHECKING:
    import torch


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Batch = Annotated[int, typer.Option(min=1, help="Pictures at a time.")]


def train(
    target: Annotated[str, typer.Argument(help="RUN#ID of a candidate.", metavar="RUN#ID")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder of the training.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training pictures.")],
    data: Data = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Pictures in a step, in all processes together.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate at batch 4.")] = None,
    scale_jitter: Annotated[
        tuple[float, float] | None, typer.Option(help="Smallest and largest zoom; 1 1 for none.")
    ] = None,
    flip: Annotated[float | None, typer.Option(help="Probability of a horizontal flip.")] = None,
    ema: Annotated[
        float, typer.Option(help="Decay of the moving average of the weights; 0 for none.")
    ] = 0.9998,
    from_trial: Annotated[
        bool, typer.Option("--from-trial", help="Start with the trial's weights, not from scratch.")
    ] = False,
    every: Annotated[
        int, typer.Option(min=0, help="Epochs between evaluations; 0: only at the end.")
    ] = 1,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many evaluations without a better mAP."),
    ] = None,
    watch: Annotated[
        str, typer.Option(help="What is evaluated: val, or search, a part of train held out.")
    ] = "val",
    search_split: Annotated[float, typer.Option(help="With --watch search: that part.")] = 0.25,
    seed: Annotated[int | None, typer.Option(min=0, help="Default the run's.")] = None,
    device: OnDevice = Device.auto,
    threads: Threads = None,
    precision: Precision = None,
    loader_workers: Annotated[int, typer.Option(min=0, help="Loading processes, on CUDA.")] = 4,
    classes: Classes = None,
    as_json: AsJson = False,
) -> None:
    """Train a found detector on all of train, and evaluate it on val; the same command resumes.

    The recipe is the run's; options go before it. On several devices: torchrun --no-python smnas
    train …
    """
    from smnas.deploy import saved
    from smnas.deploy.ranks import joined
    from smnas.deploy.settings import Training, use_threads
    from smnas.deploy.train import train_detector

    options: dict[str, Any] = {"epochs": epochs, "batch": batch, "lr": lr, "flip": flip}
    options["scale_jitter"] = scale_jitter
    opened, recipe = saved.candidate(target, classes)
    plan = opened.plan
    where, amp = _device(device, precision)
    use_threads(threads)
    training = Training(
        data=saved.data_of(opened, data).resolve(),
        recipe=recipe(options),
        seed=plan.seed if seed is None else seed,
        average=ema,
        watch=watch,
        search_split=search_split,
        every=every,
        patience=patience,
        start=opened.weights.resolve() if from_trial else None,
        amp=amp,
        device=where.type,
    )
    with joined(where, training.recipe.batch) as ranks:
        workers = loader_workers if where.type == "cuda" else 0
        shared = training.shared_by(ranks.count)
        # with --json only the record is printed where programs read it
        say = partial(print, flush=True, file=sys.stderr if as_json else sys.stdout)
        result = train_detector(plan, shared, out, ranks, workers, say)
        if ranks.first:
            _show(result, f"{target} after {result['epochs']} epochs, val", as_json)
            say(f"  {out / saved.WEIGHTS_FILE}")


def evaluate(
    target: Target,
    data: Data = None,
    batch: Batch = 4,
    device: OnDevice = Device.auto,
    precision: Precision = None,
    threads: Threads = None,
    classes: Classes = None,
    as_json: AsJson = False,
) -> None:
    """Print COCO metrics of a detector on val, over all classes and of each."""
    from smnas.deploy.saved import open_detector
    from smnas.deploy.score import open_val, score
    from smnas.deploy.settings import use_threads
    from smnas.quiet import QuietDevice

    opened = open_detector(target, classes)
    where, amp = _device(device, precision)
    use_threads(threads)
    detector = opened.load(where)
    dataset = open_val(opened, data, str(detector.input_size))
    quiet = QuietDevice(str(where))
    found = score(detector, dataset, device=where, batch=batch, quiet=quiet, amp=amp)
    _show(found.to_json(), f"{target}, val", as_json)


def predict(
    target: Target,
    images: Annotated[
        list[Path], typer.Argument(help="Pictures, or folders of them.", metavar="IMAGES")
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    score: Annotated[
        float, typer.Option(min=0, max=1, help="Least score of a box that is drawn.")
    ] = 0.5,
    device: OnDevice = Device.auto,
    precision: Precision = None,
    threads: Threads = None,
    classes: Classes = None,
) -> None:
    """Look at pictures: each with its boxes as PNG, and all detections as COCO results."""
    from smnas.deploy import predict as looking
    from smnas.deploy.saved import open_detector
    from smnas.deploy.settings import use_threads

    opened = open_detector(target, classes)
    pictures = looking.find_pictures(images)
    where, amp = _device(device, precision)
    use_threads(threads)
    detector = opened.load(where)
    categories = opened.categories or looking.numbered(opened.plan.num_classes)
    options: dict[str, Any] = {"device": where, "amp": amp, "least_score": score}
    found = looking.predict(detector, pictures, categories, out, **options)
    print(f"{len(found)} detections in {len(pictures)} pictures: {out / looking.RESULTS_FILE}")


def export(
    target: Target,
    onnx: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write: ONNX.")
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option(
            help="File to write: Python, for torch and torchvision alone; weights beside."
        ),
    ] = None,
    detectron2: Annotated[
        Path | None, typer.Option(help="File to write: a LazyConfig for plain detectron2.")
    ] = None,
    data: Data = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="ONNX: any size in multiples of 32 pixels.")
    ] = False,
    pictures: Annotated[
        int, typer.Option(min=20, help="Training pictures to compare detectors on.")
    ] = 20,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a measurement.")] = 1,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Time torch.compile as well.")
    ] = True,
    classes: Classes = None,
    as_json: AsJson = False,
) -> None:
    """Write a detector for other programs, and compare what it finds there with what it finds here.

    ONNX and Python want its weights; detectron2's file has none.
    """
    from smnas.deploy import saved

    if onnx is None and python is None and detectron2 is None:
        raise UserError("export: wanted -o FILE.onnx, --python or --detectron2, got none")
    opened = saved.open_detector(target, classes)
    records: dict[str, Any] = {}
    if detectron2 is not None:
        from smnas.deploy.lazy_config import export_lazy_config

        export_lazy_config(opened.plan, detectron2)
        records["detectron2"] = {"file": str(detectron2)}
    if python is not None:
        from smnas.deploy.export import to_python_file

        found = to_python_file(opened, python, data, pictures=pictures)
        records["python"] = {"file": str(python), **found}
    if onnx is not None:
        from smnas.deploy.export import to_onnx

        options: dict[str, Any] = {"dynamic": dynamic, "pictures": pictures}
        options |= {"threads": threads, "compiled": compiled}
        records["onnx"] = {"file": str(onnx), **to_onnx(opened, onnx, data, **options)}
    _show_export(records, as_json)


def _show_export(records: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(records, indent=1))
        return
    for record in records.values():
        print(record["file"])
        for parity in record.get("parity", ()):
            from smnas.deploy.export import parity_line

            print(f"  {parity_line(parity)}")
        if "latency" in record:
            from smnas.deploy.export import latency_table

            Console().print(latency_table(record["latency"]))


def _show(record: dict[str, Any], title: str, as_json: bool) -> None:
    from smnas.deploy.score import table

    if as_json:
        print(json.dumps(record, indent=1))
    elif record["metrics"] is None:
        print(f"{title}: the data have no val part")
    else:
        Console().print(table(record, title))


def _device(device: Device, precision: str | None) -> tuple[torch.device, bool]:
    """The device that is meant, and whether precision is mixed on it."""
    from smnas.trial import find_device

    where = find_device(device.value)
    if precision not in (None, "fp32", "amp"):
        raise ConfigError(f"--precision: wanted fp32 or amp, got {precision!r}")
    if precision == "amp" and where.type != "cuda":
        raise ConfigError(f"--precision: wanted fp32 on {where}, got 'amp', which wants CUDA")
    return where, where.type == "cuda" and precision != "fp32"
