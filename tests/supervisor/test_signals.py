from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from lowmem_seq.channel import STOP_SIGNALS
from lowmem_seq.errors import ClusterError
from lowmem_seq.supervisor.signals import HANG_UP, StopSignals


@pytest.fixture(autouse=True)
def hang_up_is_heard() -> Iterator[None]:
    """Under nohup the tests themselves ignore a signal."""
    number = getattr(signal, "SIGHUP", None)
    before = signal.signal(number, signal.SIG_DFL) if number is not None else None
    yield
    if number is not None:
        signal.signal(number, before)


class Killable:
    """A child that is only killed."""

    def __init__(self) -> None:
        self.kills = 0

    def kill(self) -> None:
        self.kills += 1


def ending(stops: StopSignals, child: Killable, at: int, signals: int) -> int:
    """How often the child was killed once so many signals had come."""
    with stops.ending(child, at):  # type: ignore[arg-type]
        for _ in range(signals):
            signal.raise_signal(signal.SIGINT)
        return child.kills


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_stop_signal_is_counted_and_nothing_else_happens(number: int) -> None:
    with StopSignals() as stops:
        assert stops.count == 0
        signal.raise_signal(number)
        assert stops.count == 1
        signal.raise_signal(number)
        assert stops.count == (1 if number == HANG_UP else 2)


@pytest.mark.skipif(HANG_UP is None, reason="Windows knows no closed terminal")
def test_a_system_that_shuts_down_asks_once() -> None:
    """It sends SIGTERM, and SIGHUP right after it."""
    with StopSignals() as stops:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        assert stops.count == 1


def test_the_signals_that_people_and_systems_send_are_stop_signals() -> None:
    wanted = {"SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"}
    assert {signal.Signals(number).name for number in STOP_SIGNALS} == {n for n in wanted if hasattr(signal, n)}


def test_the_handlers_from_before_are_back_afterwards() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopSignals():
        assert all(signal.getsignal(number) not in before for number in STOP_SIGNALS)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.parametrize(("at", "signals", "kills"), [(1, 0, 0), (1, 1, 1), (2, 1, 0), (2, 2, 1), (2, 3, 2)])
def test_a_child_is_ended_from_the_given_signal_on(at: int, signals: int, kills: int) -> None:
    with StopSignals() as stops:
        assert ending(stops, Killable(), at, signals) == kills


def test_a_child_that_is_started_after_the_signal_is_ended_at_once() -> None:
    with StopSignals() as stops:
        signal.raise_signal(signal.SIGINT)
        assert ending(stops, Killable(), at=2, signals=0) == 0
        assert ending(stops, Killable(), at=1, signals=0) == 1


def test_a_child_that_has_ended_by_itself_is_left_alone() -> None:
    child = Killable()
    with StopSignals() as stops:
        ending(stops, child, at=1, signals=0)
        signal.raise_signal(signal.SIGINT)
    assert child.kills == 0


def test_a_stop_becomes_an_interrupt_where_it_is_asked_about() -> None:
    with StopSignals() as stops:
        stops.raise_if_any()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stops.raise_if_any()


def test_a_wait_takes_its_time() -> None:
    began = time.monotonic()
    StopSignals().wait(0.25)
    assert time.monotonic() - began >= 0.25


def test_a_wait_ends_when_a_stop_is_asked_for() -> None:
    with StopSignals() as stops:
        began = time.monotonic()
        sender = threading.Timer(0.1, signal.raise_signal, args=(signal.SIGINT,))
        sender.start()
        stops.wait(60.0)
        assert time.monotonic() - began < 30.0
        sender.join()
        stops.wait(60.0)
        assert time.monotonic() - began < 30.0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows knows no closed terminal")
def test_a_closed_terminal_stops_nothing_that_nohup_started() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as stops:
        signal.raise_signal(signal.SIGHUP)
        assert stops.count == 0
        signal.raise_signal(signal.SIGTERM)
        assert stops.count == 1
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_loss_ends_what_is_under_way_and_what_comes_later_and_is_raised_unless_a_stop_was_asked_for() -> None:
    stops, child = StopSignals(), Killable()
    stops.raise_if_any()
    with stops.ending(child, at=2):  # type: ignore[arg-type]
        stops.end_by(ClusterError("rank 1 is gone", ""))
        assert child.kills == 1
    assert ending(stops, Killable(), at=2, signals=0) == 1
    began = time.monotonic()
    stops.wait(60.0)
    assert time.monotonic() - began < 10.0
    with pytest.raises(ClusterError, match="rank 1 is gone"):
        stops.raise_if_any()
    stops.count = 1
    with pytest.raises(KeyboardInterrupt):
        stops.raise_if_any()
