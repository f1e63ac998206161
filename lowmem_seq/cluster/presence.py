"""Which machines are there, and how fast they are: those that asked for work, and were heard of lately."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Machine:
    batch: int
    samples_per_second: float
    until: float


class Presence:
    """The machines that ask for work.

    Args:
        clock: seconds that only grow.
        silent_after_seconds: how long one may be silent.
    """

    def __init__(self, clock: Callable[[], float], silent_after_seconds: float) -> None:
        self.clock, self.silent_after_seconds = clock, silent_after_seconds
        self._machines: dict[str, _Machine] = {}

    def until(self) -> float:
        """Return until when a machine may be silent that is heard of now."""
        return self.clock() + self.silent_after_seconds

    def asks(self, machine: str, batch: int, samples_per_second: float) -> None:
        """Note that a machine asks for work."""
        self._machines[machine] = _Machine(batch, samples_per_second, self.until())

    def hear(self, machine: str, samples_per_second: float | None = None) -> None:
        """Note that a machine was heard of, and its speed, if it was measured anew."""
        if machine in self._machines:
            self._machines[machine].until = self.until()
            if samples_per_second is not None:
                self._machines[machine].samples_per_second = samples_per_second

    def forget(self, machine: str) -> None:
        """Note that a machine is gone."""
        self._machines.pop(machine, None)

    def silent(self) -> list[str]:
        """Return the machines that were silent for too long."""
        now = self.clock()
        return [name for name, machine in self._machines.items() if machine.until <= now]

    def paces(self) -> dict[str, tuple[int, float]]:
        """Return the batch and the samples/s of each machine; 0 where the speed is not known."""
        return {name: (one.batch, one.samples_per_second) for name, one in self._machines.items()}


def require_speed(samples_per_second: float) -> None:
    """See that this is a speed.

    Raises:
        ValueError: it is negative, not finite, or no number.
    """
    if not 0 <= samples_per_second < math.inf:
        raise ValueError(f"{samples_per_second} samples/s")
