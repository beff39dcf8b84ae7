"""What benchmarks share: writing results with machine, versions and commit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from smnas import machine

RESULTS = Path(__file__).parent / "results"


def write_results(name: str, results: dict[str, Any]) -> Path:
    """Writes `results/NAME.json`: the results, and what they were made with."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {"benchmark": name, "time": when, "machine": machine.describe(), **results}
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
