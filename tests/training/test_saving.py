from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowmem_seq.runs.save_interval import LARGEST_SHARE, SECONDS_BETWEEN_CRASHES, SHORTEST_SECONDS
from lowmem_seq.training import saving
from lowmem_seq.training.saving import (
    FIRST_COST_SECONDS,
    SavingClock,
)
from lowmem_seq.units import Interval, parse_interval


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(saving, "awake_seconds", clock)
    return clock


def seconds_until_due(clock: SavingClock, now: Time) -> int:
    """Whole seconds from now on until a save is due, at a step that no step count asks for."""
    began = now.seconds
    while not clock.is_due(1):
        now.seconds += 1
    return round(now.seconds - began)


def test_every_so_many_steps_whatever_the_time(now: Time) -> None:
    clock = SavingClock(parse_interval("20steps"))
    now.seconds += 10**6
    assert [step for step in range(1, 101) if clock.is_due(step)] == [20, 40, 60, 80, 100]


def test_steps_are_counted_from_the_run_s_start_also_after_a_resume(now: Time) -> None:
    clock = SavingClock(parse_interval("20steps"))
    clock.take_up(46)
    assert [step for step in range(47, 65) if clock.is_due(step)] == [60]


def test_a_multiple_that_others_passed_over_is_saved_after_it(now: Time) -> None:
    clock = SavingClock(parse_interval("50steps"))
    assert [step for step in (10, 48, 120, 130, 149, 310) if clock.is_due(step)] == [120, 310]


def test_every_so_many_seconds_since_the_last_save(now: Time) -> None:
    clock = SavingClock(parse_interval("5min"))
    assert seconds_until_due(clock, now) == 300
    now.seconds += 12
    assert clock.is_due(1)
    clock.saved(4.0)
    assert seconds_until_due(clock, now) == 300


def test_auto_saves_first_after_a_minute_and_then_as_the_cost_says(now: Time) -> None:
    clock = SavingClock(Interval("auto"))
    assert seconds_until_due(clock, now) == 60
    for cost, wait in ((0.0, 30), (0.01, 30), (0.5, math.sqrt(2 * 0.5 * 21_600)), (10.0, 1000)):
        clock.saved(cost)
        assert seconds_until_due(clock, now) == math.ceil(wait)


@pytest.mark.parametrize("interval", ["20steps", "5min", "auto"])
def test_a_save_out_of_turn_is_affordable_where_it_takes_less_than_its_share(now: Time, interval: str) -> None:
    clock = SavingClock(parse_interval(interval))
    for cost in (FIRST_COST_SECONDS, 0.5, 8.0):
        if cost != FIRST_COST_SECONDS:
            clock.saved(cost)
        now.seconds += cost / LARGEST_SHARE - 0.25
        assert not clock.is_affordable()
        now.seconds += 0.25
        assert clock.is_affordable()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 30))
def test_auto_never_saves_for_more_than_its_share_of_the_time(now: Time, cost: float) -> None:
    clock = SavingClock(Interval("auto"))
    clock.saved(cost)
    wait = seconds_until_due(clock, now)
    assert wait >= SHORTEST_SECONDS
    assert cost <= wait * LARGEST_SHARE * (1 + 1e-9)
    assert wait <= max(SHORTEST_SECONDS, cost / LARGEST_SHARE, math.sqrt(2 * cost * SECONDS_BETWEEN_CRASHES)) + 1
