"""Everything that can happen to ledgers, in any order, beside a model that keeps each position by itself."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lowmem_seq.cluster.history import Counts
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.positions import Lease
from lowmem_seq.cluster.ranges import Range, Ranges
from lowmem_seq.cluster.split import absorb, compare, fork, go_alone
from tests.cluster.clocks import Clock

MACHINES = ("a", "b", "c")
SILENT = 10.0
MOST_SIDES = 4

machines = st.sampled_from(MACHINES)
sides = st.integers(0, MOST_SIDES - 1)
some_ranges = st.lists(st.tuples(st.integers(-1, 45), st.integers(0, 12)), max_size=3)


@dataclass
class Model:
    """A side of the run, position by position."""

    places: list[str]
    """`free`, `accepted`, or the machine that holds it."""
    given_before: set[int] = field(default_factory=set)
    lost: dict[str, set[int]] = field(default_factory=lambda: {machine: set() for machine in MACHINES})
    way: set[int] = field(default_factory=set)
    """What was counted on the way here, by number."""
    heard: set[int] = field(default_factory=set)
    """What losing sides counted."""

    def at(self, place: str) -> set[int]:
        return {position for position, now in enumerate(self.places) if now == place}

    def put(self, positions: set[int], place: str) -> None:
        for position in positions:
            self.places[position] = place
        if place != "free":
            self.given_before -= positions
            for lost in self.lost.values():
                lost -= positions

    def release(self, machine: str) -> None:
        held = self.at(machine)
        self.put(held, "free")
        self.given_before |= held
        self.lost[machine] |= held


@dataclass(eq=False)
class Side:
    ledger: Ledger
    model: Model


def positions_of(ranges: list[Range]) -> set[int]:
    return {position for start, end in ranges for position in range(start, end)}


def held_ranges(leases: list[Lease]) -> list[Range]:
    return [(lease.start, lease.end) for lease in leases]


class Ledgers(RuleBasedStateMachine):
    @initialize(total=st.integers(1, 40), epoch_size=st.integers(1, 45))
    def begin(self, total: int, epoch_size: int) -> None:
        self.clock = Clock()
        self.sides = [Side(Ledger(total, epoch_size, self.clock, SILENT), Model(["free"] * total))]
        self.counted: dict[int, tuple[str, Counts]] = {}
        self.numbers = count()

    def side(self, number: int) -> Side:
        return self.sides[number % len(self.sides)]

    def note(self, model: Model, machine: str, counts: Counts) -> None:
        number = next(self.numbers)
        self.counted[number] = (machine, counts)
        model.way.add(number)

    @rule(
        number=sides,
        machine=machines,
        batch=st.integers(1, 6),
        speed=st.sampled_from([0.0, 0.1, 2.0, 9.0]),
        seconds=st.sampled_from([0.5, 3.0, 20.0]),
    )
    def lease(self, number: int, machine: str, batch: int, speed: float, seconds: float) -> None:
        side = self.side(number)
        ledger, model = side.ledger, side.model
        given = positions_of(held_ranges(ledger.lease(machine, batch, speed, seconds)))
        free = model.at("free")
        assert given <= free
        if ledger.alone is None:
            assert given == set(sorted(free)[: len(given)])
        assert len(given) % batch == 0 or given == free
        if not given:
            others = [one for one in MACHINES if one != machine and ledger.leases_of(one)]
            assert not free or ledger.leases_of(machine) or others or self.somebody_else_is_present(ledger, machine)
        self.note(model, machine, Counts(repeated=len(given & model.given_before)))
        model.put(given, machine)

    def somebody_else_is_present(self, ledger: Ledger, machine: str) -> bool:
        return bool(ledger._presence.paces().keys() - {machine})

    @rule(number=sides, machine=machines, share=st.floats(0, 1))
    def heartbeat(self, number: int, machine: str, share: float) -> None:
        ledger = self.side(number).ledger
        held = ledger.leases_of(machine)
        told = {lease.id: lease.start + int(share * lease.samples) for lease in held}
        assert ledger.heartbeat(machine, {**told, 10**6: 3}) == [10**6]
        assert {lease.id: lease.reached for lease in ledger.leases_of(machine)} == told

    @rule(number=sides, machine=machines, share=st.floats(0, 1))
    def bring_in(self, number: int, machine: str, share: float) -> None:
        side = self.side(number)
        held = side.ledger.leases_of(machine)
        claim = [(lease.start, lease.start + int(share * lease.samples)) for lease in held]
        self.accept(side, machine, [one for one in claim if one[0] < one[1]])

    @rule(number=sides, machine=machines, share=st.floats(0, 1))
    def bring_in_what_was_lost(self, number: int, machine: str, share: float) -> None:
        side = self.side(number)
        lost = list(side.ledger.positions.lost.get(machine, ()))
        claim = [(start, start + int(share * (end - start))) for start, end in lost]
        self.accept(side, machine, [one for one in claim if one[0] < one[1]])

    def accept(self, side: Side, machine: str, claim: list[Range]) -> None:
        assert side.ledger.accept(machine, claim)
        claimed = positions_of(claim)
        assert not claimed & side.model.at("accepted")
        self.note(side.model, machine, Counts(accepted=len(claimed)))
        side.model.put(claimed, "accepted")

    @rule(number=sides, machine=machines, ranges=some_ranges)
    def claim_anything(self, number: int, machine: str, ranges: list[tuple[int, int]]) -> None:
        side = self.side(number)
        ledger, model = side.ledger, side.model
        claim = [(start, start + samples) for start, samples in ranges]
        claimed = positions_of(claim)
        if sum(samples for _, samples in ranges) > len(claimed) or any(
            start < 0 or not samples or start + samples > ledger.total for start, samples in ranges
        ):
            with pytest.raises(ValueError, match=r"range|outside|already"):
                ledger.accept(machine, claim)
            return
        own = held_ranges(ledger.leases_of(machine)) + list(ledger.positions.lost.get(machine, ()))
        begun = all(
            positions_of([one]) & claimed == set(range(one[0], one[0] + len(positions_of([one]) & claimed)))
            for one in own
        )
        if begun and claimed <= model.at(machine) | model.lost[machine]:
            assert ledger.takes(machine, claim)
            self.accept(side, machine, claim)
        else:
            assert not ledger.takes(machine, claim)
            self.refuse(side, machine, claim)

    def refuse(self, side: Side, machine: str, claim: list[Range]) -> None:
        trained = [(lease.start, lease.reached) for lease in side.ledger.leases_of(machine)]
        assert not side.ledger.accept(machine, claim)
        self.note(side.model, machine, Counts(discarded=len(positions_of(claim) | positions_of(trained))))
        side.model.release(machine)
        side.model.lost[machine].clear()

    @rule(number=sides, machine=machines)
    def lose(self, number: int, machine: str) -> None:
        side = self.side(number)
        held = side.ledger.leases_of(machine)
        assert side.ledger.lose(machine) == held
        side.model.release(machine)

    @rule(seconds=st.sampled_from([1.0, 4.0, SILENT]))
    def expire(self, seconds: float) -> None:
        self.clock.go_on(seconds)
        for side in self.sides:
            expected = [lease for lease in side.ledger.leases if lease.until <= self.clock.now]
            lost = side.ledger.expire()
            assert sorted(lease.id for lease in lost) == sorted(lease.id for lease in expected)
            for lease in lost:
                side.model.release(lease.machine)

    @rule(number=sides, machine=machines, start=st.integers(0, 45), samples=st.integers(1, 20))
    def reclaim(self, number: int, machine: str, start: int, samples: int) -> None:
        side = self.side(number)
        wanted = set(range(start, start + samples))
        lease = side.ledger.reclaim(machine, start, start + samples)
        assert (lease is not None) == (wanted <= side.model.lost[machine])
        if lease is not None:
            side.model.put(wanted, machine)

    @rule(number=sides)
    def save_and_restore(self, number: int) -> None:
        side = self.side(number)
        side.ledger = Ledger.from_json(json.loads(json.dumps(side.ledger.to_json())), self.clock, SILENT)

    @rule(number=sides, more=st.integers(1, 3))
    def extend(self, number: int, more: int) -> None:
        side = self.side(number)
        if side.ledger.total + more <= 45:
            side.ledger.extend(side.ledger.total + more)
            side.model.places += ["free"] * more

    @precondition(lambda self: len(self.sides) < MOST_SIDES)
    @rule(number=sides)
    def fork(self, number: int) -> None:
        side = self.side(number)
        self.sides.append(Side(fork(side.ledger), copy.deepcopy(side.model)))

    @precondition(lambda self: len(self.sides) < MOST_SIDES)
    @rule(number=sides, machine=machines)
    def go_alone(self, number: int, machine: str) -> None:
        side = self.side(number)
        model = copy.deepcopy(side.model)
        for other in set(MACHINES) - {machine}:
            model.release(other)
        self.sides.append(Side(go_alone(side.ledger, machine, MACHINES), model))

    @precondition(lambda self: len(self.sides) > 1)
    @rule(number=sides, other=sides, hears_of_it=st.booleans())
    def meet(self, number: int, other: int, hears_of_it: bool) -> None:
        first, second = self.side(number), self.side(other)
        if first is second:
            return
        reunion = compare(first.ledger, second.ledger)
        winning, losing = (first, second) if reunion.first_wins else (second, first)
        assert winning.ledger.accepted >= losing.ledger.accepted
        before = {one: counts.discarded for one, counts in self.expected(winning.model).items()}
        winning.model.heard |= losing.model.way | losing.model.heard
        absorb(winning.ledger, losing.ledger)
        after = {one: counts.discarded for one, counts in self.expected(winning.model).items()}
        assert reunion.discarded == {one: after[one] - before[one] for one in MACHINES if after[one] > before[one]}
        if hears_of_it:
            self.sides.remove(losing)

    def expected(self, model: Model) -> dict[str, Counts]:
        told = dict.fromkeys(MACHINES, Counts())
        for number in model.way | model.heard:
            machine, more = self.counted[number]
            on_the_way = number in model.way
            told[machine] = Counts(
                told[machine].accepted + (more.accepted if on_the_way else 0),
                told[machine].repeated + more.repeated,
                told[machine].discarded + more.discarded + (0 if on_the_way else more.accepted),
            )
        return told

    @invariant()
    def nothing_is_wrong(self) -> None:
        for side in self.sides:
            ledger, model = side.ledger, side.model
            assert ledger.faults() == []
            assert positions_of(list(ledger.positions.free)) == model.at("free")
            assert positions_of(list(ledger.positions.accepted)) == model.at("accepted")
            assert positions_of(list(ledger.positions.given_before)) == model.given_before
            for machine in MACHINES:
                assert positions_of(held_ranges(ledger.leases_of(machine))) == model.at(machine)
                assert positions_of(list(ledger.positions.lost.get(machine, ()))) == model.lost[machine]
            assert Ledger.from_json(json.loads(json.dumps(ledger.to_json())), self.clock, SILENT) == ledger
            self.counters_agree(ledger, model)

    def counters_agree(self, ledger: Ledger, model: Model) -> None:
        standing = ledger.standing()
        expected = {machine: counts for machine, counts in self.expected(model).items() if counts != Counts()}
        told = {
            machine: Counts(share.accepted, share.repeated, share.discarded)
            for machine, share in standing.by_machine.items()
        }
        assert {machine: counts for machine, counts in told.items() if counts != Counts()} == expected
        for machine, share in standing.by_machine.items():
            assert share.in_flight == len(model.at(machine))
        everything = standing.all_machines
        assert everything.accepted == len(model.at("accepted"))
        assert everything.in_flight == ledger.total - len(model.at("accepted")) - len(model.at("free"))
        assert standing.remaining == ledger.total - everything.accepted
        assert standing.is_complete == ledger.is_complete == (everything.accepted == ledger.total)

    def teardown(self) -> None:
        """Any run ends, whatever happened before, if somebody trains: with each round some are accepted."""
        for side in getattr(self, "sides", []):
            while not side.ledger.is_complete:
                before = side.ledger.accepted
                for machine in MACHINES:
                    self.accept(side, machine, held_ranges(side.ledger.leases_of(machine)))
                for machine in MACHINES:
                    given = held_ranges(side.ledger.lease(machine, 4, {"a": 0.1, "b": 2.0, "c": 9.0}[machine], 3.0))
                    side.model.put(positions_of(given), machine)
                    self.accept(side, machine, given)
                assert side.ledger.accepted > before
            assert side.model.at("accepted") == set(range(side.ledger.total))
            assert list(side.ledger.positions.accepted) == list(Ranges([(0, side.ledger.total)]))


Ledgers.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLedgers = Ledgers.TestCase
