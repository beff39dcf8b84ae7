from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from smnas import cli, doctor
from smnas.doctor import Finding, cores_finding, library_findings, manager_findings


def test_versions_are_held_against_their_floors() -> None:
    findings = library_findings(
        ["numpy>=1.0", "numpy>=999", "no-such-thing>=1", 'absent>=1; extra == "dev"']
    )
    assert [(f.what, f.state) for f in findings] == [
        ("numpy", "good"),
        ("numpy", "broken"),
        ("no-such-thing", "broken"),
    ]
    assert 'pip install "numpy>=999"' in findings[1].text
    assert findings[2].text == 'not installed: pip install "no-such-thing>=1"'


def test_setuptools_is_only_noted() -> None:
    (finding,) = library_findings(["setuptools<1"])
    assert finding.state == "note" and 'pip install "setuptools<1"' in finding.text


@pytest.mark.parametrize(
    ("load", "state", "words"),
    [(0.2, "good", "4 of 4 free"), (2.6, "good", "1 of 4 free"), (9.0, "note", "0 of 4 free")],
)
def test_cores_that_are_left(load: float, state: str, words: str) -> None:
    finding = cores_finding({0, 1, 2, 3}, load)
    assert finding.state == state and finding.text.startswith(words)


STAND_IN = """
import socket, sys
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("host", "state"), [("0.0.0.0", "note"), ("127.0.0.1", "good")], ids=["everywhere", "here"]
)
def test_a_manager_that_everybody_can_reach_is_noted(tmp_path: Path, host: str, state: str) -> None:
    main = tmp_path / "main.js"
    main.write_text(STAND_IN)
    process = subprocess.Popen(
        [sys.executable, str(main), host, "--experiment-id", "abc"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        (finding,) = manager_findings([psutil.Process(process.pid)])
        assert (finding.what, finding.state) == ("NNI abc", state)
        assert f"{host} port {port}" in finding.text
        assert (f"ssh -L {port}:localhost:{port}" in finding.text) == (state == "note")
    finally:
        process.communicate()
    assert [f.text for f in manager_findings([])] == ["none is running"]


def test_other_processes_are_no_managers() -> None:
    with socket.create_server(("0.0.0.0", 0)):
        (finding,) = manager_findings([psutil.Process(os.getpid())])
    assert finding.text == "none is running"


def test_the_command_prints_a_table_and_fails_when_something_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["smnas", "doctor"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr().out

    status, out = run()
    assert status == 0
    for word in ("Python", "torch", "setuptools", "detectron2", "CUDA", "cores", "NNI"):
        assert word in out
    broken = Finding("torch", "broken", "not installed")
    monkeypatch.setattr(doctor, "examine", lambda: [broken])
    status, out = run()
    assert status == 2 and "not installed" in out
