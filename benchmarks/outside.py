"""What a run holds, seen from outside: the RSS of its whole process tree, summed every few milliseconds.

Nothing in the run knows of this. Each process is counted by its resident pages, so pages that two of them share
count twice, as in the promise. What the sampler can't see lies between two of its looks, therefore it measures the
intervals that it really reached.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lowmem_seq.memory.cgroups import read_bytes
from lowmem_seq.memory.readings import MemoryReader, system_reader

PERIOD_SECONDS = 0.0025
LONGEST_SECONDS = 0.005
"""The interval that the promise names."""
MOST_EXCESSES = 50
ROLES = (
    (b'"only": {', "probe that measures past the cap"),
    (b"lowmem_seq.training.probe", "probe"),
    (b"lowmem_seq.training", "trainer"),
    (b"lowmem_seq.data", "packer"),
)
PAST_THE_CAP = ROLES[0][1]
"""Nothing fits, and this process finds out which cap would do: that can't be done within the one given."""


@dataclass
class Excess:
    """A time during which each look found more than the cap."""

    at_unix_seconds: float
    seconds: float
    """From its first look to its last one; 0 for a single look."""
    samples: int
    highest_bytes: int
    held: dict[str, int]
    """By process, at the highest look."""
    on_purpose: bool
    """Whether a process was there that measures past the cap, since nothing fits under it."""


@dataclass
class Samples:
    """What was seen."""

    count: int = 0
    above: int = 0
    """Looks at which the tree held more than the cap."""
    above_on_purpose: int = 0
    """Others, not in `above`: at them a process measured past the cap, to name one that would do."""
    highest_bytes: int = 0
    """The highest sum; looks past the cap on purpose apart."""
    highest_held: dict[str, int] = field(default_factory=dict)
    """By process, at that look."""
    highest_beside_bytes: int = 0
    """The most of the figure that was read beside the tree; looks past the cap on purpose apart."""
    beside_above: int = 0
    """Looks at which that figure was above the cap."""
    interval_median_seconds: float = 0.0
    interval_longest_seconds: float = 0.0
    late: int = 0
    """Intervals longer than the promise names."""
    late_seconds: float = 0.0
    """Their sum: the part of the time that was looked at less closely."""
    excesses: list[Excess] = field(default_factory=list)
    """The first of them."""


class Sampler:
    """Looks at a process tree, in a thread of its own, for as long as the block runs.

    Args:
        root_pid: the process at its top.
        cap_bytes: what the tree may hold.
        beside: another figure that must not pass the cap, read at each look; a control group's anonymous memory.
        reader: this system's figures.
        clock: seconds; a test gives another one.
        period_seconds: from one look to the next, where the machine allows it.
    """

    def __init__(
        self,
        root_pid: int,
        cap_bytes: int,
        beside: Callable[[], int] | None = None,
        reader: MemoryReader | None = None,
        clock: Callable[[], float] = time.monotonic,
        period_seconds: float = PERIOD_SECONDS,
    ) -> None:
        self._root_pid, self._cap_bytes, self._beside, self._clock = root_pid, cap_bytes, beside, clock
        self._reader = reader or system_reader()
        self._period_seconds = period_seconds
        self._others: set[int] = set()
        self._roles: dict[int, str] = {}
        self._intervals = array("d")
        self._looked_at: float | None = None
        self._excess: Excess | None = None
        self._excess_began = 0.0
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._seen = Samples()

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._failure is not None:
            raise RuntimeError("the sampler failed") from self._failure

    def _run(self) -> None:
        _go_first()
        try:
            while not self._ended.is_set():
                began = time.monotonic()
                self.look()
                time.sleep(max(0.0005, self._period_seconds - (time.monotonic() - began)))
        except Exception as failure:
            self._failure = failure

    def look(self) -> None:
        """Take one sample."""
        now = self._clock()
        if self._looked_at is not None:
            self._intervals.append(now - self._looked_at)
        self._looked_at = now
        self._others.update(self._reader.descendants(self._root_pid))
        held = {pid: self._reader.held_bytes(pid) for pid in (self._root_pid, *self._others)}
        self._others = {pid for pid in self._others if held[pid]}
        total, seen = sum(held.values()), self._seen
        seen.count += 1
        if total <= self._cap_bytes:
            self._excess = None
        if total > min(self._cap_bytes, seen.highest_bytes):
            self._look_closer(now, total, held)
        if self._beside is not None:
            beside = self._beside()
            if beside <= self._cap_bytes or not self._is_on_purpose():
                seen.highest_beside_bytes = max(seen.highest_beside_bytes, beside)
                seen.beside_above += beside > self._cap_bytes

    def _look_closer(self, now: float, total: int, held: dict[int, int]) -> None:
        """Note a sum that is above the cap, or the highest so far."""
        named = {f"{self._role(pid)} ({pid})": size for pid, size in held.items() if size}
        on_purpose, seen = self._is_on_purpose(), self._seen
        if total > seen.highest_bytes and not on_purpose:
            seen.highest_bytes, seen.highest_held = total, named
        if total <= self._cap_bytes:
            return
        seen.above += not on_purpose
        seen.above_on_purpose += on_purpose
        if self._excess is None:
            self._excess = Excess(time.time(), 0.0, 0, 0, {}, on_purpose)
            self._excess_began = now
            if len(seen.excesses) < MOST_EXCESSES:
                seen.excesses.append(self._excess)
        self._excess.samples += 1
        self._excess.seconds = now - self._excess_began
        if total > self._excess.highest_bytes:
            self._excess.highest_bytes, self._excess.held = total, named

    def _is_on_purpose(self) -> bool:
        return any(self._role(pid) == PAST_THE_CAP for pid in self._others)

    def _role(self, pid: int) -> str:
        """Return what a process does; one that was only just forked still has its parent's command line."""
        if pid == self._root_pid:
            return "supervisor"
        if pid not in self._roles:
            words = read_bytes(Path("/proc", str(pid), "cmdline")) or b""
            role = next((role for mark, role in ROLES if mark in words), None)
            if role is None:
                return words.split(b"\0")[0].decode(errors="replace") or "another"
            self._roles[pid] = role
        return self._roles[pid]

    def seen(self) -> Samples:
        """Return what was seen so far."""
        late = [interval for interval in self._intervals if interval > LONGEST_SECONDS]
        if self._intervals:
            self._seen.interval_median_seconds = statistics.median(self._intervals)
            self._seen.interval_longest_seconds = max(self._intervals)
        self._seen.late, self._seen.late_seconds = len(late), sum(late)
        return self._seen


def _go_first() -> None:
    """Have the thread that calls wait for no other one, where that is allowed (root, Linux).

    At the common priority the longest interval beside two busy workers was 61 ms.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_FIFO, os.sched_param(1))
