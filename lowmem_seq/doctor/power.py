"""What a laptop does to a long run: it falls asleep, runs on its battery, and slows down when it gets hot.

Each system tells that in its own way, in a module of its own behind `Power`. They ask programs that come with the
system (pmset, powercfg, systemd, gsettings), each for three seconds at the most; what can't be asked is not known.
Written from the manuals of those programs; this project's tests give them recorded answers, and have not run on
macOS or Windows.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import psutil

from lowmem_seq.doctor.finding import Finding, note, well
from lowmem_seq.supervisor.awake import Wakefulness, why_not
from lowmem_seq.units import format_seconds

Ask = Callable[[Sequence[str]], str]
SECONDS_TO_ANSWER = 3.0
SLOWED_SHARE = 0.9
"""Below this share of its full speed the processor is held back."""


@dataclass(frozen=True)
class Sleep:
    """After how many idle seconds the machine falls asleep by itself; 0: never, None: not known."""

    plugged_in_seconds: int | None = None
    on_battery_seconds: int | None = None
    lid_sleeps: bool | None = None
    """Whether closing the lid puts it to sleep, plugged in as it is; None: not known, or it has none."""


@dataclass(frozen=True)
class Heat:
    """How the processor is held back; None: not known."""

    throttled_count: int | None = None
    """How often it slowed itself down since the machine started."""
    speed_share: float | None = None
    """Which share of its full speed it may take now."""


@dataclass(frozen=True)
class Battery:
    """The battery's state."""

    percent: float
    plugged_in: bool | None


class Power(Protocol):
    """What one system tells."""

    @property
    def stay_awake(self) -> str:
        """What to type so that the machine stays awake for a run."""

    @property
    def full_speed(self) -> str:
        """What to do where the system holds the processor back."""

    def sleep(self) -> Sleep:
        """Return when the machine falls asleep."""

    def heat(self) -> Heat:
        """Return how the processor is held back."""


def check_sleep(power: Power, wakefulness: Wakefulness) -> Iterator[Finding]:
    """Say when the machine falls asleep by itself, and whether a run can keep it from that.

    Args:
        power: this system's.
        wakefulness: what keeps the machine awake for a run; it is tried for a moment.
    """
    sleep = power.sleep()
    told = {"plugged in": sleep.plugged_in_seconds, "on battery": sleep.on_battery_seconds}
    known = {when: seconds for when, seconds in told.items() if seconds is not None}
    soon = [f"after {format_seconds(seconds)} {when}" for when, seconds in known.items() if seconds]
    if soon:
        idle = f"the machine falls asleep when nobody types, {' and '.join(soon)}"
        kept_by = wakefulness.hold()
        wakefulness.let_go()
        if kept_by is not None:
            yield well("sleep", f"{idle}; a run that trains keeps it awake ({kept_by})", **asdict(sleep))
        else:
            told_why = f"{idle}; a run can't keep it awake ({why_not()}), and stands still meanwhile"
            yield note("sleep", told_why, power.stay_awake, **asdict(sleep))
    elif known:
        yield well("sleep", "the machine stays awake when nobody types", **asdict(sleep))
    else:
        yield well("sleep", "this system does not say when it falls asleep", **asdict(sleep))
    if sleep.lid_sleeps:
        told_of_lid = "closing the lid puts the machine to sleep; a run goes on when it is opened again"
        yield well("lid", told_of_lid, lid_sleeps=True)


def check_battery(battery: Battery | None) -> Iterator[Finding]:
    """Say whether the machine runs on its battery."""
    if battery is None:
        yield well("battery", "none, or the system does not tell of one", percent=None, plugged_in=None)
    elif battery.plugged_in is False:
        yield note(
            "battery",
            f"on battery, {battery.percent:.0f}% left: most laptops compute slower, and a run empties it soon",
            "plug it in; a run that was cut off goes on with lowmem-seq resume RUN_DIR",
            **asdict(battery),
        )
    else:
        yield well("battery", f"plugged in, {battery.percent:.0f}%", **asdict(battery))


def check_heat(power: Power, before: Heat) -> Iterator[Finding]:
    """Say whether the processor is held back, or was while this program let it compute.

    Args:
        power: this system's.
        before: what it told when the program began.
    """
    now = power.heat()
    figures = asdict(now)
    if now.speed_share is not None and now.speed_share < SLOWED_SHARE:
        told = f"the system lets the processor take {now.speed_share:.0%} of its full speed"
        yield note("heat", told, power.full_speed, **figures)
    elif (now.throttled_count or 0) > (before.throttled_count or 0):
        count = (now.throttled_count or 0) - (before.throttled_count or 0)
        yield note(
            "heat",
            f"the processor slowed itself down {count:,} times within these few seconds: it is too hot",
            "let air under the machine, and clean its fan",
            **figures,
        )
    elif now.throttled_count is None and now.speed_share is None:
        yield well("heat", "this system does not say whether it slows the processor down", **figures)
    else:
        since = f"; {now.throttled_count:,} times since the start" if now.throttled_count else ""
        yield well("heat", f"the processor is not slowed down now{since}", **figures)


def read_battery() -> Battery | None:
    """Return the battery's state; None where there is none, or the system tells nothing."""
    sensors = getattr(psutil, "sensors_battery", None)
    told = None if sensors is None else sensors()
    return None if told is None else Battery(float(told.percent), told.power_plugged)


def ask(words: Sequence[str]) -> str:
    """Return what a program of the system says; nothing where there is none, or it fails."""
    try:
        ended = subprocess.run(
            list(words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS_TO_ANSWER,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return ended.stdout if ended.returncode == 0 else ""


def system_power(platform: str = sys.platform) -> Power:
    """Return what tells of power on this system."""
    if platform == "darwin":
        from lowmem_seq.doctor.power_macos import MacPower

        return MacPower(ask)
    if platform == "win32":
        from lowmem_seq.doctor.power_windows import WindowsPower

        return WindowsPower(ask)
    from lowmem_seq.doctor.power_linux import LinuxPower

    return LinuxPower(ask)
