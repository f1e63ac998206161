from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from lowmem_seq.cli.laptop import Said, describe, describe_briefly, describe_pause, format_moment

BATTERY = "this machine runs on battery"
SLOWED = {"event": "slowed", "images_per_second": 312.4, "best_images_per_second": 540.0, "seconds": 300.0}
NOON, NIGHT = datetime(2026, 11, 23, 12).timestamp(), datetime(2026, 11, 23, 22).timestamp()


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            {"event": "kept_awake", "by": "caffeinate"},
            "awake   kept from going to sleep by itself (caffeinate)",
        ),
        (
            {"event": "not_kept_awake", "cause": "nobody is there"},
            "awake   not kept awake: nobody is there",
        ),
        (
            {"event": "in_background", "lowered": True, "leaves_a_core": True},
            "power   in the background: at a lower priority, a core is left free",
        ),
        (
            {"event": "in_background", "lowered": True, "leaves_a_core": False},
            "power   in the background: at a lower priority",
        ),
        (
            {"event": "in_background", "lowered": False, "leaves_a_core": False},
            "power   in the background: the system lets it lower no priority",
        ),
        ({"event": "no_battery"}, "power   no battery is known here, so --pause-on-battery has no effect"),
        ({"event": "slept", "seconds": 7980.0}, "this machine slept for 2 h 13 min; going on"),
        (
            {**SLOWED, "event": "recovered", "images_per_second": 1500.0},
            "fast again after 5 min 00 s: 1,500 images/s",
        ),
    ],
    ids=lambda value: value["event"] if isinstance(value, dict) else "",
)
def test_each_event_is_a_line(message: dict[str, Any], text: str) -> None:
    assert describe(message) == Said(text)


@pytest.mark.parametrize(
    ("plugged_in", "why"),
    [
        (True, "heat, or another program"),
        (None, "heat, or another program"),
        (False, "on battery machines save power"),
    ],
)
def test_slow_is_a_warning_with_what_it_may_come_from(plugged_in: bool | None, why: str) -> None:
    assert describe({**SLOWED, "plugged_in": plugged_in}) == Said(
        f"slow for 5 min 00 s: 312 images/s, 58% of the best, with nothing changed here ({why}?)", True
    )


def test_other_events_are_somebody_else_s() -> None:
    assert describe({"event": "train"}) is describe({}) is None


def test_a_pause_says_what_ends_it() -> None:
    assert describe_pause(BATTERY, ["power"], None) == f"{BATTERY}; the run goes on when it is plugged in"
    both = describe_pause(BATTERY, ["power", "hours"], None)
    assert both == f"{BATTERY}; the run goes on when it is plugged in and in its hours"
    assert describe_pause("it is late", ["hours"], NIGHT).startswith("it is late; the run goes on at ")
    assert describe_pause("the disk is full", [], None) == "the disk is full; it tries again by itself"


def test_where_there_is_little_room_a_pause_is_told_in_a_few_words() -> None:
    assert describe_briefly(["power", "hours"], None) == "paused on battery"
    assert describe_briefly(["hours"], NIGHT).startswith("paused until ")
    assert describe_briefly(["rain"], None) == "paused"


def test_a_moment_has_its_day_if_that_is_not_today() -> None:
    assert format_moment(NIGHT, NOON) == "22:00"
    assert format_moment(NIGHT + 86400, NOON).endswith(" 22:00")
    assert format_moment(NIGHT + 86400, NOON) != "22:00"
