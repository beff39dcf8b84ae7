"""How long workers stand idle: the tuner's own part, and the whole of NNI's manager around it.

    python benchmarks/nni_idle.py [--trials 22] [--workers 4] [--mean 60]

First the tuner alone, in this process: the time from a result to the next parameters, over 500
results. Then a real experiment under `nnictl` with trials that only sleep, for log-normal (heavy-
tailed) times. Idle is the workers' time in which they had no trial's process, by NNI's own record
of when each process began and ended. Writes benchmarks/results/nni_idle.json.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common import write_results

from smnas.tuner import ParetoTuner

RESULTS = 500
SIGMA = 1.0
"""Of the logarithm of a trial's length: one in twenty takes more than five times the median."""

ROOT = Path(__file__).parents[1]
SPACE: dict[str, Any] = {f"x{i}": {"_type": "uniform", "_value": [0, 1]} for i in range(8)}
CLASS_ARGS: dict[str, Any] = {
    "objectives": {"a": "minimize", "b": "minimize"},
    "reference_point": {"a": 1, "b": 1},
    "population": 20,
}

TRIAL = """
import sys, time, zlib
began = time.time()
import nni
import numpy as np
sample = nni.get_next_parameter()
number = zlib.crc32(repr(sorted(sample.items())).encode())
mean, sigma = float(sys.argv[1]), float(sys.argv[2])
seconds = np.random.default_rng(number).lognormal(np.log(mean) - sigma**2 / 2, sigma)
time.sleep(max(0, seconds - (time.time() - began)))
nni.report_final_result({"default": 0, "a": number % 97 / 97, "b": number % 89 / 89})
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=22)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--mean", type=float, default=60.0, help="seconds of a trial")
    options = parser.parse_args()
    tuner = tuner_seconds()
    print(f"tuner, from a result to the next parameters: median {tuner['median_ms']:.2f} ms")
    with tempfile.TemporaryDirectory() as folder:
        whole = nni_idle(Path(folder), options)
    gap, mean = whole["gap_median_s"], whole["trial_mean_s"]
    print(f"nnictl: {whole['idle_percent']:.2f} % idle, {gap:.2f} s between trials of {mean:.1f} s")
    print(f"written to {write_results('nni_idle', {'tuner': tuner, 'nnictl': whole})}")


def tuner_seconds() -> dict[str, float]:
    """Milliseconds from a result to the next parameters, without NNI."""
    tuner, rng, times = ParetoTuner(**CLASS_ARGS), np.random.default_rng(0), []
    tuner.update_search_space(SPACE)
    sample = tuner.generate_parameters(0)
    for number in range(RESULTS):
        a, b = rng.random(2)
        began = time.perf_counter()
        tuner.receive_trial_result(number, sample, {"a": a, "b": b})
        sample = tuner.generate_parameters(number + 1)
        times.append(1e3 * (time.perf_counter() - began))
    p99, largest = float(np.quantile(times, 0.99)), max(times)
    return {"median_ms": statistics.median(times), "p99_ms": p99, "max_ms": largest}


def nni_idle(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs the experiment in `folder` and reads off the gaps between trials."""
    (folder / "trial.py").write_text(TRIAL)
    experiment = folder / "sleep.yml"
    experiment.write_text(yaml.safe_dump(_experiment(folder, options)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    nnictl = str(Path(sys.executable).parent / "nnictl")
    command = [nnictl, "create", "--config", str(experiment), "--port", str(port)]
    subprocess.run(command, env=environment, check=True)
    try:
        _wait(port)
        jobs = _get(port, "trial-jobs")
    finally:
        subprocess.run([nnictl, "stop", "--port", str(port)], env=environment, check=True)
    return _idle([(job["startTime"] / 1e3, job["endTime"] / 1e3) for job in jobs], options)


def _experiment(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "searchSpace": SPACE,
        "trialCommand": f"exec {sys.executable} trial.py {options.mean} {SIGMA}",
        "trialConcurrency": options.workers,
        "maxTrialNumber": options.trials,
        "experimentWorkingDirectory": str(folder / "experiments"),
        "trainingService": {"platform": "local"},
        "tuner": {
            "className": "smnas.tuner.ParetoTuner",
            "codeDirectory": ".",
            "classArgs": CLASS_ARGS,
        },
    }


def _wait(port: int) -> None:
    while (answer := _get(port, "check-status"))["status"] != "DONE":
        if answer["status"] == "ERROR":
            raise RuntimeError(str(answer["errors"]))
        time.sleep(2)


def _get(port: int, what: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/nni/{what}", timeout=60) as answer:
        return json.load(answer)


def _idle(times: list[tuple[float, float]], options: argparse.Namespace) -> dict[str, Any]:
    """From the begin of the first trial to the begin of the last: afterwards nobody waits for
    work.
    """
    times.sort()
    first, last = times[0][0], times[-1][0]
    busy = sum(min(end, last) - began for began, end in times)
    ends = sorted(end for _, end in times)
    # the workers are alike: the k-th trial after the first ones took the k-th place that came free
    later = zip(ends, times[options.workers :], strict=False)
    gaps = [began - end for end, (began, _) in later]
    return {
        "trials": len(times),
        "workers": options.workers,
        "trial_mean_s": statistics.fmean(end - began for began, end in times),
        "trial_max_s": max(end - began for began, end in times),
        "gap_median_s": statistics.median(gaps),
        "gap_max_s": max(gaps),
        "idle_percent": 100 * (1 - busy / (options.workers * (last - first))),
    }


if __name__ == "__main__":
    main()
