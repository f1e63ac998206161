"""Whether this machine is plugged in, as far as the system tells; psutil asks Linux, macOS and Windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import psutil

SETTLE_SECONDS = 10.0
"""How long a plug must stay as it is before it counts: one that is moved to another socket is no reason to stop."""
SECONDS_BETWEEN_LOOKS = 2.0


class Power(Protocol):
    """Where a machine's power comes from."""

    def plugged_in(self) -> bool | None:
        """Return whether it is the mains; None where there is no battery, or the system doesn't tell."""


class SystemPower:
    """What psutil reads.

    Args:
        system: psutil; a test gives another one.
    """

    def __init__(self, system: Any = psutil) -> None:
        self._system = system

    def plugged_in(self) -> bool | None:
        """Return whether the power is the mains' now."""
        try:
            battery = self._system.sensors_battery()
        except (AttributeError, NotImplementedError, OSError, RuntimeError):
            return None  # psutil has it for some systems only, and a driver may know less than it says
        plugged_in = None if battery is None else battery.power_plugged
        return None if plugged_in is None else bool(plugged_in)


class SettledPower:
    """What the plug has been at for some seconds.

    Args:
        power: what is read, every two seconds at the most.
        clock: seconds awake.
    """

    def __init__(self, power: Power, clock: Callable[[], float]) -> None:
        self._power, self._clock = power, clock
        self._looked_at = self._since = clock()
        self._seen = self._settled = power.plugged_in()

    @property
    def is_known(self) -> bool:
        """Whether there is a battery that tells."""
        return self._settled is not None

    @property
    def on_battery(self) -> bool:
        """Whether the machine has run on its battery for a while, or did when this was made."""
        now = self._clock()
        if now - self._looked_at >= SECONDS_BETWEEN_LOOKS:
            self._looked_at = now
            seen = self._power.plugged_in()
            if seen != self._seen:
                self._seen, self._since = seen, now
            if seen is not None and now - self._since >= SETTLE_SECONDS:
                self._settled = seen
        return self._settled is False
