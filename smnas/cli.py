"""The command line: one small function a command. Nothing imports this module.

Heavy libraries are imported inside the commands, so that `smnas --help` and `smnas front` answer at
once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from smnas import __version__, cli_deploy
from smnas.cli_options import Classes, Device, Library
from smnas.errors import MixedDevicesError, RunError, UserError
from smnas.report.command import MeasuredOn, MixedDevices, report

app = typer.Typer(
    help="Search object detectors for the Pareto front of latency against mAP.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Generate, import and check data sets in COCO format.")
app.add_typer(data_app, name="data")
app.command()(report)
for found in (cli_deploy.train, cli_deploy.evaluate, cli_deploy.predict, cli_deploy.export):
    app.command()(found)

# typer carries its own copy of click from some version on: take the class from typer, whichever it
# is
_UsageError: Any = typer.BadParameter.__bases__[0]

Run = Annotated[
    Path, typer.Argument(help="Folder of a run, or the id of an NNI experiment.", metavar="RUN")
]


def main() -> NoReturn:
    """Runs a command; exit status 0 done, 1 our fault, 2 the user's input is wrong, 130
    interrupted.
    """
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        status = _complain(str(error))
    except _UsageError as error:
        status = _complain(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        status = _complain("interrupted", 130)
    sys.exit(status if isinstance(status, int) else 0)


def _complain(message: str, status: int = 2) -> int:
    print("smnas: " + " ".join(message.split()), file=sys.stderr)
    return status


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def search(
    config: Annotated[
        list[Path], typer.Argument(help="Experiment file, one for each stage.", metavar="CONFIG")
    ],
    run: Annotated[
        Path | None, typer.Option(help="Run folder; default runs/NAME OF THE FIRST EXPERIMENT.")
    ] = None,
    trials: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Stop after this many trials; once, or once for each stage."),
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="Ask for nothing new after this many hours.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    library: Annotated[
        Library | None, typer.Option(help="What detectors are built with; default the files'.")
    ] = None,
) -> None:
    """Search, or resume the search that RUN holds, and show the front."""
    from smnas.display import SearchDisplay
    from smnas.experiment import load_experiment
    from smnas.search import Overrides
    from smnas.search import search as run_search

    if hours is not None and not hours > 0:
        raise typer.BadParameter(f"--hours: wanted a number above 0, got {hours}")
    experiments = [load_experiment(path) for path in config]
    folder = run or Path("runs") / experiments[0].name
    console = Console()
    try:
        with SearchDisplay(experiments[0].search.objective_vector(), console) as display:
            own_library = library and library.value
            overrides = Overrides(tuple(trials) if trials else None, hours, workers, own_library)
            reason = run_search(experiments, folder, overrides, display)
    except KeyboardInterrupt:
        command = " ".join(["smnas", *sys.argv[1:]])
        print(f"smnas: stopped; nothing finished is lost; resume with: {command}", file=sys.stderr)
        raise typer.Exit(130) from None
    _show_end(folder, reason, console, experiments[0].search.noise_aware)


def _show_end(run: Path, reason: str, console: Console, noise_aware: bool) -> None:
    from smnas.report import plots, tables
    from smnas.report.devices import open_run

    words = {
        "trials": "complete: all trials are done",
        "hours": "stopped: the time is up; the same command goes on",
        "exhausted": "complete: every legal sample has been tried",
    }
    console.print(f"\nThe search in {run} is {words[reason]}.", highlight=False, soft_wrap=True)
    try:
        device = _measure_front_again(run) if noise_aware and reason != "hours" else None
        history = open_run(run, device)
    except MixedDevicesError as error:
        # the search has done its work; only its front cannot be shown
        console.print(str(error), highlight=False, soft_wrap=True)
        return
    rows = tables.front_rows(history, noise_aware=noise_aware)
    (run / "front.csv").write_text(tables.to_csv(rows))
    pictures = plots.save_plots(history, run)
    if rows:
        console.print(tables.front_table(history, rows))
    else:
        console.print("No trial could be measured; see the reasons in its journal.")
    if noise_aware:
        console.print(f"  again: smnas front {run} --noise-aware", highlight=False, soft_wrap=True)
    for path in (run / "front.csv", *pictures):
        console.print(f"  {path}", highlight=False, soft_wrap=True)


def _measure_front_again(run: Path) -> str | None:
    """The device that the front was measured on once more; None where that is not here."""
    from rich.progress import Progress

    from smnas import retime

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring the front again", total=None)
        device = retime.remeasure_front(run, observe=lambda: progress.advance(task))
    if device is None:
        why = "the trials did not all run on this machine's device"
        print(f"smnas: the front was not measured again: {why}", file=sys.stderr)
    return device


@app.command()
def front(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    under_ms: Annotated[
        float | None, typer.Option(help="Leave out detectors with a higher latency.")
    ] = None,
    device: MeasuredOn = None,
    mixed_devices: MixedDevices = False,
    noise_aware: Annotated[
        bool, typer.Option("--noise-aware", help="Differences within latency's spread count not.")
    ] = False,
) -> None:
    """Print the Pareto set of a run, also while it is running."""
    from smnas.report import tables
    from smnas.report.devices import open_run

    if as_json and as_csv:
        raise UserError("front: wanted --json or --csv, got both")
    history = open_run(run, device, mixed_devices)
    rows = tables.front_rows(history, under_ms, noise_aware)
    if as_json:
        print(json.dumps(rows, indent=1))
    elif as_csv:
        print(tables.to_csv(rows), end="")
    elif rows:
        Console().print(tables.front_table(history, rows))
    else:
        raise RunError(f"run {run}: no trial has been measured{_under(under_ms)} yet")


def _under(under_ms: float | None) -> str:
    return "" if under_ms is None else f" under {under_ms:g} ms"


@app.command()
def latency(
    target: Annotated[
        str,
        typer.Argument(
            help="RUN#ID, RUN with --all or --front, or SPACE with SAMPLE.",
            metavar="RUN#ID|RUN|SPACE",
        ),
    ],
    sample: Annotated[
        Path | None, typer.Argument(help="JSON file of a sample.", metavar="SAMPLE")
    ] = None,
    whole_run: Annotated[
        bool, typer.Option("--all", help="Every measured detector, and keep it in RUN/latency.")
    ] = False,
    front_only: Annotated[
        bool, typer.Option("--front", help="Those of the front only, and keep it in RUN/latency.")
    ] = False,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.auto,
    precision: Annotated[
        str | None, typer.Option(help="fp32, amp or fp16; default as in the run.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default as in the run, else 1.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 1,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Time it under torch.compile.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each detector.")] = 5,
    classes: Classes = None,
) -> None:
    """Measure latency again, here: of one detector, or of a run's detectors in turns."""
    from rich.progress import Progress

    from smnas import retime
    from smnas.report.tables import latency_table
    from smnas.timings import append_timings
    from smnas.trial import find_device

    conditions = retime.Conditions(find_device(device.value), precision, threads, batch, compiled)
    if whole_run and front_only:
        raise UserError("latency: wanted --all or --front, got both")
    several = whole_run or front_only
    run, subjects = _subjects(target, sample, several, front_only, classes)
    console = Console()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=rounds * len(subjects))
        found = retime.retime(subjects, conditions, rounds, lambda: progress.advance(task))
    before = [subject.before for subject in subjects]
    ids = [subject.id for subject in subjects]
    console.print(latency_table(ids, [one.to_json() for one in found], before))
    if several and run is not None:
        for path in append_timings(run, retime.timings(subjects, found)):
            console.print(f"  {path}", highlight=False, soft_wrap=True)


def _subjects(
    target: str, sample: Path | None, several: bool, front_only: bool, classes: int | None
) -> tuple[Path | None, list[Any]]:
    """What `smnas latency` was asked to time, and the folder of the run that it belongs to."""
    from smnas import retime
    from smnas.journal import read_run
    from smnas.nni_runs import find_folder, find_run, split_reference
    from smnas.trial import read_sample

    if sample is not None and not several:
        return None, [retime.sample_subject(target, read_sample(sample), classes)]
    reference = split_reference(target)
    if reference is not None and not several:
        run, candidate_id = reference
        history = read_run(run)
        trials = [retime.find_trial(history, candidate_id)]
    elif several and sample is None:
        run = find_folder(target)
        history = read_run(find_run(target))
        trials = retime.trials_to_time(history, front_only)
    else:
        raise UserError(
            "latency: wanted RUN#ID, RUN --all, RUN --front, or SPACE SAMPLE.json, got"
            f" {target!r}{f' {sample}' if sample else ''}{' --all or --front' if several else ''}"
        )
    if not trials:
        raise RunError(f"run {target}: no trial has been measured yet")
    return run, retime.run_subjects(history, trials, classes)


@app.command()
def doctor() -> None:
    """Look at what smnas needs here, and at what NNI lets others see."""
    from smnas import doctor as checks

    findings = checks.examine()
    Console().print(checks.to_table(findings))
    raise typer.Exit(2 if any(finding.state == "broken" for finding in findings) else 0)


@app.command()
def describe(
    space: Annotated[
        str | None,
        typer.Argument(help="package.module:Class, or an experiment file.", metavar="SPACE"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an NNI search-space file, or the zoo's samples.")
    ] = False,
    zoo: Annotated[bool, typer.Option("--zoo", help="Print the named detectors instead.")] = False,
) -> None:
    """Print a search space: choices, constraints, size, legal combinations; or the zoo."""
    if zoo == (space is not None):
        got = "both" if zoo else "neither"
        raise UserError(f"describe: wanted SPACE or --zoo, got {got}")
    if space is None:
        _describe_zoo(as_json)
    else:
        _describe_space(space, as_json)


def _describe_zoo(as_json: bool) -> None:
    from search_spaces.zoo import rows
    from smnas.report import tables

    if as_json:
        print(json.dumps(rows(), indent=1))
    else:
        Console().print(tables.zoo_table(rows()))


def _describe_space(space: str, as_json: bool) -> None:
    from smnas.deploy import support
    from smnas.encoding import Encoding
    from smnas.spaces import open_space

    opened = open_space(space)
    encoding = Encoding.of(opened)
    if as_json:
        print(json.dumps(encoding.nni_search_space(), indent=2))
        return
    text = encoding.describe()
    for label, options in text["choices"].items():
        kind = "ordinal" if label in text["ordinal"] else "nominal"
        print(f"{label} ({kind}): {', '.join(map(str, options))}")
        for option in options:
            for name, why in support.option_limits(label, option).items():
                print(f"  {option}: no export as {name}: {why}")
    for label, expression in text["constraints"].items():
        print(f"constraint {label}: {expression}")
    legal = "too many to count" if text["legal"] is None else f"{text['legal']:,}"
    print(f"{text['size']:,} combinations, {legal} legal")
    print("\n".join(support.lines(opened)))


@app.command()
def trial(
    space: Annotated[
        str, typer.Argument(help="package.module:Class, or an experiment file.", metavar="SPACE")
    ],
    data: Annotated[Path, typer.Option(help="Data set in COCO format.")],
    sample: Annotated[
        Path | None, typer.Option(help="JSON file of the sample.", envvar="SMNAS_SAMPLE")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the outcome.", envvar="SMNAS_TRIAL_DIR")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training pictures.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures in a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate at batch 4.")] = None,
    scale_jitter: Annotated[
        tuple[float, float] | None, typer.Option(help="Smallest and largest zoom; 1 1 for none.")
    ] = None,
    flip: Annotated[float | None, typer.Option(help="Probability of a horizontal flip.")] = None,
    search_split: Annotated[
        float, typer.Option(help="Part of train that is held out to rank detectors.")
    ] = 0.25,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="What is slower is not trained.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, envvar="SMNAS_SEED", help="Of the training; default the experiment's."),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to build and train.")] = Device.auto,
    threads: Annotated[
        int | None, typer.Option(min=1, envvar="SMNAS_THREADS", help="CPU threads of training.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32 or amp; default amp on CUDA, else fp32.")
    ] = None,
    checkpoint: Annotated[bool, typer.Option(help="Keep the trained weights.")] = True,
    latency_threads: Annotated[int, typer.Option(min=1, help="CPU threads of a measurement.")] = 1,
    loader_workers: Annotated[int, typer.Option(min=0, help="Loading processes, on CUDA.")] = 4,
    library: Annotated[
        Library | None,
        typer.Option(envvar="SMNAS_LIBRARY", help="What it is built with; default the file's."),
    ] = None,
) -> None:
    """Build, time, train and evaluate one detector: what both runners start.

    How it is trained stands in the experiment file (`recipe`); options go before it.
    """
    from smnas.spaces import open_recipe, study_seed
    from smnas.trial import Settings, nni_threads, run_from_command_line

    options = {
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "scale_jitter": scale_jitter,
        "flip": flip,
    }
    given = {name: value for name, value in options.items() if value is not None}
    settings = Settings(
        space=space,
        data=data,
        recipe=open_recipe(space, given),
        search_split=search_split,
        max_latency_ms=max_latency_ms,
        seed=study_seed(space) if seed is None else seed,
        device=device.value,
        threads=threads or nni_threads(space),
        precision=precision,
        checkpoint=checkpoint,
        latency_threads=latency_threads,
        loader_workers=loader_workers,
        library=library and library.value,
    )
    check_only = bool(os.environ.get("SMNAS_CHECK_ONLY"))
    raise typer.Exit(run_from_command_line(settings, sample, out, check_only))


@data_app.command()
def digits(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    train: Annotated[int, typer.Option(min=1, help="Training pictures.")] = 400,
    val: Annotated[int, typer.Option(min=1, help="Validation pictures.")] = 100,
    size: Annotated[int, typer.Option(min=96, help="Side of the square pictures.")] = 192,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Generate the demo data: handwritten digits scattered over natural pictures."""
    from smnas.data.digits import make_digits

    make_digits(out, train=train, val=val, size=(size, size), seed=seed)
    print(f"{train} training and {val} validation pictures in {out}")


@data_app.command()
def voc(
    source: Annotated[Path, typer.Argument(help="Pascal VOC folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
) -> None:
    """Import a Pascal VOC data set."""
    from smnas.data.voc import import_voc

    print(import_voc(source, out))


@data_app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Data set in COCO format.")],
    repair: Annotated[bool, typer.Option("--repair", help="Write cleaned annotations.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Validate a data set; exit status 2 if something fatal was found."""
    from smnas.data.check import check_data

    report = check_data(folder, repair=repair)
    text: Any = json.dumps(report.to_json(), indent=1) if as_json else report
    print(text)
    raise typer.Exit(2 if report.fatal else 0)


if __name__ == "__main__":
    main()
