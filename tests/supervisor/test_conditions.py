from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.supervisor.conditions import Conditions
from lowmem_seq.supervisor.hours import is_within, next_beginning
from lowmem_seq.units import Hours, parse_hours

NIGHT, DAY = Hours(22 * 60, 7 * 60), Hours(9 * 60, 17 * 60)


@pytest.mark.parametrize(
    ("hours", "time_of_day", "within"),
    [
        (NIGHT, (22, 0), True),
        (NIGHT, (21, 59), False),
        (NIGHT, (0, 0), True),
        (NIGHT, (6, 59), True),
        (NIGHT, (7, 0), False),
        (DAY, (9, 0), True),
        (DAY, (8, 59), False),
        (DAY, (16, 59), True),
        (DAY, (17, 0), False),
    ],
)
def test_hours_include_their_first_minute_and_not_their_last(
    hours: Hours, time_of_day: tuple[int, int], within: bool
) -> None:
    assert is_within(hours, datetime(2026, 11, 23, *time_of_day)) is within


@pytest.mark.parametrize(
    ("at", "begins"),
    [
        (datetime(2026, 11, 23, 12), datetime(2026, 11, 23, 22)),
        (datetime(2026, 11, 23, 22), datetime(2026, 11, 24, 22)),
        (datetime(2026, 12, 31, 23), datetime(2027, 1, 1, 22)),
    ],
)
def test_the_next_beginning_is_today_or_tomorrow(at: datetime, begins: datetime) -> None:
    assert next_beginning(NIGHT, at) == begins


MOMENTS = st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1))
MINUTES = st.integers(0, 24 * 60 - 1)


@given(at=MOMENTS, begin=MINUTES, end=MINUTES)
def test_hours_begin_where_it_is_said(at: datetime, begin: int, end: int) -> None:
    if begin == end:
        return
    hours = Hours(begin, end)
    begins = next_beginning(hours, at)
    assert timedelta(0) < begins - at <= timedelta(days=1)
    assert is_within(hours, begins)
    assert not is_within(hours, begins - timedelta(minutes=1)) or (begin - end) % (24 * 60) == 0


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Central European Time, whose clocks go forward on 2026-03-29 and back on 2026-10-25."""
    if not hasattr(time, "tzset"):
        pytest.skip("Windows has no tzset")
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def hours_within(begin: datetime, hours: str) -> float:
    """For how many hours of a day from `begin` on it is within some hours, by the system's local time."""
    told = parse_hours(hours)
    assert told is not None
    first = begin.timestamp()
    return sum(is_within(told, datetime.fromtimestamp(first + 60 * minute)) for minute in range(24 * 60)) / 60


@pytest.mark.parametrize(
    ("day", "hours", "length"),
    [
        (datetime(2026, 3, 28, 12), "22:00-07:00", 8),
        (datetime(2026, 10, 24, 12), "22:00-07:00", 10),
        (datetime(2026, 11, 24, 12), "22:00-07:00", 9),
        (datetime(2026, 3, 28, 12), "02:00-03:00", 0),
        (datetime(2026, 10, 24, 12), "02:00-03:00", 2),
        (datetime(2026, 3, 28, 12), "02:30-06:00", 3),
    ],
)
@pytest.mark.usefixtures("berlin")
def test_a_night_in_which_the_clock_is_set_is_longer_or_shorter(day: datetime, hours: str, length: float) -> None:
    assert hours_within(day, hours) == length


def test_nothing_is_in_the_way_where_nothing_is_asked_for() -> None:
    assert Conditions(None, None, datetime.now).hindrance is None
