"""A run as a pymoo `Result`, for pymoo's own plots, indicators and decision making. Reads journals
only.
"""

from __future__ import annotations

from pathlib import Path

from pymoo.core.result import Result

from smnas import pareto
from smnas.encoding import Encoding
from smnas.report.devices import open_run
from smnas.report.tables import objectives_of


def load_result(run: Path | str, device: str | None = None, mixed_devices: bool = False) -> Result:
    """Reads a run folder (or journal file, or the id of an NNI experiment) into a pymoo `Result`.

    `X` (`n x d` option indices) and `F` (`n x m`, minimised, so mAP is negative) are the Pareto
    set, `pop` all measured individuals with their `id`, `history` one algorithm snapshot for each
    population's worth of trials, as pymoo's convergence examples use it
    (`algorithm.evaluator.n_eval`, `.pop`, `.opt`).
    `result.data` holds the objectives' names and the choices.

    Args:
        run: folder, journal or id.
        device: take the latencies that were measured on this one, see `smnas.report.devices`.
        mixed_devices: compare latencies of different devices all the same.

    Raises:
        MixedDevicesError: the trials ran on several devices, and none was chosen.
        RunError: there is no journal.
        JournalError: the journal is corrupt.
    """
    history = open_run(run, device, mixed_devices)
    objectives = objectives_of(history)
    encoding = Encoding.from_choices(history.header["space"]["choices"])
    finished = sorted(
        (t for t in history.trials() if t.told is not None), key=lambda t: t.told or 0
    )
    step = history.header["experiment"]["population"]
    ends = sorted({*range(step, len(finished), step), len(finished)})
    return pareto.result([finished[:end] for end in ends], objectives, encoding)
