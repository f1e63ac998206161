"""Amounts as people write them, and back: "6GB" -> bytes, "5min" -> seconds, "22:00-07:00" -> hours of the day.

GB is 10^9 bytes and GiB is 2^30; a bare number is refused, because it could mean anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lowmem_seq.errors import UsageError

BYTE_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
SECOND_UNITS = {
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "seconds": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "minutes": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "hours": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
    "days": 86400.0,
}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*")
_HOURS = re.compile(r"\s*(\d{1,2})(?::(\d{2}))?\s*-\s*(\d{1,2})(?::(\d{2}))?\s*")


def _split(text: str, what: str, example: str) -> tuple[float, str]:
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not {what}.", f"write it as a number and a unit: {example}")
    return float(match[1]), match[2]


def parse_bytes(text: str) -> int:
    """Return the bytes that `text` such as "6GB" or "1.5 GiB" means.

    Raises:
        UsageError: not a number and a unit of bytes, or less than one byte.
    """
    number, unit = _split(text, "an amount of memory", "6GB (10^9 bytes) or 6GiB (2^30 bytes)")
    factor = BYTE_UNITS.get(unit.upper())
    if factor is None:
        raise UsageError(
            f"{text!r} has no unit of memory." if not unit else f"{unit!r} is not a unit of memory.",
            "write it as a number and a unit: 6GB (10^9 bytes) or 6GiB (2^30 bytes)",
        )
    size = round(number * factor)
    if size < 1:
        raise UsageError(f"{text!r} is less than one byte.", "write a positive amount: 6GB")
    return size


def format_bytes(size: int) -> str:
    """Return `size` with three digits and a decimal unit: 1_234_567 -> "1.23 MB"."""
    for unit in ("TB", "GB", "MB", "KB"):
        factor = BYTE_UNITS[unit]
        if abs(size) >= factor * 0.9995:
            value = size / factor
            digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{size} B"


def format_network(bytes_per_second: float) -> str:
    """Return a network's speed as it is sold: `940 Mbit/s`; below ten with a digit behind the point."""
    megabits = 8 * bytes_per_second / 1e6
    return f"{megabits:,.{0 if megabits >= 10 else 1}f} Mbit/s"


def parse_seconds(text: str) -> float:
    """Return the seconds that `text` such as "5min" or "1.5h" means.

    Raises:
        UsageError: not a number and a unit of time.
    """
    number, unit = _split(text, "a time", "90s, 5min or 2h")
    factor = SECOND_UNITS.get(unit.lower())
    if factor is None:
        raise UsageError(
            f"{text!r} has no unit of time." if not unit else f"{unit!r} is not a unit of time.",
            "write it as a number and a unit: 90s, 5min or 2h",
        )
    return number * factor


def format_rate(images_per_second: float) -> str:
    """Return a speed for people; below ten with a digit behind the point, below one with two."""
    digits = 0 if images_per_second >= 10 else 1 if images_per_second >= 1 else 2
    return f"{images_per_second:,.{digits}f} images/s"


def format_seconds(seconds: float) -> str:
    """Return a time with its two largest units: 3725 -> "1 h 02 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02d} h"


@dataclass(frozen=True)
class Interval:
    """How often something happens: every `amount` steps or seconds, or `auto` (amount unused)."""

    kind: Literal["steps", "seconds", "auto"]
    amount: float = 0.0


def parse_interval(text: str) -> Interval:
    """Return the interval that "200steps", "5min" or "auto" means.

    Raises:
        UsageError: none of these, or not positive.
    """
    examples = "200steps, 5min or auto"
    if text.strip().lower() == "auto":
        return Interval("auto")
    number, unit = _split(text, "an interval", examples)
    if unit.lower() in ("step", "steps"):
        if number < 1 or number != int(number):
            raise UsageError(f"{text!r} is not a whole, positive number of steps.", f"write it as {examples}")
        return Interval("steps", number)
    if unit.lower() not in SECOND_UNITS:
        raise UsageError(f"{text!r} is neither steps nor a time.", f"write it as {examples}")
    seconds = parse_seconds(text)
    if seconds <= 0:
        raise UsageError(f"{text!r} is not a positive time.", f"write it as {examples}")
    return Interval("seconds", seconds)


@dataclass(frozen=True)
class Hours:
    """A part of every day, by the clock on the wall; one that ends before it begins goes over midnight."""

    begin_minute: int
    """Minutes after midnight."""
    end_minute: int
    """The first minute that is outside."""


def parse_hours(text: str) -> Hours | None:
    """Return the part of the day that "22:00-07:00" or "22-7" means; None for "always".

    Raises:
        UsageError: not two times of a day, or the same one twice.
    """
    if text.strip().lower() == "always":
        return None
    match = _HOURS.fullmatch(text)
    example = "write them as 22:00-07:00, or always"
    if match is None:
        raise UsageError(f"{text!r} is no part of the day.", example)
    begin, end = (_minute(match[1], match[2], text, example), _minute(match[3], match[4], text, example))
    if begin == end:
        raise UsageError(f"{text!r} begins and ends at the same time.", example)
    return Hours(begin, end)


def format_hours(hours: Hours) -> str:
    """Return a part of the day as people write it: "22:00-07:00"."""
    times = (f"{minute // 60:02d}:{minute % 60:02d}" for minute in (hours.begin_minute, hours.end_minute))
    return "-".join(times)


def _minute(hours: str, minutes: str | None, text: str, example: str) -> int:
    """Return a time of the day in minutes after midnight; 24:00 is 0:00."""
    minute = int(hours) * 60 + int(minutes or 0)
    if minute > 24 * 60 or int(minutes or 0) > 59:
        raise UsageError(f"{text!r} has a time that no day has.", example)
    return minute % (24 * 60)
