"""Whether it is time to train, by the clock on this machine's wall.

Times are compared as the wall shows them, so a day on which the clock is set forward or back needs no case of its
own: 22:00-07:00 is an hour shorter or longer then.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from lowmem_seq.units import Hours


def is_within(hours: Hours, at: datetime) -> bool:
    """Return whether a moment, in local time without a zone, lies in these hours."""
    minute = at.hour * 60 + at.minute
    if hours.begin_minute < hours.end_minute:
        return hours.begin_minute <= minute < hours.end_minute
    return minute >= hours.begin_minute or minute < hours.end_minute


def next_beginning(hours: Hours, at: datetime) -> datetime:
    """Return the next moment, in local time, at which these hours begin.

    One that is skipped when the clock is set forward comes as soon as the wall shows a later time; so it is told as
    the wall would have shown it, and what is waited for is `is_within`.
    """
    begin = at.replace(
        hour=hours.begin_minute // 60, minute=hours.begin_minute % 60, second=0, microsecond=0, fold=0
    )
    return begin if begin > at else begin + timedelta(days=1)
