"""A call beside other work: in a process of its own where workers' server runs, else here."""

from __future__ import annotations

import os
import signal

import pytest

from workbench import worker_pool
from workbench.worker_pool import beside


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
    with beside(own_pid, "drawn") as result:
        text, pid = result()
    assert text == "drawn"
    assert pid != os.getpid()


@pytest.mark.usefixtures("forkserver")
def test_what_it_raises_is_raised_here() -> None:
    with beside(fail, "figure.png") as result, pytest.raises(OSError, match="No space") as caught:
        result()
    assert (caught.value.errno, caught.value.filename) == (28, "figure.png")


@pytest.mark.usefixtures("forkserver")
def test_a_killed_process_is_made_good_here() -> None:
    with beside(die_elsewhere, os.getpid()) as result:
        assert result() == os.getpid()


@pytest.mark.usefixtures("forkserver")
def test_alone_it_runs_here_and_only_when_asked() -> None:
    calls: list[int] = []
    with beside(calls.append, 1, alone=True) as result:
        assert calls == []
        result()
    assert calls == [1]


def test_without_a_server_it_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_forkserver_started", False)
    with beside(own_pid, "drawn") as result:
        assert result() == ("drawn", os.getpid())
