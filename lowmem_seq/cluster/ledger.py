"""The ledger of samples: which positions of the one order are free, on lease to a machine, or accepted.

The hub keeps it. A position becomes accepted once: when a delta that contains its work is merged. What a machine
holds that is silent for too long goes back and is given out again; only that is repeated. A machine trains each of
its leases from its start on, and takes lower leases first.

Pure bookkeeping: no network, no threads (callers take turns), and time comes from a clock that is passed in. An
operation costs as much as there are live ranges and leases, however long the run is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from lowmem_seq.cluster.alone import Alone, order_alone
from lowmem_seq.cluster.history import History, total_of
from lowmem_seq.cluster.ledger_file import LARGEST_POSITION, parts_of, read_told, require_machine, told_of
from lowmem_seq.cluster.positions import Lease, Positions
from lowmem_seq.cluster.presence import Presence, require_speed
from lowmem_seq.cluster.ranges import Range, lowest
from lowmem_seq.cluster.sizing import Pace, samples_to_give
from lowmem_seq.cluster.standing import Share, Standing

SILENT_AFTER_SECONDS = 30.0
MOST_LEASES_EACH = 64
"""A machine that holds as many gets no more: nothing that it trained was merged for long.
A message has room for as many."""


class Ledger:
    """Leases of the global sample positions 0 to total - 1; a new one begins a run.

    Args:
        total: positions of the whole run.
        epoch_size: positions of an epoch.
        clock: seconds that only grow.
        silent_after_seconds: how long a machine may be silent before what it holds is lost.

    Raises:
        ValueError: a size below 1, or more positions than any run has.
    """

    def __init__(
        self,
        total: int,
        epoch_size: int,
        clock: Callable[[], float] = time.monotonic,
        silent_after_seconds: float = SILENT_AFTER_SECONDS,
    ) -> None:
        _require_sizes(total, epoch_size)
        self.epoch_size = epoch_size
        self.positions, self.history = Positions(total), History()
        self.alone: Alone | None = None
        """Whose part of each epoch comes first, after a split (split.py)."""
        self._presence = Presence(clock, silent_after_seconds)

    def __eq__(self, other: object) -> bool:
        """Whether another ledger says the same, times aside."""
        return isinstance(other, Ledger) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # it changes

    @property
    def total(self) -> int:
        """Positions of the whole run."""
        return self.positions.total

    @property
    def accepted(self) -> int:
        """Samples that are merged."""
        return self.positions.accepted.size

    @property
    def is_complete(self) -> bool:
        """Whether all is merged."""
        return self.accepted == self.total

    @property
    def leases(self) -> list[Lease]:
        """All that are live, lowest positions first."""
        return sorted(self.positions.leases.values(), key=lambda lease: lease.start)

    def leases_of(self, machine: str) -> list[Lease]:
        """Return what a machine holds, lowest positions first."""
        return self.positions.held_by(machine)

    def standing(self) -> Standing:
        """Return how far the run is, and who did what."""
        told = self.history.by_machine()
        in_flight = dict.fromkeys(told, 0)
        for lease in self.leases:
            in_flight[lease.machine] += lease.samples
        shares = {
            machine: Share(counts.accepted, in_flight[machine], counts.repeated, counts.discarded)
            for machine, counts in sorted(told.items())
        }
        totals = total_of(told)
        whole = Share(totals.accepted, sum(in_flight.values()), totals.repeated, totals.discarded)
        return Standing(self.total, self.epoch_size, whole, shares)

    @property
    def branch(self) -> tuple[str, int]:
        """Name and generation of the present branch; leases and ids mean nothing to a ledger of another one."""
        return self.history.branch.name, self.history.branch.generation

    def lease(self, machine: str, batch: int, samples_per_second: float, seconds: float) -> list[Lease]:
        """Give a machine work, so that it holds enough for about `seconds` by its measured speed (sizing.py).

        The lowest free positions are given, as one range unless they lie apart. None are given where nothing is
        free, where the machine holds enough, or where others will sooner be done with all that is left: it may ask
        again.

        Args:
            machine: its id.
            batch: samples of its optimizer steps.
            samples_per_second: as measured; 0 where that is not known yet.
            seconds: for how long it shall hold work.

        Raises:
            ValueError: an id, a batch, a speed or a time that is none; too many machines.
        """
        require_machine(machine)
        require_speed(samples_per_second)
        if not (1 <= batch <= LARGEST_POSITION and 0 < seconds < math.inf):
            raise ValueError(f"work for {seconds} s in steps of {batch} samples")
        self.history.require_room_for([machine])
        self._presence.asks(machine, batch, samples_per_second)
        self.positions.renew(machine, self._presence.until())
        paces = {
            name: Pace(size, speed, sum(lease.untrained for lease in self.leases_of(name)))
            for name, (size, speed) in self._presence.paces().items()
        }
        asking = paces.pop(machine)
        amount = samples_to_give(asking, list(paces.values()), self.positions.free.size, seconds)
        given = []
        most = MOST_LEASES_EACH - len(self.leases_of(machine))
        free, given_before = self.positions.free, self.positions.given_before
        order = order_alone(free, given_before, self.epoch_size, self.alone) if self.alone else free
        for start, end in lowest(order, amount)[:most]:
            repeated = sum(last - first for first, last in given_before.overlap(start, end))
            self.history.count(machine, repeated=repeated)
            given.append(self.grant(machine, start, end, start))
        return given

    def heartbeat(
        self, machine: str, reached: Mapping[int, int], samples_per_second: float | None = None
    ) -> list[int]:
        """Hear of a machine: all its leases are renewed.

        Args:
            machine: its id.
            reached: by lease, the first position that is not trained; what is accepted by now counts as trained.
            samples_per_second: its speed, if it was measured anew.

        Returns:
            Those of the leases that it does not hold: they are accepted, or lost, and then it may try `reclaim`.

        Raises:
            ValueError: a position behind the end of its lease, or a speed that is none.
        """
        held = {lease.id: lease for lease in self.leases_of(machine)}
        for lease_id in held.keys() & reached.keys():
            if reached[lease_id] > held[lease_id].end:
                raise ValueError(f"{machine} trained more than lease {lease_id} has")
        if samples_per_second is not None:
            require_speed(samples_per_second)
        self._presence.hear(machine, samples_per_second)
        self.positions.note_reached({lease_id: reached[lease_id] for lease_id in held.keys() & reached.keys()})
        self.positions.renew(machine, self._presence.until())
        return [lease_id for lease_id in reached if lease_id not in held]

    def takes(self, machine: str, ranges: Iterable[Range]) -> bool:
        """Whether `accept` would take a delta of this machine that contains the work on these ranges.

        It does if each position is on lease to this machine, or was lost by it and given to nobody since; and if
        what is claimed of a lease, or of a lost range, begins where that does and has no hole.

        Raises:
            ValueError: a range that is none, lies outside of the run, or overlaps another one.
        """
        return self.positions.may_accept(machine, self.positions.claim(ranges))

    def accept(self, machine: str, ranges: Iterable[Range]) -> bool:
        """Count a delta as merged, if `takes` says so; return whether it may be. Tell each delta once.

        A delta can't be divided. Where some of its work was given to another machine or accepted meanwhile, nothing
        of it is taken and the machine's work is discarded: it begins anew from the common weights.

        Raises:
            ValueError: a range that is none, lies outside of the run, or overlaps another one; too many machines.
        """
        require_machine(machine)
        claim = self.positions.claim(ranges)
        if not self.positions.may_accept(machine, claim):
            self.discard(machine, claim)
            return False
        self.history.count(machine, accepted=claim.size)
        self.positions.accept(machine, claim)
        self._presence.hear(machine)
        self.positions.renew(machine, self._presence.until())
        return True

    def discard(self, machine: str, ranges: Iterable[Range] = ()) -> int:
        """Throw away what a machine did and is not accepted: what it trained of its leases, and these ranges.

        For a delta that is refused or broken, and for a machine that begins anew. Its leases go back.

        Returns:
            How many samples' work that was, as far as it is known.

        Raises:
            ValueError: a range that is none, lies outside of the run, or overlaps another one; too many machines.
        """
        require_machine(machine)
        thrown_away = self.positions.claim(ranges)
        for lease in self.leases_of(machine):
            if lease.reached > lease.start:
                thrown_away.include(lease.start, lease.reached)
        self.history.count(machine, discarded=thrown_away.size)
        self.lose(machine)
        self.positions.lost.pop(machine, None)
        return thrown_away.size

    def lose(self, machine: str) -> list[Lease]:
        """Take back what a machine holds; return it. Until it is given to somebody, the machine may bring it in."""
        self._presence.forget(machine)
        return self.positions.release(machine)

    def keep_only(self, machine: str, known: Collection[int]) -> list[Lease]:
        """Take back the leases of a machine that it does not know of; return them.

        An answer that is lost on its way leaves such a lease: each word of the machine would renew it, and it would
        never be trained.
        """
        unknown = [lease for lease in self.leases_of(machine) if lease.id not in known]
        for lease in unknown:
            self.positions.take_back(lease.id)
        return unknown

    def expire(self) -> list[Lease]:
        """Take back what machines hold that were silent for too long; return it.

        A hub that was frozen itself must first hear what is waiting for it: it wasn't the others who were silent.
        """
        now = self._presence.clock()
        silent = [lease.machine for lease in self.leases if lease.until <= now] + self._presence.silent()
        return [lease for machine in dict.fromkeys(silent) for lease in self.lose(machine)]

    def reclaim(self, machine: str, start: int, end: int) -> Lease | None:
        """Lease again what this machine lost, for it to go on with; None if some of that was given to somebody.

        A machine whose weights contain work on what it can't have back has all its work refused, sooner or later.
        """
        lost = self.positions.lost.get(machine)
        if lost is None or not lost.covers(start, end) or len(self.leases_of(machine)) >= MOST_LEASES_EACH:
            return None
        return self.grant(machine, start, end, start)

    def extend(self, total: int) -> None:
        """Make the run longer.

        Raises:
            ValueError: it would not be longer than before, or be longer than any run.
        """
        _require_sizes(total, self.epoch_size)
        self.positions.extend(total)

    def copy(self) -> Ledger:
        """Return the same ledger, to be changed apart; no machine was heard of."""
        other = Ledger(self.total, self.epoch_size, self._presence.clock, self._presence.silent_after_seconds)
        other.positions, other.history, other.alone = self.positions.copy(), self.history.copy(), self.alone
        return other

    def to_json(self) -> dict[str, Any]:
        """The ledger as a file holds it, without times."""
        return told_of(self.epoch_size, self.positions, self.history, self.alone)

    @classmethod
    def from_json(
        cls,
        value: Any,
        clock: Callable[[], float] = time.monotonic,
        silent_after_seconds: float = SILENT_AFTER_SECONDS,
    ) -> Ledger:
        """Return the ledger that a file holds; all leases are renewed now, and no machine was heard of.

        Raises:
            ValueError: it is of another format version, damaged, or no ledger can be so.
        """
        told = read_told(value)
        ledger = cls(told.total, told.epoch_size, clock, silent_after_seconds)
        since, until = clock(), ledger._presence.until()
        ledger.positions, ledger.history, ledger.alone = parts_of(told, since, until)
        faults = ledger.faults()
        if faults:
            raise ValueError(f"the ledger is damaged: {faults[0]}")
        return ledger

    def faults(self) -> list[str]:
        """Return what can't be, in words: positions in no place or in two, counters that don't agree."""
        faults = [*self.positions.faults(), *self.history.faults()]
        if self.history.accepted != self.accepted:
            faults.append(f"{self.history.accepted} samples are counted as accepted, {self.accepted} are")
        known = self.history.counts.keys()
        faults += [f"{lease.machine} is not counted" for lease in self.leases if lease.machine not in known]
        return faults

    def grant(self, machine: str, start: int, end: int, reached: int) -> Lease:
        """Lease these free positions, whoever had them before.

        Raises:
            ValueError: one of them is not free, or there would be too many machines.
        """
        self.history.count(machine)
        since, until = self._presence.clock(), self._presence.until()
        return self.positions.grant(machine, start, end, reached, since, until)


def _require_sizes(total: int, epoch_size: int) -> None:
    if not (1 <= total <= LARGEST_POSITION and 1 <= epoch_size <= LARGEST_POSITION):
        raise ValueError(f"{total} positions in epochs of {epoch_size} are no run")
