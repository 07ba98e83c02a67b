"""`workbench ui`: safe settings, clear refusals, and no process left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from workbench.errors import ConfigError, ResourceError
from workbench.tracking_spool import probe
from workbench.ui import check_port, serve, server_command, server_environment


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_home_without_runs_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"workbench compare.*--home"):
        serve(tmp_path)


def test_taken_port_is_refused_with_another_one(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = int(other.getsockname()[1])
        with pytest.raises(ResourceError, match=rf"port {port}.*--port {port + 1}"):
            serve(tmp_path, port=port)
    check_port("127.0.0.1", port)
    with pytest.raises(ConfigError, match="65535"):
        check_port("127.0.0.1", 70000)


def test_settings_are_safe(tmp_path: Path) -> None:
    command = server_command(tmp_path, "127.0.0.1", 5000)
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--host"] == "127.0.0.1"
    assert options["--backend-store-uri"] == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    assert options["--workers"] == "1"
    assert "*" not in options["--allowed-hosts"]
    environment = server_environment(
        {"PATH": "/bin", "MLFLOW_TRACKING_URI": "http://elsewhere", "MLFLOW_HOST": "0.0.0.0"}
    )
    assert environment["PATH"] == "/bin"
    assert "MLFLOW_TRACKING_URI" not in environment
    assert "MLFLOW_HOST" not in environment
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_the_runs_and_ends_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    from workbench.tracking import Tracker

    Tracker.open(None, tmp_path, "shown", {"a": 1}).finish(None)
    port = free_port()
    script = "import sys; from pathlib import Path; from workbench.ui import serve\n"
    script += f"sys.exit(serve(Path(sys.argv[1]), port={port}))"
    # A shell's background job starts with SIGINT ignored, and hands that on.
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while probe(url, 2.0) is not None:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.3)
        asked = f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=shown"
        with urllib.request.urlopen(asked, timeout=20) as answer:
            assert b'"shown"' in answer.read()
        strange = urllib.request.Request(asked, headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(strange, timeout=20)
        time.sleep(1.0)  # the URL has been printed by now
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert url in said
    assert "Traceback" not in said
    check_port("127.0.0.1", port)
    assert probe(url, 1.0) is not None
