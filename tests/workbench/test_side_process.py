"""A call beside other work: in a process of its own where the workers' forkserver runs, else here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench import gone
from workbench import worker_pool
from workbench.side_process import side_process


def own_pid(text: str) -> tuple[str, int]:
    return text, os.getpid()


def fail(path: str) -> None:
    raise OSError(28, "No space left on device", path)


def die_elsewhere(driver: int) -> int:
    if os.getpid() != driver:
        os.kill(os.getpid(), signal.SIGKILL)
    return driver


@pytest.fixture
def forkserver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_forkserver_started", False)
    worker_pool.start_forkserver(1, ())
    assert worker_pool._forkserver_started


@pytest.mark.usefixtures("forkserver")
def test_it_runs_in_another_process_and_brings_its_result() -> None:
    with side_process(own_pid, "drawn") as result:
        text, pid = result()
    assert text == "drawn"
    assert pid != os.getpid()


@pytest.mark.usefixtures("forkserver")
def test_what_it_raises_is_raised_here() -> None:
    with side_process(fail, "figure.png") as result, pytest.raises(OSError, match="No space") as caught:
        result()
    assert (caught.value.errno, caught.value.filename) == (28, "figure.png")


@pytest.mark.usefixtures("forkserver")
def test_a_killed_process_is_made_good_here() -> None:
    with side_process(die_elsewhere, os.getpid()) as result:
        assert result() == os.getpid()


@pytest.mark.usefixtures("forkserver")
def test_alone_it_runs_here_and_only_when_asked() -> None:
    calls: list[int] = []
    with side_process(calls.append, 1, alone=True) as result:
        assert calls == []
        result()
    assert calls == [1]


def test_without_a_server_it_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_forkserver_started", False)
    with side_process(own_pid, "drawn") as result:
        assert result() == ("drawn", os.getpid())


def sleep_long(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(600)


def ended(pid: int) -> bool:
    """It is gone within a few seconds."""
    for _ in range(100):
        if gone(pid):
            return True
        time.sleep(0.1)
    return False


def started(file: Path) -> int:
    while not file.exists() or not file.read_text():
        time.sleep(0.05)
    return int(file.read_text())


@pytest.mark.usefixtures("forkserver")
def test_leaving_ends_it_at_once(tmp_path: Path) -> None:
    def interrupted() -> None:
        with side_process(sleep_long, str(tmp_path / "pid")):
            started(tmp_path / "pid")
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < 60
    assert ended(started(tmp_path / "pid"))


def test_it_ends_with_a_killed_driver(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from workbench import worker_pool; from workbench.side_process import side_process\n"
        "from test_side_process import sleep_long, started\n"
        "worker_pool.start_forkserver(1, ())\n"
        "with side_process(sleep_long, sys.argv[1]):\n"
        "    started(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    file = tmp_path / "pid"
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[2]}"}
    subprocess.run([sys.executable, "-c", script, str(file)], check=False, timeout=120, env=environment)
    assert ended(started(file))


@pytest.mark.usefixtures("forkserver")
def test_where_the_system_gives_no_process_it_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.ForkServerProcess.start", refuse)
    with side_process(own_pid, "drawn") as result:
        assert result() == ("drawn", os.getpid())
