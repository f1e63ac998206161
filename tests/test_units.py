from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.errors import UsageError
from lowmem_seq.units import (
    BYTE_UNITS,
    SECOND_UNITS,
    Hours,
    Interval,
    format_bytes,
    format_hours,
    format_network,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_hours,
    parse_interval,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GB", 6 * 10**9),
        ("6GiB", 6 * 2**30),
        (" 1.5 gib ", 3 * 2**29),
        (".5kb", 500),
        ("800MB", 8 * 10**8),
        ("1TiB", 2**40),
        ("1B", 1),
    ],
)
def test_bytes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("6", "'6' has no unit of memory."),
        ("6min", "'min' is not a unit of memory."),
        ("0.1B", "'0.1B' is less than one byte."),
        ("0GB", "'0GB' is less than one byte."),
        ("-6GB", "'-6GB' is not an amount of memory."),
        ("GB", "'GB' is not an amount of memory."),
        ("1e9B", "'1e9B' is not an amount of memory."),
        ("", "'' is not an amount of memory."),
        ("6GB 7GB", "'6GB 7GB' is not an amount of memory."),
    ],
)
def test_what_is_no_amount_of_memory_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert caught.value.message == told
    assert "6GB" in caught.value.hint


@pytest.mark.parametrize(
    ("bytes_per_second", "text"), [(117.5e6, "940 Mbit/s"), (1.25e9, "10,000 Mbit/s"), (1e5, "0.8 Mbit/s")]
)
def test_a_network_s_speed_is_shown_as_it_is_sold(bytes_per_second: float, text: str) -> None:
    assert format_network(bytes_per_second) == text


@given(st.integers(1, 10**6), st.sampled_from(sorted(BYTE_UNITS)))
def test_whole_amounts_are_exact_in_every_unit(number: int, unit: str) -> None:
    assert parse_bytes(f"{number}{unit}") == number * BYTE_UNITS[unit]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 KB"),
        (1_234_567, "1.23 MB"),
        (12_345_678, "12.3 MB"),
        (999_499_999, "999 MB"),
        (999_500_000, "1.00 GB"),
        (6 * 10**9, "6.00 GB"),
        (-1_234_567, "-1.23 MB"),
    ],
)
def test_bytes_are_shown_with_three_digits(size: int, text: str) -> None:
    assert format_bytes(size) == text


@given(st.integers(1, 10**14))
def test_shown_bytes_read_back_to_within_half_a_percent(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5min", 300), ("1.5 H", 5400), ("2 days", 172_800), ("0s", 0)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("5", "'5' has no unit of time."),
        ("5GB", "'GB' is not a unit of time."),
        ("soon", "'soon' is not a time."),
    ],
)
def test_what_is_no_time_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_seconds(text)
    assert caught.value.message == told
    assert "5min" in caught.value.hint


@pytest.mark.parametrize(("rate", "text"), [(1234.5, "1,234"), (10.0, "10"), (4.0, "4.0"), (0.25, "0.25")])
def test_a_low_speed_is_shown_with_more_digits(rate: float, text: str) -> None:
    assert format_rate(rate) == f"{text} images/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599.9, "1 h 00 min"),
        (3725, "1 h 02 min"),
        (90_000, "1 d 01 h"),
    ],
)
def test_times_are_shown_with_their_two_largest_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("200steps", Interval("steps", 200)),
        ("1 step", Interval("steps", 1)),
        ("5min", Interval("seconds", 300)),
        (" AUTO ", Interval("auto")),
    ],
)
def test_intervals_are_read(text: str, interval: Interval) -> None:
    assert parse_interval(text) == interval


@given(st.integers(1, 999_999), st.sampled_from(["steps", *SECOND_UNITS]))
def test_whole_intervals_are_exact_in_every_unit(amount: int, unit: str) -> None:
    seconds = SECOND_UNITS.get(unit)
    expected = Interval("steps", amount) if seconds is None else Interval("seconds", amount * seconds)
    assert parse_interval(f"{amount}{unit}") == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("200", "'200' is neither steps nor a time."),
        ("0steps", "'0steps' is not a whole, positive number of steps."),
        ("1.5steps", "'1.5steps' is not a whole, positive number of steps."),
        ("0min", "'0min' is not a positive time."),
        ("often", "'often' is not an interval."),
    ],
)
def test_what_is_no_interval_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_interval(text)
    assert caught.value.message == told
    assert "200steps, 5min or auto" in caught.value.hint


@pytest.mark.parametrize("parse", [parse_bytes, parse_seconds, parse_interval])
@given(text=st.text(max_size=12))
def test_any_text_is_read_or_refused(parse: Callable[[str], object], text: str) -> None:
    with contextlib.suppress(UsageError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("22:00-07:00", Hours(22 * 60, 7 * 60)),
        (" 9:30 - 17 ", Hours(9 * 60 + 30, 17 * 60)),
        ("18-24:00", Hours(18 * 60, 0)),
        ("Always", None),
    ],
)
def test_hours_of_the_day_are_read(text: str, hours: Hours | None) -> None:
    assert parse_hours(text) == hours


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("at night", "is no part of the day"),
        ("22:00", "is no part of the day"),
        ("22:00-07:00-09:00", "is no part of the day"),
        ("22:60-7", "a time that no day has"),
        ("22-25", "a time that no day has"),
        ("24:01-7", "a time that no day has"),
        ("7-07:00", "begins and ends at the same time"),
        ("0-24", "begins and ends at the same time"),
    ],
)
def test_hours_that_no_day_has_are_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as refused:
        parse_hours(text)
    assert refused.value.hint == "write them as 22:00-07:00, or always"


@given(st.integers(0, 1439), st.integers(0, 1439))
def test_hours_are_written_as_they_are_read(begin: int, end: int) -> None:
    if begin != end:
        assert parse_hours(format_hours(Hours(begin, end))) == Hours(begin, end)
