from __future__ import annotations

import pytest

from lowmem_seq.supervisor.speed import PATIENCE_SECONDS, Change, SpeedWatch
from tests.cluster.clocks import Clock

SECONDS_A_RATE = 10.0


class Listener:
    """Tells rates, one every ten seconds."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.watch = SpeedWatch(self.clock)

    def hear(self, rate: float, count: int = 1, memory_is_short: bool = False) -> list[Change]:
        changes = []
        for _ in range(count):
            self.clock.go_on(SECONDS_A_RATE)
            changes.append(self.watch.hear(rate, memory_is_short))
        return [change for change in changes if change is not None]


@pytest.fixture
def listener() -> Listener:
    told = Listener()
    assert told.hear(100.0, 10) == []
    return told


def test_five_minutes_well_below_the_best_are_told_once(listener: Listener) -> None:
    (change,) = listener.hear(60.0, 100)
    assert change == Change(True, 60.0, 100.0, PATIENCE_SECONDS)


def test_a_short_dip_is_not_told(listener: Listener) -> None:
    for _ in range(5):
        assert listener.hear(20.0, 25) == []
        assert listener.hear(100.0, 10) == []


def test_somewhat_slower_is_not_told(listener: Listener) -> None:
    assert listener.hear(72.0, 100) == []


def test_one_rate_among_many_changes_nothing(listener: Listener) -> None:
    for _ in range(40):
        assert listener.hear(100.0, 4) == listener.hear(1.0) == []


def test_its_end_is_told_with_its_length(listener: Listener) -> None:
    listener.hear(50.0, 40)
    assert listener.hear(75.0, 20) == []  # neither slow nor well
    (change,) = listener.hear(95.0, 10)
    assert (change.slowed, change.images_per_second, change.best_images_per_second) == (False, 95.0, 100.0)
    assert change.seconds == pytest.approx(600, abs=30)
    assert [change.slowed for change in listener.hear(50.0, 40)] == [True]


def test_a_machine_that_is_short_of_memory_is_slow_by_that(listener: Listener) -> None:
    assert listener.hear(50.0, 100, memory_is_short=True) == []
    assert [change.slowed for change in listener.hear(50.0, 40)] == [True]


def test_a_faster_best_counts(listener: Listener) -> None:
    assert listener.hear(160.0, 10) == []
    assert [change.slowed for change in listener.hear(100.0, 40)] == [True]
