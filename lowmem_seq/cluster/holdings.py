"""The samples that a machine holds: leased to it, taken for a step, trained, and not merged yet.

Pure bookkeeping on the machine's side; the ledger at the hub decides. A machine trains each of its leases from its
start on, and lower ones first.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass

from lowmem_seq.cluster.messages import Progress
from lowmem_seq.cluster.ranges import Range, Ranges

MOST_TOLD = 64
"""Leases that a beat has room for."""


@dataclass
class Held:
    """A lease, and how far it is trained."""

    lease: int
    start: int
    end: int
    reached: int
    """The first position that is not trained."""
    taken: int
    """The first position that no step was made of yet."""


class Holdings:
    """What a machine holds."""

    def __init__(self) -> None:
        self._held: list[Held] = []
        self.unmerged = Ranges()
        """Trained, and not known to be in the common weights."""

    @property
    def held(self) -> tuple[Held, ...]:
        """All leases of which something is not merged, lowest positions first."""
        return tuple(self._held)

    @property
    def untaken(self) -> int:
        """Samples that may still be taken."""
        return sum(one.end - one.taken for one in self._held)

    @property
    def untrained(self) -> int:
        """Samples that are not trained, those included that were taken."""
        return sum(one.end - one.reached for one in self._held)

    def give(self, lease: int, start: int, end: int, reached: int | None = None) -> None:
        """Add a lease; or give what is held already the new name that the hub has for it."""
        for one in self._held:
            if start < one.end and one.start < end:
                one.lease, one.start = lease, max(one.start, start)
                return
        at = start if reached is None else reached
        insort(self._held, Held(lease, start, end, at, at), key=lambda one: one.start)

    def take(self, samples: int) -> list[Range]:
        """Return the next positions to train, together at most so many."""
        taken = []
        for one in self._held:
            size = min(samples, one.end - one.taken)
            if size > 0:
                taken.append((one.taken, one.taken + size))
                one.taken += size
                samples -= size
        return taken

    def note_trained(self, ranges: Iterable[Range]) -> int:
        """Note what a step was made of; return how many samples of it this machine still holds."""
        samples = 0
        for start, end in ranges:
            for one in self._held:
                if one.reached == start and end <= one.taken:
                    one.reached = end
                    self.unmerged.add(start, end)
                    samples += end - start
        return samples

    def note_merged(self, ranges: Iterable[Range]) -> None:
        """Note what is in the common weights now."""
        for start, end in ranges:
            self.unmerged.discard(start, end)
        self._held = [
            one for one in self._held if one.reached < one.end or self.unmerged.overlap(one.start, one.end)
        ]

    def forget(self, starts: Iterable[int]) -> None:
        """Hold the leases no more that begin there."""
        gone = set(starts)
        self._held = [one for one in self._held if one.start not in gone]

    def progress(self) -> tuple[Progress, ...]:
        """Return how far each lease is trained, from its start on; those that are not done go first."""
        by_need = sorted(self._held, key=lambda one: one.reached == one.end)
        return tuple(Progress(one.lease, one.reached - one.start) for one in by_need[:MOST_TOLD])

    def clear(self) -> None:
        """Hold nothing any more: the work on it was dropped, or is no longer wanted."""
        self._held.clear()
        self.unmerged = Ranges()
