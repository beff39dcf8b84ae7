"""A trial program that makes its numbers up from the sample, under NNI and under the embedded
runner.

    python nni_trial.py

Appends its sample to `started.txt`; where there is a file `gate`, the trial that was started as the
n-th waits until the number in it is at least n. Where there is a file `curves`, it first reports,
under NNI, what `smnas trial` does: before training, and after the first of two epochs a quarter of
its mAP.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from pathlib import Path

from smnas.records import Candidate, Failed, Measured, Outcome, Sample
from smnas.runner import write_outcome


def made_up(sample: Sample) -> Outcome:
    """One in four is too slow."""
    # NNI hands 16.0 to a new trial and 16 to one that it starts again
    plain = {k: float(v) if isinstance(v, int | float) else v for k, v in sample.items()}
    number = zlib.crc32(json.dumps(plain, sort_keys=True).encode())
    metrics = {"latency_ms": 5 + number % 97 / 2, "map": number // 97 % 89 / 100}
    if number % 4 == 0:
        return Failed("over_latency", "too slow", {"latency_ms": metrics["latency_ms"]})
    return Measured(metrics)


def wait_at_gate(sample: Sample) -> None:
    with open("started.txt", "a+") as file:
        file.write(json.dumps(dict(sample), sort_keys=True) + "\n")
        file.seek(0)
        own = len(file.readlines())
    gate = Path("gate")
    while gate.exists() and int(gate.read_text() or 0) < own:
        time.sleep(0.05)


def under_embedded_runner() -> Outcome:
    sample = json.loads(Path(os.environ["SMNAS_SAMPLE"]).read_text())
    wait_at_gate(sample)
    outcome = made_up(sample)
    write_outcome(Path(os.environ["SMNAS_TRIAL_DIR"]), Candidate(0, "trial", sample), outcome)
    return outcome


def under_nni() -> Outcome:
    import nni

    from smnas.nni_runs import end_with_manager

    end_with_manager()
    sample = nni.get_next_parameter()
    outcome = made_up(sample)
    curve = []
    if Path("curves").exists() and isinstance(outcome, Measured):
        latency, quality = outcome.metrics["latency_ms"], outcome.metrics["map"]
        before = {"epoch": 0, "epochs": 2, "latency_ms": latency, "sample": sample}
        nni.report_intermediate_result({"default": 0.0, **before})
        curve = [{"epoch": 1, "map": quality / 4}, {"epoch": 2, "map": quality}]
        nni.report_intermediate_result({"default": quality / 4, **curve[0]})
    wait_at_gate(sample)
    if curve:
        final = {"default": outcome.metrics["map"], **outcome.metrics, "info": {"curve": curve}}
        nni.report_final_result(final)
    elif isinstance(outcome, Measured):
        nni.report_intermediate_result({"default": 0.0, "loss": 1.0})
        nni.report_final_result({"default": outcome.metrics["map"], **outcome.metrics})
    else:
        nni.report_final_result(outcome.to_json())
    return outcome


if __name__ == "__main__":
    run = under_nni if "NNI_TRIAL_JOB_ID" in os.environ else under_embedded_runner
    sys.exit(int(isinstance(run(), Failed)))
