"""What becomes of a ledger when machines lose each other, and when they find each other again.

Everyone who goes on has a branch of its own then. On reunion the side with more accepted samples wins; the other
one takes its ledger and its weights, and what that one had accepted since the split is counted as discarded.
"""

from __future__ import annotations

from collections.abc import Iterable

from lowmem_seq.cluster import history
from lowmem_seq.cluster.alone import Alone
from lowmem_seq.cluster.history import Reunion
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.ledger_file import require_machine
from lowmem_seq.cluster.positions import Lease


def fork(ledger: Ledger) -> Ledger:
    """Return the same ledger on a branch of its own: for a hub that goes on from a checkpoint."""
    other = ledger.copy()
    other.history = ledger.history.fork()
    return other


def go_alone(ledger: Ledger, machine: str, machines: Iterable[str], held: Iterable[Lease] | None = None) -> Ledger:
    """Return the ledger, on a branch of its own, with which a machine goes on that lost the hub.

    The machine keeps what it holds, under new leases, and whatever else was out is free again. By `lease` it then
    gets, epoch by epoch, first its own part, which is nobody else's that goes on alone (alone.py), then the rest.

    Args:
        ledger: as of the last round that the machine heard of.
        machine: the one that goes on.
        machines: all that took part at last, the same for all of them.
        held: what it holds, if that is not what the ledger says: leases may have been given after the round.

    Raises:
        ValueError: an id that is none, or too many machines.
    """
    names = sorted({machine, *machines})
    for name in names:
        require_machine(name)
    own = ledger.leases_of(machine) if held is None else list(held)
    other = fork(ledger)
    other.alone = Alone(machine, tuple(names))
    for one in dict.fromkeys(lease.machine for lease in ledger.leases):
        other.lose(one)
    for lease in own:
        for start, end in other.positions.free.overlap(lease.start, lease.end):
            other.grant(machine, start, end, max(start, min(lease.reached, end)))
    return other


def compare(first: Ledger, second: Ledger) -> Reunion:
    """Return which of two ledgers of a run wins where they meet, and what will be discarded.

    Where one is a mere earlier state of the other, nothing is.

    Raises:
        ValueError: they are of different runs.
    """
    if first.epoch_size != second.epoch_size:
        raise ValueError(f"epochs of {first.epoch_size} and of {second.epoch_size} samples are of different runs")
    return history.compare(first.history, second.history)


def absorb(winning: Ledger, losing: Ledger) -> None:
    """Count in the winning ledger what the losing side did since the split: what that had accepted, as discarded.

    It does no harm to hear the same again, or from several machines. The losing side takes the winning ledger.

    Raises:
        ValueError: they are of different runs, the losing one would win, or there would be too many machines.
    """
    compare(winning, losing)
    winning.history.absorb(losing.history)
    winning.alone = None
