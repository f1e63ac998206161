from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq.channel import Channel
from lowmem_seq.errors import DiskError
from lowmem_seq.runs.events import EventLog
from lowmem_seq.training import patience as module
from lowmem_seq.training.journal import Journal
from lowmem_seq.training.patience import LOOK_SECONDS, DiskPatience

FULL = os.strerror(errno.ENOSPC)


class World:
    """A clock that runs only while somebody sleeps, and a disk with as much room as the test says."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.free: Callable[[float], int] = lambda seconds: 5000

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= LOOK_SECONDS
        self.seconds += seconds

    def free_bytes(self, folder: Path) -> int:
        return self.free(self.seconds - 1000)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(module, "awake_seconds", world.now)
    monkeypatch.setattr(time, "sleep", world.sleep)
    monkeypatch.setattr(module, "free_bytes", world.free_bytes)
    return world


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "events.jsonl")


def patience(
    log: EventLog, limit_seconds: float, stop_requested: Callable[[], bool] = lambda: False
) -> DiskPatience:
    journal = Journal(log, Channel(listen=False), batch=32, train_images=100)
    return DiskPatience(log.path.parent, journal, limit_seconds, "lowmem-seq resume here", stop_requested)


class Refused:
    """A write that the disk refuses for so many tries; it notes when it was tried."""

    def __init__(self, world: World, times: int, code: int = errno.ENOSPC) -> None:
        self.at_seconds: list[float] = []
        self._world, self._times, self._code = world, times, code

    def __call__(self) -> str:
        self.at_seconds.append(self._world.seconds - 1000)
        if len(self.at_seconds) <= self._times:
            raise OSError(self._code, os.strerror(self._code))
        return "written"


def told(log: EventLog) -> list[dict[str, Any]]:
    return [{key: value for key, value in event.items() if key != "time_unix_seconds"} for event in log]


def test_what_goes_through_at_once_is_no_event(world: World, log: EventLog) -> None:
    write = Refused(world, times=0)
    assert patience(log, 0.0).run("the plan", write) == "written"
    assert write.at_seconds == [0]
    assert told(log) == []


def test_a_write_that_returns_nothing_is_not_written_twice(world: World, log: EventLog) -> None:
    calls: list[int] = []
    assert patience(log, 60.0).run("the plan", lambda: calls.append(1)) is None
    assert calls == [1]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_refused_write_is_tried_again_at_growing_intervals(world: World, log: EventLog, code: int) -> None:
    write = Refused(world, times=9, code=code)
    assert patience(log, 1800.0).run("the plan", write) == "written"
    assert write.at_seconds == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]
    pauses = [
        {
            "event": "paused",
            "what": "the plan",
            "cause": os.strerror(code),
            "free_bytes": 5000,
            "next_try_seconds": seconds,
            "limit_seconds": 1800.0,
        }
        for seconds in (1, 2, 4, 8, 16, 32, 60, 60, 60)
    ]
    assert told(log) == [*pauses, {"event": "unpaused", "what": "the plan", "seconds": 243.0}]


def test_patience_ends_at_its_limit_after_a_last_try(world: World, log: EventLog) -> None:
    write = Refused(world, times=1000)
    with pytest.raises(DiskError) as caught:
        patience(log, 100.0).run("the checkpoint of step 7", write)
    assert write.at_seconds == [0, 1, 3, 7, 15, 31, 63, 100]
    assert caught.value.exit_code == 8
    assert caught.value.message == (
        f"the checkpoint of step 7 could not be written for 1 min 40 s: {FULL} (5.00 KB are free). "
        "What was saved before stands."
    )
    assert caught.value.hint == "make room on the disk, then lowmem-seq resume here"
    assert isinstance(caught.value.__cause__, OSError)
    assert [event["event"] for event in log] == ["paused"] * 7


def test_without_patience_the_first_refusal_is_the_last(world: World, log: EventLog) -> None:
    write = Refused(world, times=1)
    with pytest.raises(DiskError, match="could not be written for 0 s"):
        patience(log, 0.0).run("the plan", write)
    assert write.at_seconds == [0]
    assert told(log) == []


def test_when_room_appears_the_write_is_tried_at_once(world: World, log: EventLog) -> None:
    world.free = lambda seconds: 5000 if seconds < 70 else 6000
    write = Refused(world, times=7)
    assert patience(log, 1800.0).run("the plan", write, needed_bytes=6000) == "written"
    assert write.at_seconds == [0, 1, 3, 7, 15, 31, 63, 70]


@pytest.mark.parametrize("needed_bytes", [0, 4000, 9000])
def test_room_that_was_there_or_is_too_little_is_no_reason_to_try(
    world: World, log: EventLog, needed_bytes: int
) -> None:
    """The room on a disk that others write to changes all the time."""
    world.free = lambda seconds: 5000 + int(2 * seconds) % 7
    write = Refused(world, times=4)
    patience(log, 1800.0).run("the plan", write, needed_bytes)
    assert write.at_seconds == [0, 1, 3, 7, 15]


def test_less_room_than_before_is_no_reason_to_try(world: World, log: EventLog) -> None:
    world.free = lambda seconds: 5000 - int(seconds)
    write = Refused(world, times=3)
    patience(log, 1800.0).run("the plan", write)
    assert write.at_seconds == [0, 1, 3, 7]


def test_a_disk_that_was_pulled_out_has_no_room_until_it_is_back(world: World, log: EventLog) -> None:
    def free(seconds: float) -> int:
        if seconds < 5:
            raise FileNotFoundError(errno.ENOENT, "no such disk")
        return 6000

    world.free = free
    write = Refused(world, times=3)
    assert patience(log, 1800.0).run("the plan", write, needed_bytes=6000) == "written"
    assert write.at_seconds == [0, 1, 3, 5]
    assert [event["free_bytes"] for event in log if event["event"] == "paused"] == [0, 0, 0]


@pytest.mark.parametrize("stopped_at", [0.0, 5.2, 100.0])
def test_who_asks_for_a_stop_is_not_kept_waiting(world: World, log: EventLog, stopped_at: float) -> None:
    write = Refused(world, times=1000)
    with pytest.raises(DiskError, match="could not be written for") as caught:
        patience(log, 1800.0, lambda: world.seconds - 1000 >= stopped_at).run("the plan", write)
    assert caught.value.exit_code == 8
    tries_before = {0.0: [], 5.2: [0, 1, 3], 100.0: [0, 1, 3, 7, 15, 31, 63]}
    assert write.at_seconds[:-1] == tries_before[stopped_at]
    assert stopped_at <= write.at_seconds[-1] <= stopped_at + LOOK_SECONDS  # a last try, at once


def test_a_last_try_before_a_stop_may_go_through(world: World, log: EventLog) -> None:
    write = Refused(world, times=3)
    stopping = patience(log, 1800.0, lambda: world.seconds - 1000 >= 5.2)
    assert stopping.run("the plan", write) == "written"
    assert write.at_seconds == [0, 1, 3, 5.5]


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), ValueError("NaN"), KeyboardInterrupt()])
@pytest.mark.parametrize("refusals", [0, 2])
def test_what_waiting_can_not_mend_passes_through(
    world: World, log: EventLog, error: BaseException, refusals: int
) -> None:
    refused = Refused(world, times=refusals)

    def write() -> None:
        refused()
        raise error

    with pytest.raises(type(error)) as caught:
        patience(log, 1800.0).run("the plan", write)
    assert caught.value is error
    assert len(refused.at_seconds) == refusals + 1
    assert [event["event"] for event in log] == ["paused"] * refusals
