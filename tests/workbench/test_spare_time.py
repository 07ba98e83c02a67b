"""Work that nobody waits for takes its share of a busy machine, and all that it wants of an idle one."""

from __future__ import annotations

import logging

import pytest

from workbench import spare_time
from workbench.spare_time import LONGEST_PAUSE_S, SHARE, SpareTime


class Clock:
    """Wall and processor seconds that pass when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_s = self.cpu_s = 100.0
        monkeypatch.setattr(spare_time.time, "monotonic", lambda: self.wall_s)
        monkeypatch.setattr(spare_time.time, "process_time", lambda: self.cpu_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_on_a_busy_machine_work_takes_its_share_of_a_core(clock: Clock) -> None:
    done: list[float] = []

    def work() -> bool:
        clock.cpu_s += 0.01
        clock.wall_s += 0.03  # it waits, too, which takes nothing from the workers
        done.append(clock.wall_s)
        return True

    spare = SpareTime(work, cores=2)
    start_s = clock.wall_s
    while clock.wall_s < start_s + 60:
        assert not spare.piece(threads=2)  # never more at once
        clock.wall_s += 0.2
    share = len(done) * 0.01 / 60 / 2
    assert 0.7 * SHARE < share < 1.05 * SHARE


def test_where_a_core_is_free_it_goes_on_at_once(clock: Clock) -> None:
    def work() -> bool:
        clock.cpu_s += 1.0
        return True

    spare = SpareTime(work, cores=2)
    assert [spare.piece(threads=1) for _ in range(5)] == [True] * 5
    assert not spare.piece(threads=2)  # what was done before is owed on a busy machine
    assert clock.cpu_s == 105.0
    assert spare.piece(threads=1)


def test_one_long_piece_holds_the_next_up_for_a_bounded_time(clock: Clock) -> None:
    calls: list[float] = []

    def work() -> bool:
        calls.append(clock.wall_s)
        clock.cpu_s += 60.0
        return True

    spare = SpareTime(work, cores=1)
    spare.piece(threads=1)
    clock.wall_s += LONGEST_PAUSE_S - 0.01
    spare.piece(threads=1)
    assert len(calls) == 1
    clock.wall_s += 0.02
    spare.piece(threads=1)
    assert len(calls) == 2


def test_what_it_raises_is_logged_and_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    def work() -> bool:
        raise RuntimeError("no server")

    with caplog.at_level(logging.WARNING):
        assert not SpareTime(work, cores=2).piece(threads=1)
    assert "no server" in caplog.text
