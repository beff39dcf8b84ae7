"""What a run was made with: device, versions, commit. Goes into journal headers and benchmark
results.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_CPU_NUMBERS = {
    "cpu family": "family",
    "model": "model",
    "stepping": "stepping",
    "CPU implementer": "implementer",
    "CPU part": "part",
}
_PACKAGES = ("smnas", "torch", "torchvision", "detectron2", "nni", "pymoo", "pycocotools", "numpy")


def versions() -> dict[str, str]:
    """`{package: version}` of what decides the results, and Python's own."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of this source tree, with `-dirty` if it was changed; None outside a
    checkout.
    """
    folder = Path(__file__).parent
    command = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model, so that different ones have different names.

    Hypervisors shorten the model's name ("AMD EPYC" for several generations) and ARM has none, so
    the numbers by which the system tells processors apart are part of it.
    """
    try:
        first = cpuinfo.read_text().split("\n\n")[0]
    except OSError:
        first = ""
    pairs = [line.split(":", 1) for line in first.splitlines() if ":" in line]
    fields = {key.strip(): value.strip() for key, value in pairs}
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{word} {fields[key]}" for key, word in _CPU_NUMBERS.items() if key in fields]
    return f"{name} ({' '.join(numbers)})" if numbers else name


def describe() -> dict[str, Any]:
    """Machine, versions and commit as plain JSON."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "versions": versions(),
        "commit": commit(),
    }
