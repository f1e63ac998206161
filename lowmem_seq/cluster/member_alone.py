"""A machine that goes on without the hub: it keeps the ledger itself, on a branch of its own (split.py).

What it trains it accepts itself, every round: its weights become its base. Where it meets the hub again, the side
with more accepted samples wins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from lowmem_seq.cluster.history import total_of
from lowmem_seq.cluster.holdings import Holdings
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.messages import Base
from lowmem_seq.cluster.positions import Lease
from lowmem_seq.cluster.ranges import Range, Ranges
from lowmem_seq.cluster.split import go_alone


class Lone:
    """The ledger of a lone machine.

    Args:
        machine: its id.
        ledger: on its own branch.
        base: the common weights from which it went on.
        touched: whether its weights are on that branch for good.
    """

    def __init__(self, machine: str, ledger: Ledger, base: Base, touched: bool = False) -> None:
        self.machine, self.ledger = machine, ledger
        self.before = base
        self._touched = touched
        self._given: list[int] = []

    @classmethod
    def of_split(
        cls,
        machine: str,
        told: Any,
        base: Base,
        machines: Iterable[str],
        holdings: Holdings,
        merged_since: Iterable[Range],
        touched: bool = False,
    ) -> Lone:
        """Return the ledger with which a machine goes on that lost the hub.

        Args:
            machine: its id.
            told: the newest ledger that the hub told, as JSON.
            base: the common weights that it has.
            machines: all that took part.
            holdings: what it holds; its leases keep their names until the hub is met again.
            merged_since: what of its work is in the weights that it has, though that ledger doesn't say so yet.
            touched: as above.

        Raises:
            ValueError: the ledger is damaged.
        """
        held = {(one.start, one.end): one.reached for one in holdings.held}
        known = Ranges()
        for start, end in held:
            known.include(start, end)
        merged = list(merged_since)
        for start, end in merged:
            held.update({gap: gap[1] for gap in known.gaps(start, end)})
        leases = [
            Lease(0, machine, start, end, reached, 0.0, 0.0) for (start, end), reached in sorted(held.items())
        ]
        ledger = go_alone(Ledger.from_json(told), machine, machines, leases)
        if merged:
            ledger.accept(machine, merged)
        return cls(machine, ledger, base, touched)

    @property
    def accepted_alone(self) -> int:
        """Samples that were accepted since it lost the hub."""
        return self.ledger.accepted - total_of(self.ledger.history.branch.begun).accepted

    def lease(self, holdings: Holdings, batch: int, samples_per_second: float, seconds: float) -> None:
        """Give this machine more to do, unless it holds enough or nothing is left."""
        self._tell_progress(holdings)
        for lease in self.ledger.lease(self.machine, batch, samples_per_second, seconds):
            holdings.give(lease.id, lease.start, lease.end)
            self._given.append(lease.start)

    def accept(self, holdings: Holdings, base: Base) -> Base:
        """Count all that was trained as merged; return the name of the weights that hold it, one round further.

        Raises:
            ValueError: the ledger does not take it.
        """
        self._touched = True
        ranges = list(holdings.unmerged)
        if not self.ledger.accept(self.machine, ranges):
            raise ValueError(f"a lone machine's own ledger refused its work on {ranges}")
        holdings.note_merged(ranges)
        return self.name_of(base.round + 1)

    def name_of(self, number: int) -> Base:
        """Return the name of the weights that this machine has, after so many rounds."""
        return Base(self.before.cluster, self.ledger.branch[0], number, self.ledger.accepted)

    def can_return(self, holdings: Holdings) -> bool:
        """Whether nothing happened on this branch yet: then the machine can go on as if it hadn't left."""
        begun = any(one.start in self._given and one.taken > one.start for one in holdings.held)
        return not (self._touched or begun)

    def give_back(self, holdings: Holdings) -> None:
        """Take out of what the machine holds what it leased to itself."""
        holdings.forget(self._given)

    def told(self, holdings: Holdings) -> dict[str, Any]:
        """Return the ledger as JSON."""
        self._tell_progress(holdings)
        return self.ledger.to_json()

    def text(self, holdings: Holdings) -> str:
        """Return the ledger as the wire has it."""
        return json.dumps(self.told(holdings), separators=(",", ":"))

    def _tell_progress(self, holdings: Holdings) -> None:
        reached = {}
        for lease in self.ledger.leases_of(self.machine):
            for one in holdings.held:
                if one.start < lease.end and lease.start < one.end:
                    reached[lease.id] = min(max(one.reached, lease.start), lease.end)
        self.ledger.heartbeat(self.machine, reached)


def name_as(holdings: Holdings, ledger: Ledger, machine: str) -> None:
    """Give what a machine holds the names that it has in a ledger."""
    for lease in ledger.leases_of(machine):
        holdings.give(lease.id, lease.start, lease.end, lease.reached)


def led_there(ledger: Ledger, branch: str) -> bool:
    """Whether a branch is among those that led to where a ledger is."""
    return any(one.name == branch for one in ledger.history.branches)
