"""The machines at the hub: who is there, in what state, and which leases each has.

A machine is lost when nothing was heard of it for a while, or when it says that it trains and gets no further: its
program may hang while the thread that talks goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.messages import Beat, Hello, Lease, Peer, Range, State
from lowmem_seq.cluster.positions import Lease as Held

HANGS_AFTER_SECONDS = 60.0
HANGS_AFTER_STEPS = 5.0
"""The same in optimizer steps, at the speed that the machine has told; the longer of the two counts."""


@dataclass
class Machine:
    """One that said hello and was not refused."""

    hello: Hello
    heard_at: float
    state: State = "joining"
    samples_per_second: float = 0.0
    present: bool = True
    """Heard of lately, and getting on."""
    settled: bool = False
    """Whether what it trains is a change of common weights of this hub's branch."""
    leases: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Where each lease that it was given began and ended then; it counts from there, also when a part is merged."""
    renamed: dict[int, int] = field(default_factory=dict)
    """The lease that took the place of one, by id: the machine goes on with what it lost, and knows the old one."""
    returned: bool = False
    """Whether it came back with what it had, and has not told yet which leases it knows of."""
    dropped: bool = False
    """Whether it was given up, and must begin anew."""
    progress: object = None
    progressed_at: float = 0.0

    @property
    def can_train(self) -> bool:
        """Whether it may be given work."""
        return self.settled and self.hello.data is not None


class Roster:
    """All machines that said hello.

    Args:
        clock: seconds that only grow.
        lost_after_seconds: how long one may be silent.
    """

    def __init__(self, clock: Callable[[], float], lost_after_seconds: float) -> None:
        self._clock, self._lost_after_seconds = clock, lost_after_seconds
        self.machines: dict[str, Machine] = {}

    def greet(self, hello: Hello) -> Machine:
        """Note a machine that says hello; of one that was known its leases are kept."""
        now = self._clock()
        before = self.machines.get(hello.machine)
        machine = Machine(hello, now, samples_per_second=hello.samples_per_second, progressed_at=now)
        if before is not None:
            machine.leases, machine.renamed, machine.dropped = before.leases, before.renamed, before.dropped
        self.machines[hello.machine] = machine
        return machine

    def give(self, machine: str, lease: Held) -> None:
        """Note a lease that a machine is given, and forget those that ended long ago."""
        held = self.machines[machine].leases
        held[lease.id] = (lease.start, lease.end)
        while len(held) > 256:
            del held[next(iter(held))]

    def lease(self, name: str, ledger: Ledger, seconds: float) -> tuple[Lease, ...]:
        """Give a machine about so many seconds of work, if there is some; return what it is told."""
        machine = self.machines[name]
        given = ledger.lease(name, machine.hello.effective_batch, machine.samples_per_second, seconds)
        for lease in given:
            self.give(name, lease)
        return tuple(Lease(lease.id, Range(lease.start, lease.end), self._lost_after_seconds) for lease in given)

    def reclaim(self, name: str, ledger: Ledger) -> None:
        """Give a machine back what it lost and nobody else was given: it trains on with that."""
        machine = self.machines[name]
        for lease_id, (start, end) in list(machine.leases.items()):
            lost = ledger.positions.lost.get(name)
            for first, last in lost.overlap(start, end) if lost is not None else ():
                lease = ledger.reclaim(name, first, last)
                if lease is not None:
                    machine.renamed[lease_id] = lease.id

    def beat(self, name: str, beat: Beat, ledger: Ledger) -> None:
        """Hear that a machine lives, and how far it is in its leases."""
        machine = self.machines[name]
        machine.state, machine.samples_per_second = beat.state, beat.samples_per_second
        told = (beat.state, beat.round, beat.leases)
        if told != machine.progress or beat.state != "training" or not beat.leases:
            machine.progress, machine.progressed_at = told, self._clock()
        reached = _reached(machine, beat)
        if machine.returned:
            machine.returned = False
            ledger.keep_only(name, reached.keys())  # an answer may have been lost with the connection
        ends = {lease.id: lease.end for lease in ledger.leases_of(name)}
        held = {one: min(position, ends[one]) for one, position in reached.items() if one in ends}
        ledger.heartbeat(name, held, machine.samples_per_second)

    def is_well(self, name: str) -> bool:
        """Whether a machine was heard of lately, and gets on."""
        machine, now = self.machines[name], self._clock()
        step_seconds = (
            machine.hello.effective_batch / machine.samples_per_second if machine.samples_per_second else 0
        )
        patience = max(HANGS_AFTER_SECONDS, HANGS_AFTER_STEPS * step_seconds)
        hangs = machine.state == "training" and now - machine.progressed_at >= patience
        return now - machine.heard_at < self._lost_after_seconds and not hangs

    def excuse(self, seconds: float) -> None:
        """Note that the hub itself stood still for so long: nobody was silent meanwhile."""
        for machine in self.machines.values():
            machine.heard_at += seconds
            machine.progressed_at += seconds

    def present(self) -> Mapping[str, Machine]:
        """Return the machines that are there."""
        return {name: one for name, one in self.machines.items() if one.present}

    def peers(self, ledger: Ledger) -> tuple[Peer, ...]:
        """Return the machines that are there, as the others may know them."""
        counts = ledger.history.counts
        return tuple(
            Peer(
                name,
                one.hello.name,
                one.hello.device,
                one.hello.precision,
                one.hello.effective_batch,
                one.samples_per_second,
                counts[name].accepted if name in counts else 0,
                one.state,
            )
            for name, one in sorted(self.present().items())
        )


def _reached(machine: Machine, beat: Beat) -> dict[int, int]:
    """Return, by lease, the first position that a machine has not trained."""
    reached = {}
    for one in beat.leases:
        if one.lease in machine.leases:
            start, end = machine.leases[one.lease]
            reached[machine.renamed.get(one.lease, one.lease)] = min(start + one.done, end)
    return reached
