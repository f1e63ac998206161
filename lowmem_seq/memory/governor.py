"""What to do about memory between two micro-batches: nothing, compute smaller, larger again, or start anew.

The governor looks at this process and at the machine, and advises; the training loop acts. It never changes the
experiment: smaller micro-batches and recomputed layers give the same steps. The bound that the system enforces
(limit.py) is for what comes up faster than this.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from lowmem_seq.memory.leak import LeakWatch
from lowmem_seq.memory.limit import Limit, data_limit_bytes
from lowmem_seq.memory.readings import MachineMemory, MemoryReader, peak_so_far
from lowmem_seq.units import format_bytes

NEAR_CAP = 0.965
"""Share of what the trainer may hold from which memory is given back: above the 0.95 that plans aim at, and below
the system's limit, which must never be met (limit.py: 0.985 at the least)."""
GROWTH = 1.01
"""What an allocator keeps after a change to something smaller is not held against it; what grows past this is."""
ENOUGH = 2
"""Times that, beside what it takes to grow, must be left before the run grows again."""
PRESSED = 0.10
"""Share of the last ten seconds in which tasks of the machine waited for memory (Linux PSI)."""
SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_TO_TAKE_EFFECT = 1.0
"""After a change the machine's figures are not acted upon for so long: memory given back shows with a delay."""
CALM_SECONDS = 30.0
LONGEST_CALM_SECONDS = 1800.0
"""How long all must have been well before the run grows; doubled each time that growing was too much."""


@dataclass(frozen=True)
class Advice:
    """What the training should do before its next micro-batch."""

    what: Literal["shrink", "grow", "restart"]
    cause: str


class Governor:
    """Watches one training process; `look` may be called by any of its threads, between micro-batches.

    Args:
        reader: this system's figures.
        pid: the process that computes.
        room_bytes: what it may hold: the cap, less what the other processes of the run hold.
        clock: seconds; a test gives another one.
        limit: what the system enforces on it, if anything; moved along when the setting changes.
        tell_peak: hears of a peak that is about to be set back, for nobody can read it afterwards.
        release: has caches given back; by default those of this process's allocator.
    """

    def __init__(
        self,
        reader: MemoryReader,
        pid: int,
        room_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        limit: Limit | None = None,
        tell_peak: Callable[[int], None] = lambda _peak_bytes: None,
        release: Callable[[], object] | None = None,
    ) -> None:
        self._reader, self._pid, self._room_bytes, self._clock = reader, pid, room_bytes, clock
        self._limit, self._tell_peak, self._release = limit, tell_peak, release or reader.release
        self._mutex = threading.Lock()
        self._leak = LeakWatch(room_bytes, clock)
        self._tolerated_bytes = self._old_peak_bytes = 0
        self._tried_releasing = False
        self._swapped_out_bytes: int | None = None
        self._looked_at = self._changed_at = self._calm_since = clock()
        self._calm_seconds = CALM_SECONDS
        self._grew = False

    def look(self, larger_bytes: int | None) -> Advice | None:
        """Return what to do now; it costs some 20 us, and the machine is looked at four times a second.

        Args:
            larger_bytes: what the next larger setting holds at its peak; None where there is no larger one.
        """
        with self._mutex:
            return self._look_at_self() or self._look_at_machine(larger_bytes)

    def _look_at_self(self) -> Advice | None:
        """See whether this process came near the cap, also within a micro-batch; caches are given back first."""
        held = self.peak_bytes
        if held <= max(NEAR_CAP * self._room_bytes, GROWTH * self._tolerated_bytes):
            return None
        if not self._tried_releasing:
            self._tried_releasing = True
            self._release()
            self._forget_peak()
            return None
        figures = f"{format_bytes(held)} of {format_bytes(self._room_bytes)}"
        if self._leak.noticed is not None:
            return Advice("restart", f"{self._leak.noticed}, and the trainer came to {figures}")
        return Advice("shrink", f"the trainer came to {figures} under the cap")

    def _look_at_machine(self, larger_bytes: int | None) -> Advice | None:
        now = self._clock()
        if now - self._looked_at < SECONDS_BETWEEN_LOOKS or now - self._changed_at < SECONDS_TO_TAKE_EFFECT:
            return None
        self._looked_at = now
        machine = self._as_at_the_peak(self._reader.machine())
        shortage = self._shortage(machine)
        if shortage is not None:
            self._calm_since = now
            return Advice("shrink", shortage)
        if larger_bytes is None or now - self._calm_since < self._calm_seconds:
            return None
        more = max(0, larger_bytes - self.peak_bytes)
        if (
            larger_bytes > NEAR_CAP * self._room_bytes
            or machine.available_bytes < ENOUGH * machine.short_bytes + more
        ):
            return None
        return Advice("grow", f"memory was calm for {now - self._calm_since:.0f} s")

    def _as_at_the_peak(self, machine: MachineMemory) -> MachineMemory:
        """Return the machine's memory as it is while this process holds most.

        A look comes between micro-batches, when little is held: for Small at 128 images the memory that was left
        swung between 152 and 331 MB within a step.
        """
        more = max(0, self.peak_bytes - self._reader.held_bytes(self._pid))
        return replace(machine, available_bytes=max(0, machine.available_bytes - more))

    def _shortage(self, machine: MachineMemory) -> str | None:
        """Return why the machine needs memory back, or None."""
        before, self._swapped_out_bytes = self._swapped_out_bytes, machine.swapped_out_bytes
        left = f"{format_bytes(machine.available_bytes)} are left on this machine"
        if machine.is_short:
            return f"only {left}"
        if machine.available_bytes >= ENOUGH * machine.short_bytes:
            return None  # what is swapped then, or waits, is nothing that this run could mend
        if before is not None and machine.swapped_out_bytes is not None and machine.swapped_out_bytes > before:
            return f"the machine has begun to swap, and {left}"
        if machine.pressure is not None and machine.pressure > PRESSED:
            return f"tasks of the machine wait for memory {machine.pressure:.0%} of the time, and {left}"
        return None

    def changed(self, advice: Advice, has_changed: bool = True) -> None:
        """Hear that the advice was taken, or, without `has_changed`, that there is nothing smaller to change to."""
        with self._mutex:
            if advice.what == "shrink" and self._grew and self._clock() - self._changed_at < self._calm_seconds:
                self._calm_seconds = min(2 * self._calm_seconds, LONGEST_CALM_SECONDS)
            self._grew = advice.what == "grow"
            self._release()
            self._forget_peak()
            self._changed_at = self._calm_since = self._clock()
            self._tolerated_bytes = self._reader.held_bytes(self._pid) if advice.what == "shrink" else 0
            self._tried_releasing = False
            self._leak.start_anew()
            if has_changed:
                self._move_limit()

    def _move_limit(self) -> None:
        """Set the bound on the data segment from what it is now.

        An allocator gives pages back and keeps their addresses, which count all the same; other sizes need other
        addresses. Without this a run that had become smaller met its limit with 440 of 960 MB resident.
        """
        data = self._reader.data_bytes(self._pid)
        if self._limit is not None and data is not None:
            self._limit.set(data_limit_bytes(data, self._reader.held_bytes(self._pid), self._room_bytes))

    def step_ended(self, steps_left: int) -> str | None:
        """Hear that a step is done; return words about a leak, once, if one is noticed."""
        with self._mutex:
            return self._leak.step_ended(self._reader.held_bytes(self._pid), steps_left)

    @property
    def peak_bytes(self) -> int:
        """The most that this process held since its setting changed or its caches were given back."""
        held, peak = self._reader.held_bytes(self._pid), self._reader.peak_bytes(self._pid) or 0
        return max(held, peak if peak > self._old_peak_bytes else 0)

    def _forget_peak(self) -> None:
        """Begin a new peak; where the system keeps one for good, only a higher one counts from now on."""
        self._tell_peak(peak_so_far(self._reader, self._pid))
        self._old_peak_bytes = 0 if self._reader.reset_peak() else self._reader.peak_bytes(self._pid) or 0


class SilentGovernor(Governor):
    """Advises nothing: for what must be computed as it was told, to be measured or to be compared."""

    def look(self, larger_bytes: int | None) -> Advice | None:
        """Return nothing to do, whatever the next larger setting holds."""
        del larger_bytes
        return None
