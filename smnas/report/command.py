"""`smnas report`: the page, plots for papers, the table. `smnas.cli` puts it among its commands.

Heavy libraries are imported inside, as in `smnas.cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smnas.errors import RunError

# options of every command that compares latencies, see `smnas.report.devices`
MeasuredOn = Annotated[
    str | None, typer.Option(help="Name of a device: take the latencies that were measured on it.")
]
MixedDevices = Annotated[
    bool, typer.Option("--mixed-devices", help="Compare latencies of different devices.")
]


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs, or ids of NNI experiments.", metavar="RUN"),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="HTML file; default report.html in the first RUN."),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Also write figures for papers, PNG and SVG, there.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Also write all candidates as this .csv or .parquet file.")
    ] = None,
    device: MeasuredOn = None,
    mixed_devices: MixedDevices = False,
) -> None:
    """Write the report of a run, or of several side by side: one HTML file, for any browser."""
    from smnas.nni_runs import find_folder
    from smnas.report.page import write_page

    if (plots or table) and len(runs) > 1:
        raise RunError(f"report: --plots and --table want one RUN, got {len(runs)}")
    page = output or find_folder(runs[0]) / "report.html"
    write_page(runs, page, device, mixed_devices)
    written = [page, *_extras(runs[0], plots, table, device, mixed_devices)]
    for path in written:
        print(f"  {path}")


def _extras(
    run: Path, plots: Path | None, table: Path | None, device: str | None, mixed_devices: bool
) -> list[Path]:
    from smnas.report.devices import open_run

    written = []
    if plots is not None:
        from smnas.report.plots import save_figures

        written += save_figures(open_run(run, device, mixed_devices), plots)
    if table is not None:
        from smnas.report.frame import load_frame, save_frame

        save_frame(load_frame(run, device, mixed_devices), table)
        written.append(table)
    return written
