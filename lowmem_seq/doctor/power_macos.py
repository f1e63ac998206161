"""macOS: what `pmset` says of sleep and of heat (pmset(1))."""

from __future__ import annotations

import re

from lowmem_seq.doctor.power import Ask, Heat, Sleep


class MacPower:
    """macOS' figures.

    Args:
        ask: has a program of the system answer.
    """

    stay_awake = "caffeinate -i lowmem-seq train small"
    full_speed = "plug it in; System Settings, Battery: Low Power Mode off; let it cool down"

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def sleep(self) -> Sleep:
        """See Power. `sleep` is in minutes, for each source of power; closing a lid is no setting there."""
        minutes: dict[str, int] = {}
        source = ""
        for line in self._ask(["pmset", "-g", "custom"]).splitlines():
            if line.rstrip().endswith("Power:"):
                source = line.partition(" ")[0]
            elif found := re.match(r"\s+sleep\s+(\d+)", line):
                minutes[source] = int(found[1])
        plugged, battery = (minutes.get(name) for name in ("AC", "Battery"))
        return Sleep(_seconds(plugged), _seconds(battery), True if battery is not None else None)

    def heat(self) -> Heat:
        """See Power. Where nothing was slowed down since the start, pmset says so in words."""
        told = self._ask(["pmset", "-g", "therm"])
        limit = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", told)
        if limit:
            return Heat(speed_share=int(limit[1]) / 100)
        return Heat(speed_share=1.0) if "No " in told else Heat()


def _seconds(minutes: int | None) -> int | None:
    return None if minutes is None else 60 * minutes
