"""A trial program that makes its numbers up from the sample: for tests of the search around it."""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from pathlib import Path

from smnas.records import Candidate, Measured
from smnas.runner import write_outcome


def main() -> None:
    sample = json.loads(Path(os.environ["SMNAS_SAMPLE"]).read_text())
    number = zlib.crc32(json.dumps(sample, sort_keys=True).encode())
    time.sleep(float(sys.argv[1]))
    if number % 7 == 0:
        sys.exit("this detector cannot be trained")
    metrics = {"latency_ms": 5 + number % 97 / 2, "map": number // 97 % 89 / 100, "params_m": 1.0}
    folder = Path(os.environ["SMNAS_TRIAL_DIR"])
    write_outcome(folder, Candidate(0, "trial", sample), Measured(metrics))
    # last: a trial that was ended in the middle has not run
    with (folder / "ran").open("a") as file:
        file.write("once\n")


if __name__ == "__main__":
    main()
