"""Who did how much, and on which branches of the run: what two sides of a split share, and what is discarded.

A run begins with one branch. Whoever goes on from a state that others may go on from as well (a machine that lost
the hub, a hub that starts from a checkpoint) begins a branch of its own, under a random name. Along a branch
counters only grow, so they tell where on it a side left. Of branches that were given up it is kept how far they
came: what they add is worked out from that, so that it counts once, however often and by whomever it is told.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

MOST_MACHINES = 256
"""That may take part in a run, one after another."""
MOST_BRANCHES = 128
"""Of the way that led here, and of those given up."""


class Counts(NamedTuple):
    """Samples of one machine."""

    accepted: int = 0
    """Merged; each position once."""
    repeated: int = 0
    """Given to it although they had been given out before, in leases that were lost."""
    discarded: int = 0
    """Trained by it, and thrown away."""


NOTHING = Counts()
Tally = dict[str, Counts]
"""Counts by machine."""


class Branch(NamedTuple):
    """A piece of the way on which a ledger came to be."""

    name: str
    generation: int
    """How many branches were begun before it, on the same way."""
    begun: Tally
    """What was counted on this way when it began."""


class Strand(NamedTuple):
    """A branch that a losing side was on."""

    begun: Tally
    reached: Tally
    """The furthest that was heard of."""


class Reunion(NamedTuple):
    """How two sides of a split come together again."""

    first_wins: bool
    """The side with more accepted samples wins; at a draw the later generation, then the name decides."""
    accepted_at_split: int
    discarded: dict[str, int]
    """Samples by machine that the winning side will have to count as discarded."""


@dataclass
class History:
    """The counters of a run up to now, and the branches that led here."""

    branches: tuple[Branch, ...] = field(default_factory=lambda: (Branch(_new_name(), 0, {}),))
    """The first is the run's own, the last the present one."""
    counts: Tally = field(default_factory=dict)
    """What was counted on the way here."""
    given_up: dict[str, Strand] = field(default_factory=dict)
    """By name, what losing sides were on; some of it may be on the way here, too. The newest is last."""

    @property
    def branch(self) -> Branch:
        """The present one."""
        return self.branches[-1]

    @property
    def accepted(self) -> int:
        """Samples of all machines that were merged on the way here."""
        return total_of(self.counts).accepted

    def by_machine(self) -> Tally:
        """Return the counters with what losing sides add: all that they had accepted is discarded."""
        told = dict(self.counts)
        exits = dict(_exits(self))
        for name, strand in self.given_up.items():
            base = exits.get(name, strand.begun)
            for machine, more in _difference(strand.reached, base).items():
                before = told.get(machine, NOTHING)
                told[machine] = Counts(
                    before.accepted,
                    before.repeated + more.repeated,
                    before.discarded + more.discarded + more.accepted,
                )
        return told

    def count(self, machine: str, accepted: int = 0, repeated: int = 0, discarded: int = 0) -> None:
        """Add to the counters of a machine.

        Raises:
            ValueError: there would be more machines than any run has.
        """
        self.require_room_for([machine])
        before = self.counts.get(machine, NOTHING)
        self.counts[machine] = Counts(*map(sum, zip(before, (accepted, repeated, discarded), strict=True)))

    def require_room_for(self, machines: Iterable[str]) -> None:
        """See that these machines can be counted.

        Raises:
            ValueError: there would be more machines than any run has.
        """
        if len(self.counts.keys() | set(machines)) > MOST_MACHINES:
            raise ValueError(f"more than {MOST_MACHINES} machines took part in this run")

    def copy(self) -> History:
        """Return the same, to be changed apart."""
        return History(self.branches, dict(self.counts), dict(self.given_up))

    def fork(self) -> History:
        """Return the same history with a branch of its own, that begins here."""
        kept = self.branches
        if len(kept) > 1 and kept[-1].begun == self.counts:
            kept = kept[:-1]  # nothing was counted on it: whoever shares it shares as much with its parent
        given_up = dict(self.given_up)
        if len(kept) == MOST_BRANCHES:
            given_up.pop(kept[1].name, None)
            kept = (kept[0], *kept[2:])  # a split from that one will count as an earlier one
        now = Branch(_new_name(), self.branch.generation + 1, dict(self.counts))
        return History((*kept, now), dict(self.counts), given_up)

    def absorb(self, losing: History) -> None:
        """Count what the losing side did since the split.

        Raises:
            ValueError: it is another run, or the side that wins.
        """
        if not compare(self, losing).first_wins:
            raise ValueError("the other side has more accepted samples")
        self._learn(losing)

    def _learn(self, other: History) -> None:
        self.require_room_for(other.by_machine())
        exits = dict(_exits(other))
        news = {branch.name: Strand(branch.begun, exits[branch.name]) for branch in other.branches}
        for name, strand in (*other.given_up.items(), *news.items()):
            known = self.given_up.pop(name, strand)
            self.given_up[name] = Strand(known.begun, _each(max, known.reached, strand.reached))
        own_exits = dict(_exits(self))
        for name, strand in list(self.given_up.items()):
            if not _difference(strand.reached, own_exits.get(name, strand.begun)):
                del self.given_up[name]  # it adds nothing: mostly because it is on the way here
        for name in list(self.given_up)[:-MOST_BRANCHES]:
            self._close(name)

    def _close(self, name: str) -> None:
        """Forget a branch, and keep what it adds."""
        before = self.by_machine()
        del self.given_up[name]
        for machine, lost in _difference(before, self.by_machine()).items():
            self.count(machine, repeated=lost.repeated, discarded=lost.discarded)

    def faults(self) -> Iterator[str]:
        """Yield what can't be: branches out of order, or counters that shrink."""
        if self.branches[0].generation != 0 or self.branches[0].begun:
            yield "its first branch is not the run's"
        if len({branch.name for branch in self.branches}) < len(self.branches):
            yield "two branches have one name"
        for before, after in pairwise(self.branches):
            if after.generation <= before.generation:
                yield f"branch {after.name} is older than the one that it came from"
        points = [*(branch.begun for branch in self.branches), self.counts]
        for earlier, later in (*pairwise(points), *self.given_up.values()):
            if _each(max, earlier, later) != _each(max, later):
                yield "counters shrank"


def compare(first: History, second: History) -> Reunion:
    """Return which of two sides of a run wins, and what the winning one will count as discarded.

    Where one side is a mere earlier state of the other, nothing is.

    Raises:
        ValueError: they are different runs.
    """
    second_exits = dict(_exits(second))
    shared = [(exit_, second_exits[name]) for name, exit_ in _exits(first) if name in second_exits]
    if not shared:
        raise ValueError("the ledgers are of different runs")
    first_wins = _rank(first) >= _rank(second)
    winning, losing = (first, second) if first_wins else (second, first)
    learned = winning.copy()
    learned._learn(losing)
    more = _difference(learned.by_machine(), winning.by_machine())
    return Reunion(
        first_wins,
        total_of(_each(min, *shared[-1])).accepted,  # of two points on one branch the earlier one
        {machine: counts.discarded for machine, counts in more.items() if counts.discarded},
    )


def total_of(tally: Tally) -> Counts:
    """Return the counters of all machines together."""
    return Counts(*map(sum, zip(NOTHING, *tally.values(), strict=True)))


def _rank(history: History) -> tuple[int, int, str]:
    return history.accepted, history.branch.generation, history.branch.name


def _exits(history: History) -> Iterator[tuple[str, Tally]]:
    """Yield each branch's name and what was counted where the way left it; for the present one, what is counted."""
    exits = [*(branch.begun for branch in history.branches[1:]), history.counts]
    yield from zip((branch.name for branch in history.branches), exits, strict=True)


def _each(choose: Callable[..., int], *tallies: Tally) -> Tally:
    """Return what is chosen of each counter; machines of which nothing is counted are left out."""
    chosen = {}
    for machine in {machine for tally in tallies for machine in tally}:
        columns = zip(*(tally.get(machine, NOTHING) for tally in tallies), strict=True)
        chosen[machine] = Counts(*(choose(column) for column in columns))
    return {machine: counts for machine, counts in chosen.items() if counts != NOTHING}


def _difference(tally: Tally, base: Tally) -> Tally:
    """Return by how much each counter is above the base; 0 where it isn't."""
    more = {}
    for machine, counts in tally.items():
        pairs = zip(counts, base.get(machine, NOTHING), strict=True)
        more[machine] = Counts(*(max(0, one - other) for one, other in pairs))
    return {machine: counts for machine, counts in more.items() if counts != NOTHING}


def _new_name() -> str:
    return secrets.token_hex(8)
