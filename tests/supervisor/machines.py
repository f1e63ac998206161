"""A laptop whose plug, lid and clocks a test moves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

NOON = datetime(2026, 11, 23, 12)


class FakeMachine:
    """Its power, its wakefulness and its clocks in one; nothing takes time but what the test lets pass."""

    def __init__(self) -> None:
        self.plugged: bool | None = True
        self.seconds = self.slept_seconds = 0.0
        self.local_time = NOON
        self.means: str | None = "a fake"
        """What keeps it awake; None: nothing can."""
        self.is_held = False
        self._later: list[tuple[float, Callable[[], object]]] = []

    def plugged_in(self) -> bool | None:
        return self.plugged

    def hold(self) -> str | None:
        self.is_held = self.means is not None
        return self.means

    def let_go(self) -> None:
        self.is_held = False

    def clock(self) -> float:
        return self.seconds

    def slept(self) -> float:
        return self.slept_seconds

    def now(self) -> datetime:
        return self.local_time

    def plug(self, plugged: bool | None) -> None:
        self.plugged = plugged

    def at(self, seconds: float, act: Callable[[], object]) -> None:
        """Let something happen when it has been awake for so long."""
        self._later.append((seconds, act))

    def go_on(self, seconds: float) -> None:
        """Let time pass, awake."""
        self.seconds += seconds
        self.local_time += timedelta(seconds=seconds)
        due, self._later = (
            [act for at, act in self._later if at <= self.seconds],
            [(at, act) for at, act in self._later if at > self.seconds],
        )
        for act in due:
            act()

    def sleep(self, seconds: float) -> None:
        """Close the lid for so long."""
        self.slept_seconds += seconds
        self.local_time += timedelta(seconds=seconds)
