"""What a run waits for: the mains, and the hours of the day that it was given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from lowmem_seq.supervisor.hours import is_within, next_beginning
from lowmem_seq.supervisor.power import SettledPower
from lowmem_seq.units import Hours, format_hours

Wanted = Literal["power", "hours"]


@dataclass(frozen=True)
class Hindrance:
    """Why nothing is trained now."""

    waits_for: tuple[Wanted, ...]
    """All of it must come."""
    cause: str
    """For people: a clause."""
    until: datetime | None
    """When the hours begin, if that is all that lacks; in local time."""


class Conditions:
    """The conditions that a machine's settings make.

    Args:
        power: the plug, where the run is to pause on battery.
        hours: when to train; None: always.
        now: the local time.
    """

    def __init__(self, power: SettledPower | None, hours: Hours | None, now: Callable[[], datetime]) -> None:
        self._power, self._hours, self._now = power, hours, now

    @property
    def hindrance(self) -> Hindrance | None:
        """What is in the way now, if anything."""
        waits_for: list[Wanted] = []
        causes: list[str] = []
        now = self._now()
        until = None
        if self._power is not None and self._power.on_battery:
            waits_for.append("power")
            causes.append("this machine runs on battery")
        if self._hours is not None and not is_within(self._hours, now):
            until = next_beginning(self._hours, now) if not waits_for else None
            waits_for.append("hours")
            causes.append(f"it is outside of {format_hours(self._hours)}")
        return Hindrance(tuple(waits_for), " and ".join(causes), until) if waits_for else None
