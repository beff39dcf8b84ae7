"""A trial program that makes its numbers up from the sample, under NNI and under the embedded
runner.

    python nni_trial.py SECONDS
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from pathlib import Path

import nni

from smnas.nni_runs import end_with_manager
from smnas.records import Candidate, Failed, Measured, Outcome, Sample
from smnas.runner import write_outcome


def made_up(sample: Sample) -> Outcome:
    """Every fifth sample or so is too slow."""
    number = zlib.crc32(json.dumps(dict(sample), sort_keys=True).encode())
    metrics = {"latency_ms": 5 + number % 97 / 2, "map": number // 97 % 89 / 100}
    if number % 5 == 0:
        return Failed("over_latency", "too slow", {"latency_ms": metrics["latency_ms"]})
    return Measured(metrics)


def main() -> None:
    under_nni = "NNI_TRIAL_JOB_ID" in os.environ
    end_with_manager()
    text = "" if under_nni else Path(os.environ["SMNAS_SAMPLE"]).read_text()
    sample = nni.get_next_parameter() if under_nni else json.loads(text)
    # one line for each start: what is trained twice stands here twice
    with open("started.txt", "a") as file:
        file.write(json.dumps(sample, sort_keys=True) + "\n")
    time.sleep(float(sys.argv[1]))
    outcome = made_up(sample)
    failed = isinstance(outcome, Failed)
    if not under_nni:
        write_outcome(Path(os.environ["SMNAS_TRIAL_DIR"]), Candidate(0, "trial", sample), outcome)
    elif failed:
        nni.report_final_result(outcome.to_json())
    else:
        nni.report_final_result({"default": outcome.metrics["map"], **outcome.metrics})
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
