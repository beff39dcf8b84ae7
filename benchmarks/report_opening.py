"""How long a browser needs to open the report of a long search, and how large the file is.

    python benchmarks/report_opening.py RUN [--trials 2000] [--openings 5]

The measured trials of RUN, with latency and mAP scaled by chance, are repeated until the run has so
many; example detections, where RUN has them, go along. Its page is opened in headless Chromium from
disk, each time in a new browser, until the front is drawn. Wants Chromium with its driver and
selenium. Prints one line; writes benchmarks/results/report_opening.json.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
from common import write_results
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from smnas.journal import FILE_NAME, Journal, read
from smnas.nni_runs import trial_file
from smnas.records import Candidate, Measured
from smnas.report.page import write_page
from smnas.runner import EXAMPLES_FILE

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import open_browser  # noqa: E402  (the one that the tests of the page use)

DRAWN = "#front svg .title"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--openings", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = lengthened(arguments.run, arguments.trials, Path(scratch, "run"))
        page = Path(scratch, "report.html")
        start = time.monotonic()
        write_page([run], page)
        written = time.monotonic() - start
        seconds = [opened(page) for _ in range(arguments.openings)]
        megabytes = page.stat().st_size / 1e6
    print(
        f"{arguments.trials} trials: {megabytes:.1f} MB, written in {written:.1f} s, opened in"
        f" {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
    )
    results = {"trials": arguments.trials, "megabytes": megabytes, "seconds_to_write": written}
    print(write_results("report_opening", results | {"seconds_to_open": seconds}))


def lengthened(run: Path, trials: int, out: Path) -> Path:
    """A run of so many measured trials, made of those of another one."""
    history = read(run)
    known = [t for t in history.trials() if isinstance(t.outcome, Measured)]
    rng = np.random.default_rng(0)
    times = count(step=30)
    journal = Journal.open(out / FILE_NAME, history.header, lambda: next(times))
    for number in range(trials):
        trial = known[number % len(known)]
        outcome = trial.outcome
        assert isinstance(outcome, Measured)
        slower, better = np.exp(0.3 * rng.standard_normal(2)).tolist()
        metrics = {**outcome.metrics, "latency_ms": outcome.metrics["latency_ms"] * slower}
        metrics["map"] = min(1.0, metrics["map"] * better)
        parents = tuple(rng.integers(0, number, 2).tolist()) if number else ()
        candidate = Candidate(number, "structural", trial.candidate.sample, "mating", parents)
        journal.asked(candidate)
        journal.told(number, Measured(metrics, outcome.info))
        examples = trial_file(run, trial, EXAMPLES_FILE)
        if examples.is_file():
            own = out / "trials" / str(number)
            own.mkdir(parents=True)
            shutil.copy(examples, own)
    journal.close()
    return out


def opened(page: Path) -> float:
    """Seconds from asking a fresh browser for the page until its front is drawn."""
    with open_browser() as browser:
        start = time.monotonic()
        browser.get(page.as_uri())
        drawn = WebDriverWait(browser, 60, poll_frequency=0.02)
        drawn.until(lambda b: b.find_elements(By.CSS_SELECTOR, DRAWN))
        return time.monotonic() - start


if __name__ == "__main__":
    main()
