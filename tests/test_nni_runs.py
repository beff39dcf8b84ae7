from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest

from smnas import load_result, nni_runs
from smnas.errors import RunError


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NNI's home with one experiment, `AbC12`, in another folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "nni-experiments").mkdir()
    content = {"AbC12": {"id": "AbC12", "logDir": str(tmp_path / "else" / "where")}}
    (tmp_path / "nni-experiments" / ".experiment").write_text(json.dumps(content))
    return tmp_path


def test_an_id_is_found_by_nnis_list(listed: Path) -> None:
    assert nni_runs.find_run("AbC12") == listed / "else" / "where" / "AbC12" / "smnas"


def test_a_path_stays_a_path(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (listed / "AbC12").mkdir()
    monkeypatch.chdir(listed)
    for path in ("AbC12", "runs/AbC12", "unknown", "./AbC12"):
        assert nni_runs.find_run(path) == Path(path)


def test_reports_take_an_id(listed: Path, toy_run: Callable[..., Path]) -> None:
    run = nni_runs.find_run("AbC12")
    run.parent.mkdir(parents=True)
    toy_run().rename(run)
    assert len(load_result("AbC12").pop) == 30
    with pytest.raises(RunError, match="no journal at unknown"):
        load_result("unknown")


def test_a_corrupt_list_is_named(listed: Path) -> None:
    (listed / "nni-experiments" / ".experiment").write_text("{")
    with pytest.raises(RunError, match="list of experiments cannot be read"):
        nni_runs.find_run("AbC12")


def test_settings_need_nnis_database(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nni.sqlite: cannot read the experiment's settings"):
        nni_runs.settings_of(tmp_path)


def test_the_managers_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [{"b": 1, "a": 0.5}, {"a": "x"}]
    jobs = [
        {"status": status, "hyperParameters": [json.dumps({"parameters": sample})]}
        for status, sample in zip(["FAILED", "RUNNING", "SUCCEEDED"], [*samples, samples[0]])
    ]

    class Manager(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/prefix/api/v1/nni/trial-jobs" else 404)
            self.end_headers()
            self.wfile.write(json.dumps([*jobs, {"status": "WAITING"}]).encode())

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Manager)
    Thread(target=server.serve_forever, daemon=True).start()
    channel = f"ws://127.0.0.1:{server.server_port}/prefix/tuner"
    monkeypatch.setenv("NNI_TUNER_COMMAND_CHANNEL", channel)
    states = nni_runs.trial_states()
    server.shutdown()
    server.server_close()
    assert states == [
        (samples[0], "FAILED"),
        (samples[1], "RUNNING"),
        (samples[0], "SUCCEEDED"),
    ]
    with pytest.raises(RunError, match="does not list its trials"):
        nni_runs.trial_states()


CHILD = """
import time
from smnas.nni_runs import end_with_manager
end_with_manager()
print("up", flush=True)
time.sleep(600)
"""


def test_a_process_ends_with_the_manager_above_it(tmp_path: Path) -> None:
    """Also where a shell stands between them."""
    node = tmp_path / "node"
    node.symlink_to("/bin/bash")
    command = textwrap.dedent(f"""
        "{sys.executable}" -c '{CHILD}'
        true
        """)
    script = tmp_path / "script"
    script.write_text(command)
    with subprocess.Popen(
        [node, "-c", f"bash {script}; true"],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    ) as manager:
        assert manager.stdout is not None and manager.stdout.readline() == b"up\n"
        (child,) = [
            p for p in psutil.Process(manager.pid).children(recursive=True) if "python" in p.name()
        ]
        manager.kill()  # and nobody asks for its end: a zombie is dead, too
        psutil.wait_procs([child], timeout=60)
        assert not child.is_running()
        manager.stdout.close()


def test_without_a_manager_nothing_ends() -> None:
    before = time.monotonic()
    nni_runs.end_with_manager()
    assert time.monotonic() - before < 60
