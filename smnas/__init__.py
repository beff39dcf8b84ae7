"""smnas: search whole object detectors for the Pareto front of latency against mAP.

Light: importing the package imports no torch, NNI or pymoo; `load_result` and `load_frame` bring
what they need when they are called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame
    from pymoo.core.result import Result

__version__ = "0.1.0"
__all__ = ["__version__", "load_frame", "load_result"]


def load_result(run: Path | str, device: str | None = None, mixed_devices: bool = False) -> Result:
    """A run folder as a pymoo `Result`; see `smnas.report.result.load_result`."""
    from smnas.report.result import load_result as load

    return load(run, device, mixed_devices)


def load_frame(
    run: Path | str, device: str | None = None, mixed_devices: bool = False
) -> DataFrame:
    """Every candidate of a run folder as a row; see `smnas.report.frame.load_frame`."""
    from smnas.report.frame import load_frame as load

    return load(run, device, mixed_devices)
