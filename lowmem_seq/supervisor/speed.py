"""Slow-down that nobody asked for: a machine that computes clearly slower than it did, with nothing changed.

Laptops that get hot lower their clock after minutes, some do on battery, and other programs take cores. A run can't
mend it, but whoever looks at it should know, and the time that is left changes with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

RECENT_RATES = 5
"""Rates whose median is the present speed: one that a burst of other work spoilt is passed over."""
SLOW, RECOVERED = 0.7, 0.85
"""Share of the best speed below which it is slow, and from which it is well again."""
PATIENCE_SECONDS = 300.0
"""How long it must be slow: five minutes are heat, and less is a browser that starts."""


@dataclass(frozen=True)
class Change:
    """What is to be told."""

    slowed: bool
    """Or else recovered."""
    images_per_second: float
    best_images_per_second: float
    seconds: float
    """How long it has been slow."""


class SpeedWatch:
    """Hears the rates of one setting, and says when they have been low for long, and when no more.

    Args:
        clock: seconds awake.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.start_anew()

    def start_anew(self) -> None:
        """Forget what was: another trainer, or another setting, has a speed of its own."""
        self._rates: deque[float] = deque(maxlen=RECENT_RATES)
        self._best = 0.0
        self._slow_since: float | None = None
        self.is_told = False
        """Whether it was said to be slow, and not yet to have recovered."""

    def hear(self, images_per_second: float, memory_is_short: bool) -> Change | None:
        """Take in the newest rate; return what changed, if anything is to be told.

        Args:
            images_per_second: of the steps since the rate before, evaluations and saves left out.
            memory_is_short: then that is why it is slow, and the run says and does something about it anyway.
        """
        self._rates.append(images_per_second)
        if len(self._rates) < RECENT_RATES:
            return None
        now, speed = self._clock(), sorted(self._rates)[RECENT_RATES // 2]
        self._best = max(self._best, speed)
        since = self._slow_since
        if speed >= RECOVERED * self._best or (memory_is_short and not self.is_told):
            self._slow_since = None
            if self.is_told and since is not None:
                self.is_told = False
                return Change(False, speed, self._best, now - since)
            return None
        if since is None:
            if speed < SLOW * self._best:
                self._slow_since = now
            return None
        if not self.is_told and speed >= SLOW * self._best:
            self._slow_since = None
        elif not self.is_told and now - since >= PATIENCE_SECONDS:
            self.is_told = True
            return Change(True, speed, self._best, now - since)
        return None
