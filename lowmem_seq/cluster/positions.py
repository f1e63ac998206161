"""Where each position of a run stands: free, on lease to a machine, or accepted; in exactly one of these.

Of the free ones it is known which were given out before, and which machine may still bring in work on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lowmem_seq.cluster.ranges import Range, Ranges


@dataclass(frozen=True)
class Lease:
    """A range that a machine trains, or has trained and not yet brought in. Times are of the ledger's clock."""

    id: int
    machine: str
    start: int
    """The first position that is not accepted; it moves when a part is."""
    end: int
    reached: int
    """The first position that is not trained, as far as the machine told."""
    since: float
    until: float
    """When it is lost, if its machine is not heard of before."""

    @property
    def state(self) -> Literal["out", "done"]:
        """`done` is trained as a whole, its delta on the way. What is accepted or lost is no lease any more."""
        return "done" if self.reached == self.end else "out"

    @property
    def samples(self) -> int:
        """How many positions it holds."""
        return self.end - self.start

    @property
    def untrained(self) -> int:
        """How many of them are not trained."""
        return self.end - self.reached


class Positions:
    """The positions 0 to total - 1, free at first."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.free, self.accepted = Ranges([(0, total)]), Ranges()
        self.given_before = Ranges()
        """Of the free ones."""
        self.lost: dict[str, Ranges] = {}
        """Of those given before, by the machine that may still bring them in."""
        self.leases: dict[int, Lease] = {}
        self.next_lease = 0

    def copy(self) -> Positions:
        """Return the same, to be changed apart."""
        other = Positions(self.total)
        other.free, other.accepted = self.free.copy(), self.accepted.copy()
        other.given_before = self.given_before.copy()
        other.lost = {machine: ranges.copy() for machine, ranges in self.lost.items()}
        other.leases, other.next_lease = dict(self.leases), self.next_lease
        return other

    def held_by(self, machine: str) -> list[Lease]:
        """Return a machine's leases, lowest positions first."""
        held = [lease for lease in self.leases.values() if lease.machine == machine]
        return sorted(held, key=lambda lease: lease.start)

    def extend(self, total: int) -> None:
        """Add free positions at the end.

        Raises:
            ValueError: there would not be more than before.
        """
        self.free.add(self.total, total)
        self.total = total

    def grant(self, machine: str, start: int, end: int, reached: int, since: float, until: float) -> Lease:
        """Lease free positions.

        Raises:
            ValueError: one of them is not free.
        """
        self._take(start, end)
        lease = Lease(self.next_lease, machine, start, end, reached, since, until)
        self.leases[lease.id] = lease
        self.next_lease += 1
        return lease

    def release(self, machine: str) -> list[Lease]:
        """Take back what a machine holds; until it is given to another, the machine may bring it in."""
        held = self.held_by(machine)
        for lease in held:
            del self.leases[lease.id]
            self.free.add(lease.start, lease.end)
            self.given_before.add(lease.start, lease.end)
            self.lost.setdefault(machine, Ranges()).add(lease.start, lease.end)
        return held

    def take_back(self, lease_id: int) -> None:
        """Free what is left of a lease; its machine has done nothing of it and knows nothing of it."""
        lease = self.leases.pop(lease_id)
        self.free.add(lease.start, lease.end)
        self.given_before.add(lease.start, lease.end)

    def renew(self, machine: str, until: float) -> None:
        """Let a machine's leases live until then."""
        for lease in self.held_by(machine):
            self.leases[lease.id] = replace(lease, until=until)

    def note_reached(self, reached: Mapping[int, int]) -> None:
        """Note for leases, by id, the first position that is not trained; what is accepted counts as trained."""
        for lease_id, position in reached.items():
            lease = self.leases[lease_id]
            self.leases[lease_id] = replace(lease, reached=max(lease.start, position))

    def claim(self, ranges: Iterable[Range]) -> Ranges:
        """Return the set of positions that a machine claims to have trained.

        Raises:
            ValueError: a range is none, lies outside of the run, or overlaps another one.
        """
        claim = Ranges(ranges)
        for start, end in claim:
            if start < 0 or end > self.total:
                raise ValueError(f"{start} to {end} lies outside of the run")
        return claim

    def may_accept(self, machine: str, claim: Ranges) -> bool:
        """Whether each of these positions is on lease to the machine, or was lost by it and given to nobody since.

        What is claimed of a lease, or of a lost range, must begin where that does, and have no hole.
        """
        rest = claim.copy()
        for start, end in (*((one.start, one.end) for one in self.held_by(machine)), *self.lost.get(machine, ())):
            trained = rest.overlap(start, end)
            if trained and (len(trained) > 1 or trained[0][0] != start):
                return False
            rest.discard(start, end)
        return not rest.size

    def accept(self, machine: str, claim: Ranges) -> None:
        """Accept what `may_accept` allows."""
        rest = claim.copy()
        for lease in self.held_by(machine):
            for start, end in rest.overlap(lease.start, lease.end):
                rest.remove(start, end)
                self.leases[lease.id] = replace(lease, start=end, reached=max(end, lease.reached))
                if end == lease.end:
                    del self.leases[lease.id]
        for start, end in rest:
            self._take(start, end)
        for start, end in claim:
            self.accepted.add(start, end)

    def _take(self, start: int, end: int) -> None:
        """Take positions out of the free ones; nobody else can bring them in any more."""
        self.free.remove(start, end)
        self.given_before.discard(start, end)
        for machine, ranges in list(self.lost.items()):
            ranges.discard(start, end)
            if not ranges.size:
                del self.lost[machine]

    def faults(self) -> Iterator[str]:
        """Yield what can't be: a position that is nowhere or in two places, or marks on what is not free."""
        leases = self.leases.values()
        pieces = sorted([*self.free, *self.accepted, *((lease.start, lease.end) for lease in leases)])
        borders = zip([0, *(end for _, end in pieces)], [*(start for start, _ in pieces), self.total], strict=True)
        for end, start in borders:
            if end != start:
                yield f"positions between {end} and {start} are in {'no' if end < start else 'more than one'} place"
        for lease in leases:
            if not lease.start <= lease.reached <= lease.end or lease.start == lease.end:
                yield f"lease {lease.id} of {lease.start} to {lease.end} has come to {lease.reached}"
        if any(lease_id >= self.next_lease or lease_id != lease.id for lease_id, lease in self.leases.items()):
            yield "a lease has an id that was not given yet"
        yield from _outside("given before", self.given_before, self.free)
        claimed = Ranges()
        for machine, ranges in self.lost.items():
            yield from _outside(f"lost by {machine}", ranges, self.given_before)
            if any(claimed.overlap(*one) for one in ranges):
                yield f"{machine} and another machine lost the same positions"
            for one in ranges:
                claimed.include(*one)


def _outside(what: str, inner: Ranges, outer: Iterable[Range]) -> Iterator[str]:
    whole = Ranges(outer)
    for start, end in inner:
        if not whole.covers(start, end):
            yield f"{start} to {end}, {what}, is not free"
