"""What a session says of the machine's own life: awake, paused, asleep, slow. In words, by event."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowmem_seq.units import format_seconds

Message = dict[str, Any]

GOES_ON = {"power": "when it is plugged in", "hours": "in its hours"}


@dataclass(frozen=True)
class Said:
    """A line for people."""

    text: str
    is_warning: bool = False


def describe(message: Message) -> Said | None:
    """Return what an event of laptop.py says, or None of one that is somebody else's."""
    match message.get("event"):
        case "kept_awake":
            return Said(f"awake   kept from going to sleep by itself ({message['by']})")
        case "not_kept_awake":
            return Said(f"awake   not kept awake: {message['cause']}")
        case "in_background":
            return Said(_background(message))
        case "no_battery":
            return Said("power   no battery is known here, so --pause-on-battery has no effect")
        case "pause_unsaved":
            return Said(f"{message['cause']}; what came after the newest checkpoint is computed again", True)
        case "slept":
            return Said(f"this machine slept for {format_seconds(message['seconds'])}; going on")
        case "slowed":
            return Said(_slowed(message), True)
        case "recovered":
            rate, seconds = message["images_per_second"], message["seconds"]
            return Said(f"fast again after {format_seconds(seconds)}: {rate:,.0f} images/s")
    return None


def describe_pause(cause: str, waits_for: Sequence[str], goes_on_unix_seconds: float | None) -> str:
    """Return why a run is paused, and when it goes on.

    Args:
        cause: the event's.
        waits_for: likewise; nothing of a full disk.
        goes_on_unix_seconds: the event's `until_unix_seconds`.
    """
    if goes_on_unix_seconds is not None:
        return f"{cause}; the run goes on at {format_moment(goes_on_unix_seconds)}"
    awaited = [GOES_ON[what] for what in waits_for if what in GOES_ON]
    return f"{cause}; " + (f"the run goes on {' and '.join(awaited)}" if awaited else "it tries again by itself")


def describe_briefly(waits_for: Sequence[str], goes_on_unix_seconds: float | None) -> str:
    """Return the same for a place that has room for some words only."""
    if goes_on_unix_seconds is not None:
        return f"paused until {format_moment(goes_on_unix_seconds)}"
    return "paused on battery" if "power" in waits_for else "paused"


def format_moment(unix_seconds: float, now: float | None = None) -> str:
    """Return a moment in local time: its time of day, with the day's name if that is not today."""
    at, today = time.localtime(unix_seconds), time.localtime(time.time() if now is None else now)
    clock = time.strftime("%H:%M", at)
    return clock if at[:3] == today[:3] else f"{time.strftime('%a', at)} {clock}"


def _background(message: Message) -> str:
    how = ["at a lower priority"] if message["lowered"] else ["the system lets it lower no priority"]
    return "power   in the background: " + ", ".join(how + ["a core is left free"] * message["leaves_a_core"])


def _slowed(message: Message) -> str:
    rate, best = message["images_per_second"], message["best_images_per_second"]
    why = "on battery machines save power" if message.get("plugged_in") is False else "heat, or another program"
    return (
        f"slow for {format_seconds(message['seconds'])}: {rate:,.0f} images/s, {rate / best:.0%} of the best, "
        f"with nothing changed here ({why}?)"
    )
