"""When a checkpoint is due."""

from __future__ import annotations

from lowmem_seq.runs.clocks import awake_seconds
from lowmem_seq.runs.save_interval import LARGEST_SHARE, SHORTEST_SECONDS, seconds_between_saves
from lowmem_seq.units import Interval

FIRST_COST_SECONDS = 1.0
"""What a save is taken to cost before the first one was measured."""


class SavingClock:
    """Counts steps and seconds since the last save; for `auto` see save_interval.py."""

    def __init__(self, interval: Interval) -> None:
        self._interval = interval
        self._seconds = interval.amount if interval.kind == "seconds" else 2 * SHORTEST_SECONDS
        self._saved_at = awake_seconds()
        self._step = 0
        self._cost_seconds = FIRST_COST_SECONDS

    def is_due(self, step: int) -> bool:
        """Whether to save after `step` steps; asked after each of them, once."""
        if self._interval.kind == "steps":
            every, before = int(self._interval.amount), self._step
            self._step = step
            return step // every > before // every  # where others do steps as well, a multiple may be passed over
        return awake_seconds() - self._saved_at >= self._seconds

    def is_affordable(self) -> bool:
        """Whether one save more, out of turn, stays under 1 % of the time since the last one."""
        return awake_seconds() - self._saved_at >= self._cost_seconds / LARGEST_SHARE

    def take_up(self, step: int) -> None:
        """Count on from a checkpoint."""
        self._step = step

    def saved(self, cost_seconds: float) -> None:
        """Note a save, and what it cost."""
        self._saved_at = awake_seconds()
        self._cost_seconds = cost_seconds
        if self._interval.kind == "auto":
            self._seconds = seconds_between_saves(cost_seconds)
