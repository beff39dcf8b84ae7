"""What a newcomer needs, looked at in one go (`smnas doctor`): versions, device, cores, open ports.

Reads only; changes nothing. Needs torch for the look at CUDA.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from rich.table import Table

from smnas import __version__, machine

STATES = {"good": "green", "note": "yellow", "broken": "red"}
"""`broken` keeps smnas from working, a `note` does not; with their colours."""

EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        what: its name.
        state: one of `STATES`.
        text: what was found and, unless it is good, the remedy.
    """

    what: str
    state: str
    text: str


def examine() -> list[Finding]:
    """Looks at everything."""
    return [
        python_finding(),
        *library_findings(importlib.metadata.requires("smnas") or []),
        detectron2_finding(),
        cuda_finding(),
        cores_finding(os.sched_getaffinity(0), os.getloadavg()[0]),
        *manager_findings(psutil.process_iter()),
    ]


def to_table(findings: Iterable[Finding]) -> Table:
    """Findings as a rich table, one line each."""
    table = Table(title=f"smnas {__version__}", title_justify="left")
    for name in ("", "state", "found"):
        table.add_column(name)
    for finding in findings:
        state = f"[{STATES[finding.state]}]{finding.state}[/]"
        table.add_row(finding.what, state, finding.text)
    return table


def python_finding() -> Finding:
    """This Python against the versions that smnas is made for."""
    wanted = importlib.metadata.metadata("smnas")["Requires-Python"]
    found = platform.python_version()
    if found in SpecifierSet(wanted):
        return Finding("Python", "good", found)
    return Finding("Python", "broken", f"wanted {wanted}, found {found} at {sys.executable}")


def library_findings(requirements: Iterable[str]) -> list[Finding]:
    """What is installed against requirements such as `torch>=2.11`, without those of extras."""
    parsed = [Requirement(text) for text in requirements]
    return [
        _library_finding(requirement)
        for requirement in parsed
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]


def _library_finding(requirement: Requirement) -> Finding:
    name, wanted = requirement.name, str(requirement.specifier)
    remedy = f'pip install "{name}{wanted}"'
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "broken", f"not installed: {remedy}")
    if requirement.specifier.contains(Version(found), prereleases=True):
        return Finding(name, "good", found)
    # nnictl imports pkg_resources, which newer setuptools lack; the embedded search does not
    state = "note" if name == "setuptools" else "broken"
    return Finding(name, state, f"wanted {wanted}, found {found}: {remedy}")


def detectron2_finding() -> Finding:
    """Whether the optional detector library is there."""
    if importlib.util.find_spec("detectron2") is None:
        return Finding("detectron2", "good", "not installed; torchvision does all that is needed")
    version = importlib.metadata.version("detectron2")
    return Finding("detectron2", "good", f"{version}; library: auto builds with it")


def cuda_finding() -> Finding:
    """The GPUs that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return Finding("CUDA", "note", f"no device; trials run on the CPU: {machine.cpu_name()}")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("CUDA", "good", ", ".join(names))


def cores_finding(cores: Iterable[int], load: float) -> Finding:
    """CPU cores of this process that nothing else keeps busy.

    Args:
        cores: those that this process may use.
        load: processes that wanted one over the last minute.
    """
    number = len(list(cores))
    free = max(0, number - round(load))
    text = f"{free} of {number} free"
    if free:
        return Finding("cores", "good", text)
    return Finding("cores", "note", f"{text}: others are at work, and latencies will scatter")


def manager_findings(processes: Iterable[psutil.Process]) -> list[Finding]:
    """This user's NNI managers, and whether other machines can reach their web portals.

    Args:
        processes: to look among.
    """
    findings = []
    for process in processes:
        try:
            if process.uids().real == os.getuid() and _is_manager(process.cmdline()):
                findings += _listening_findings(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
    return findings or [Finding("NNI managers", "good", "none is running")]


def _is_manager(command: list[str]) -> bool:
    return "--experiment-id" in command and any(word.endswith("main.js") for word in command)


def _listening_findings(process: psutil.Process) -> list[Finding]:
    command = process.cmdline()
    experiment = command[command.index("--experiment-id") + 1]
    findings = []
    for connection in process.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN:
            continue
        host, port = connection.laddr
        where = f"process {process.pid}, {host} port {port}"
        if host in EVERYWHERE:
            where += (
                ": every machine that reaches this one may use it, without a password; close the "
                f"port in the firewall and come in with ssh -L {port}:localhost:{port} HOST"
            )
        state = "note" if host in EVERYWHERE else "good"
        findings.append(Finding(f"NNI {experiment}", state, where))
    return findings
