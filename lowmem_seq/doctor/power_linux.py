"""Linux: GNOME's settings, systemd's own (logind.conf), and what the kernel tells of the processor in /sys.

Other desktops (KDE, Xfce) keep their settings elsewhere: there it is not known when they have the machine sleep.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from lowmem_seq.doctor.power import Ask, Heat, Sleep
from lowmem_seq.memory.cgroups import read_bytes

OF_GNOME = ("GNOME", "Unity", "Budgie")
"""Desktops that follow GNOME's settings, as XDG_CURRENT_DESKTOP names them."""
GNOME = "org.gnome.settings-daemon.plugins.power"
SUSPENDS = ("suspend", "hibernate", "hybrid-sleep", "suspend-then-hibernate", "sleep")
SECOND_UNITS = {"": 1, "s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "hr": 3600}
USUAL_IDLE_SECONDS = 1800
"""systemd's own IdleActionSec."""


class LinuxPower:
    """Linux' figures.

    Args:
        ask: has a program of the system answer.
        sys: where the kernel's /sys lies.
        desktop: what runs, as XDG_CURRENT_DESKTOP names it; empty for none, or for a login from elsewhere.
    """

    stay_awake = "systemd-inhibit --what=idle:sleep lowmem-seq train small"
    full_speed = "powerprofilesctl set performance   or the desktop's power settings; plug the machine in"

    def __init__(self, ask: Ask, sys: Path = Path("/sys"), desktop: str | None = None) -> None:
        self._ask = ask
        self._desktop = os.environ.get("XDG_CURRENT_DESKTOP", "") if desktop is None else desktop
        self._processors = sys / "devices" / "system" / "cpu"

    def sleep(self) -> Sleep:
        """See Power. What is masked can't happen, whatever the settings say."""
        lid = self._lid_sleeps()
        if self._ask(["systemctl", "show", "--property=LoadState", "--value", "sleep.target"]).strip() == "masked":
            return Sleep(0, 0, None if lid is None else False)
        idle = self._idle_seconds()
        if self._desktop and not any(name in self._desktop for name in OF_GNOME):
            return Sleep(idle or None, idle or None, lid)
        plugged, battery = (self._gnome_seconds(source) for source in ("ac", "battery"))
        return Sleep(_sooner(plugged, idle), _sooner(battery, idle), lid)

    def heat(self) -> Heat:
        """See Power."""
        counts = [self._number(name) for name in self._files("thermal_throttle/package_throttle_count")] or [
            self._number(name) for name in self._files("thermal_throttle/core_throttle_count")
        ]
        known = [count for count in counts if count is not None]
        shares = [share for share in map(self._share, self._files("cpufreq/scaling_max_freq")) if share is not None]
        return Heat(max(known, default=None), min(shares, default=None))

    def _gnome_seconds(self, source: str) -> int | None:
        kind = self._ask(["gsettings", "get", GNOME, f"sleep-inactive-{source}-type"]).strip().strip("'")
        if not kind:
            return None
        seconds = self._ask(["gsettings", "get", GNOME, f"sleep-inactive-{source}-timeout"]).strip()
        return int(seconds) if kind in SUSPENDS and seconds.isdigit() else 0

    def _idle_seconds(self) -> int | None:
        settings = self._logind()
        action = settings.get("IdleAction")
        if action is None:
            return 0 if settings else None
        if action not in SUSPENDS:
            return 0
        return _seconds(settings.get("IdleActionSec", "")) or USUAL_IDLE_SECONDS

    def _lid_sleeps(self) -> bool | None:
        if not any(self._processors.parents[2].glob("bus/acpi/devices/PNP0C0D:*")):  # the lid's switch
            return None
        settings = self._logind()
        wanted = settings.get("HandleLidSwitch", "suspend")
        return settings.get("HandleLidSwitchExternalPower", wanted) in SUSPENDS

    def _logind(self) -> dict[str, str]:
        """Return logind.conf with all that is laid over it; systemd's own default lines are comments."""
        told = self._ask(["systemd-analyze", "cat-config", "systemd/logind.conf"])
        found = dict(re.findall(r"^(\w+)=(.*)$", told, re.MULTILINE))
        return {"": "", **found} if told else {}

    def _files(self, name: str) -> list[Path]:
        return sorted(self._processors.glob(f"cpu[0-9]*/{name}"))

    @staticmethod
    def _number(path: Path) -> int | None:
        text = (read_bytes(path) or b"").strip()
        return int(text) if text.isdigit() else None

    def _share(self, path: Path) -> float | None:
        allowed, full = self._number(path), self._number(path.with_name("cpuinfo_max_freq"))
        return allowed / full if allowed and full else None


def _sooner(one: int | None, other: int | None) -> int | None:
    """Return the shorter of two times, where 0 stands for never, and None for not known."""
    known = [seconds for seconds in (one, other) if seconds is not None]
    return min((seconds for seconds in known if seconds), default=0) if known else None


def _seconds(text: str) -> int | None:
    found = re.fullmatch(r"(\d+)\s*([a-z]*)", text.strip())
    return int(found[1]) * SECOND_UNITS[found[2]] if found and found[2] in SECOND_UNITS else None
