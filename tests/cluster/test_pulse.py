from __future__ import annotations

import time

import pytest

from lowmem_seq.cluster.pulse import Pulse, RankLost, tell_leaving
from tests.cluster.clocks import Clock
from tests.cluster.stores import LosableTable

NAMES = ("rank 0 (hp)", "rank 1 (hp)", "rank 2 (mac)")
LOST_AFTER = 20.0


@pytest.fixture
def store() -> LosableTable:
    return LosableTable()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pulses(store: LosableTable, clock: Clock) -> list[Pulse]:
    return [Pulse(store, number, NAMES, LOST_AFTER, clock) for number in range(len(NAMES))]


def test_ranks_that_beat_are_there_however_long_it_takes(pulses: list[Pulse], clock: Clock) -> None:
    for _ in range(100):
        clock.now += 5
        for pulse in pulses:
            pulse.beat()
    for pulse in pulses:
        pulse.beat()
        pulse.require_all()


def test_a_rank_that_is_silent_is_named(pulses: list[Pulse], clock: Clock) -> None:
    for pulse in pulses:
        pulse.beat()
    for _ in range(6):
        clock.now += 5
        for number in (0, 2):
            pulses[number].beat()
    with pytest.raises(RankLost, match=r"rank 1 \(hp\) was not heard of for 2\d s"):
        pulses[0].require_all()
    assert pulses[0].quietest() == pulses[2].quietest() == NAMES[1]


def test_a_rank_that_leaves_says_why(pulses: list[Pulse], store: LosableTable) -> None:
    tell_leaving(store, 2, "the disk is full")
    pulses[0].beat()
    with pytest.raises(RankLost, match=r"rank 2 \(mac\) has ended: the disk is full"):
        pulses[0].require_all()
    pulses[2].beat()
    pulses[2].require_all()


def test_a_store_that_is_gone_is_noticed(store: LosableTable, clock: Clock) -> None:
    pulse = Pulse(store, 1, NAMES, LOST_AFTER, clock)
    store.is_gone = True
    pulse.start()
    while pulse.is_beating:
        time.sleep(0.001)
    with pytest.raises(RankLost, match=r"rank 0 \(hp\) or the launcher on its machine is gone"):
        pulse.require_all()
    tell_leaving(store, 1, "nobody hears this")


def test_a_store_that_does_not_answer_is_noticed(pulses: list[Pulse], clock: Clock) -> None:
    pulses[1].beat()
    pulses[1].require_all()
    clock.now += LOST_AFTER + 1  # the thread waits for an answer
    with pytest.raises(RankLost, match="is silent"):
        pulses[1].require_all()


def test_who_asked_to_be_told_hears_of_a_loss_once(store: LosableTable) -> None:
    losses: list[RankLost] = []
    pulse = Pulse(store, 0, NAMES, LOST_AFTER, lost=losses.append)
    tell_leaving(store, 1, "its images are gone")
    pulse.start()
    while pulse.is_beating:
        time.sleep(0.001)
    assert [loss.message for loss in losses] == ["rank 1 (hp) has ended: its images are gone"]
