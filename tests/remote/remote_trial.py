"""A trial program for remote workers: reports at once, and hangs in the second trial of worker two.

Imports nothing of smnas, because a worker gets only this folder.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nni


def main() -> None:
    marks, worker = Path(sys.argv[1]), os.environ["SMNAS_TEST_WORKER"]
    sample = nni.get_next_parameter()
    is_first = not list(marks.glob(f"{worker}-*"))
    (marks / f"{worker}-{nni.get_trial_id()}").touch()
    if worker == "two" and not is_first:
        time.sleep(600)  # until this worker dies
    quality = sample["depth"] / 10
    result = {"default": quality, "map": quality, "latency_ms": 5.0 * sample["depth"]}
    nni.report_final_result({**result, "info": {"device": worker}})


if __name__ == "__main__":
    main()
