"""NNI's remote training service for real: two OpenSSH servers on this machine, one of which dies.

`make test-remote` asks for it; it needs an sshd binary and takes about a minute.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from smnas.errors import MixedDevicesError
from smnas.journal import read
from smnas.nni_runs import find_run
from smnas.records import Failed
from smnas.report.devices import measured_devices, open_run

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
TRIALS = 7

pytestmark = [
    pytest.mark.remote,
    pytest.mark.skipif(
        os.environ.get("SMNAS_TEST_REMOTE") != "1", reason="asked for by `make test-remote` only"
    ),
    pytest.mark.skipif(SSHD is None, reason="no sshd on this machine"),
]


def until(condition: Callable[[], Any], what: str, seconds: float = 240) -> Any:
    """The condition's value as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.3)
    return value


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def free_ports(number: int) -> list[int]:
    """Free ports, each with a free one behind it, which NNI's remote service takes too."""
    found: list[int] = []
    while len(found) < number:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        if port < 65535 and not listens(port + 1) and all(abs(port - p) > 1 for p in found):
            found.append(port)
    return found


def processes(name: str, value: str) -> list[psutil.Process]:
    """Those with this environment variable: it is handed down to whatever they start."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return [p for p in found if p.pid != os.getpid()]


def kill(found: list[psutil.Process]) -> None:
    for process in found:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


@dataclass(frozen=True)
class Worker:
    """An OpenSSH server that stands for a machine."""

    home: Path
    port: int
    process: subprocess.Popen[bytes]

    def die(self) -> None:
        """The server, its sessions and everything that they started, at once."""
        # sshd writes its title over its environment, so it and its sessions are found as a family
        if self.process.poll() is None:
            kill(psutil.Process(self.process.pid).children(recursive=True))
        self.process.kill()
        kill(processes("HOME", str(self.home)))
        self.process.wait()


@dataclass(frozen=True)
class Site:
    """What one test has: a folder, a key, two workers."""

    folder: Path
    key: Path
    workers: tuple[Worker, Worker]

    @property
    def marker(self) -> str:
        return str(self.folder)

    @property
    def environment(self) -> dict[str, str]:
        """Of the manager; its home is the test's own."""
        return {
            **os.environ,
            "HOME": str(self.folder / "manager"),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "SMNAS_TEST_SITE": self.marker,
        }


def make_key(path: Path, *options: str) -> Path:
    command = ["ssh-keygen", "-q", "-N", "", "-C", "smnas test", "-f", str(path), *options]
    subprocess.run(command, check=True)
    return path


def start_worker(folder: Path, name: str, port: int, key: Path) -> Worker:
    home = folder / name
    home.mkdir()
    # PIP_NO_INDEX: NNI lets every worker look for a newer NNI first; ours has no network
    handed_down = {
        "HOME": str(home),
        "PIP_NO_INDEX": "1",
        "SMNAS_TEST_SITE": str(folder),
        "SMNAS_TEST_WORKER": name,
    }
    settings = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {make_key(folder / f'host_{name}', '-t', 'ed25519')}",
        f"PidFile {folder / name}.pid",
        f"AuthorizedKeysFile {key}.pub",
        "StrictModes no",
        "PermitRootLogin prohibit-password",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "UsePAM no",
        "Subsystem sftp internal-sftp",
        "SetEnv " + " ".join(f"{k}={v}" for k, v in handed_down.items()),
    ]
    config = folder / f"{name}.conf"
    config.write_text("\n".join(settings) + "\n")
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(SSHD), "-D", "-e", "-f", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **handed_down},
        )
    until(lambda: listens(port) or process.poll() is not None, f"sshd {name}", 60)
    assert process.poll() is None, (folder / f"{name}.log").read_text()
    return Worker(home, port, process)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    for name in ("manager", "marks", "code"):
        (tmp_path / name).mkdir()
    # NNI's SSH client reads keys in PEM form, not in OpenSSH's own
    key = make_key(tmp_path / "key", "-t", "rsa", "-b", "2048", "-m", "PEM")
    ports = free_ports(2)
    workers: list[Worker] = []
    try:
        for name, port in zip(("one", "two"), ports, strict=True):
            workers.append(start_worker(tmp_path, name, port, key))
        yield Site(tmp_path, key, (workers[0], workers[1]))
    finally:
        for worker in workers:
            worker.die()
        kill(processes("SMNAS_TEST_SITE", str(tmp_path)))


def experiment_file(site: Site) -> Path:
    shutil.copy(HERE / "remote_trial.py", site.folder / "code")
    machines = [
        {
            "host": "127.0.0.1",
            "port": worker.port,
            "user": getpass.getuser(),
            "sshKeyFile": str(site.key),
            "pythonPath": str(BIN),
        }
        for worker in site.workers
    ]
    settings = {
        "experimentName": "remote-test",
        "searchSpace": {"depth": {"_type": "choice", "_value": list(range(1, 10))}},
        "trialCodeDirectory": str(site.folder / "code"),
        "trialCommand": f"{sys.executable} remote_trial.py {site.folder / 'marks'}",
        "trialConcurrency": 2,
        "maxTrialNumber": TRIALS,
        "nniManagerIp": "127.0.0.1",
        "experimentWorkingDirectory": str(site.folder / "experiments"),
        "tuner": {
            "className": "smnas.tuner.ParetoTuner",
            "codeDirectory": str(ROOT),
            "classArgs": {
                "objectives": {"latency_ms": "minimize", "map": "maximize"},
                "reference_point": {"latency_ms": 100, "map": 0},
                "population": 4,
            },
        },
        "trainingService": {"platform": "remote", "machineList": machines},
    }
    path = site.folder / "experiment.yml"
    path.write_text(yaml.safe_dump(settings))
    return path


def nnictl(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "nnictl"), *words]
    return subprocess.run(
        command, env=site.environment, capture_output=True, text=True, timeout=180
    )


def create(site: Site, config: Path) -> tuple[str, int]:
    """Starts the experiment; returns its id and port. NNI waits 3 s for its web server and gives up
    then, which a busy machine may need more than.
    """
    output = ""
    for port in free_ports(4):
        done = nnictl(site, "create", "--config", str(config), "--port", str(port))
        output = done.stdout + done.stderr
        if done.returncode == 0:
            found = re.search(r"nnictl stop (\w+)", output)
            assert found, output
            return found[1], port
    raise AssertionError(output)


def ask(port: int, what: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/nni/{what}", timeout=60) as answer:
        return json.load(answer)


def test_two_machines_share_a_search_and_one_that_dies_costs_its_trial_only(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, two = site.workers
    experiment, port = create(site, experiment_file(site))
    marks = site.folder / "marks"
    until(lambda: len(list(marks.glob("two-*"))) == 2, "a second trial on worker two")
    first, second = sorted(marks.glob("two-*"), key=lambda path: path.stat().st_mtime)
    until(
        lambda: any(
            job["trialJobId"] == first.name.removeprefix("two-") and job["status"] == "SUCCEEDED"
            for job in ask(port, "trial-jobs")
        ),
        "the end of the first trial on worker two",
    )
    two.die()
    until(lambda: ask(port, "check-status")["status"] == "DONE", "the end of the experiment")

    jobs = ask(port, "trial-jobs")
    lost = [job for job in jobs if job["status"] != "SUCCEEDED"]
    assert len(jobs) == TRIALS
    assert [job["trialJobId"] for job in lost] == [second.name.removeprefix("two-")]
    monkeypatch.setenv("HOME", site.environment["HOME"])
    trials = read(find_run(experiment)).trials()
    # NNI asks for one more than it runs
    outcomes = [trial.outcome for trial in trials if trial.outcome is not None]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert len(outcomes) == TRIALS and [failure.reason for failure in failures] == ["crash"]
    # latencies of two machines do not compare
    with pytest.raises(MixedDevicesError, match=r"one \(\d\)"):
        open_run(experiment)
    assert sorted(measured_devices(open_run(experiment, mixed_devices=True))) == ["one", "two"]
    assert sorted(measured_devices(open_run(experiment, "two"))) == ["two"]

    stopped = nnictl(site, "stop", experiment)
    assert "success" in stopped.stdout + stopped.stderr
    until(lambda: not processes("SMNAS_TEST_SITE", site.marker), "the end of what NNI started", 60)
