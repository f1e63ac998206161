from __future__ import annotations

from typing import Any

import pytest

from lowmem_seq.report.clock import Clock, Span
from lowmem_seq.runs.events import LAST_SECOND, Event, time_of


def clock_of(*events: tuple[float, str] | tuple[float, str, dict[str, Any]]) -> Clock:
    """A clock that heard these events: when, what, and more of it."""
    clock = Clock()
    for at, kind, *more in events:
        event: Event = {"time_unix_seconds": at, "event": kind, **(more[0] if more else {})}
        clock.pass_to(event)
        if "seconds" in event and kind != "unpaused":
            clock.take_out(event, event["seconds"])
    return clock


def spent(clock: Clock) -> dict[str, float]:
    return {what: seconds for what, seconds in clock.spent.items() if seconds}


def test_time_goes_to_starting_training_evaluating_and_saving() -> None:
    clock = clock_of(
        (100, "session_opened"),
        (110, "session_started"),
        (130, "validation", {"seconds": 4.0}),
        (140, "checkpoint", {"seconds": 1.0}),
        (150, "session_ended", {"state": "finished"}),
    )
    assert spent(clock) == {"starting": 10, "training": 35, "evaluation": 4, "saving": 1}
    assert clock.alive_seconds == 50
    assert clock.spans == [Span("starting", 100, 110), Span("training", 110, 150)]


def test_between_two_sessions_no_time_passes() -> None:
    clock = clock_of(
        (0, "session_opened"),
        (10, "session_started"),
        (20, "session_ended", {"state": "stopped"}),
        (80_000, "session_opened"),
        (80_005, "session_started"),
        (80_010, "train"),
    )
    assert clock.alive_seconds == 30
    assert list(clock.session_starts) == [20]
    assert spent(clock) == {"starting": 15, "training": 15}
    assert clock.spans[-2:] == [Span("starting", 80_000, 80_005), Span("training", 80_005, 80_010)]


def test_a_session_that_ended_without_a_word_lasted_to_its_last_event() -> None:
    clock = clock_of((0, "session_opened"), (5, "session_started"), (50, "train"), (9000, "session_opened"))
    assert clock.spans[1] == Span("training", 5, 50)
    assert clock.alive_seconds == 50


def test_a_trainer_that_died_is_started_again_within_the_session() -> None:
    clock = clock_of(
        (0, "session_opened"),
        (5, "session_started"),
        (20, "session_ended", {"state": "crashed"}),
        (20, "trainer_restarted"),
        (28, "session_started"),
        (30, "train"),
    )
    assert spent(clock) == {"starting": 13, "training": 17}
    assert [span.what for span in clock.spans] == ["starting", "training", "starting", "training"]


def test_a_wait_for_the_disk_is_no_saving() -> None:
    clock = clock_of(
        (0, "session_started"),
        (10, "paused"),
        (70, "unpaused"),
        (71, "checkpoint", {"seconds": 62.0}),
    )
    assert spent(clock) == {"training": 9, "waiting": 60, "saving": 2}
    assert clock.spans == [Span("training", 0, 10), Span("paused", 10, 70), Span("training", 70, 71)]


def test_a_pause_for_which_the_trainer_ended_is_followed_by_a_start() -> None:
    clock = clock_of(
        (0, "session_started"),
        (10, "session_ended", {"state": "stopped"}),
        (10, "paused"),
        (100, "unpaused"),
        (105, "session_started"),
    )
    assert spent(clock) == {"training": 10, "waiting": 90, "starting": 5}


def test_sleep_and_other_machines_are_waited_for() -> None:
    clock = clock_of((0, "session_started"), (1000, "slept", {"seconds": 900.0}))
    clock.take_stalled(20.0)
    clock.take_stalled(30.0)
    assert spent(clock) == {"training": 70, "waiting": 930}
    clock.pass_to({"time_unix_seconds": 1010, "event": "session_started"})
    clock.take_stalled(4.0)  # a new trainer counts anew
    assert clock.spent["waiting"] == 934


def test_a_clock_that_is_set_back_takes_no_time_away() -> None:
    clock = clock_of((1000, "session_started"), (400, "train"), (410, "train"))
    assert clock.alive_seconds == 10
    assert all(span.end >= span.begin for span in clock.spans)


@pytest.mark.parametrize("at", [None, "now", -1, LAST_SECOND, float("nan"), True.__class__])
def test_a_time_that_is_none_is_not_counted(at: object) -> None:
    event: Event = {"time_unix_seconds": at, "event": "train"}
    assert time_of(event) is None
    clock = Clock()
    clock.pass_to(event)
    assert (clock.alive_seconds, clock.spans) == (0, [])
