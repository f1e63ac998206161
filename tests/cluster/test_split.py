from __future__ import annotations

import pytest

from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.ranges import Range, Ranges
from lowmem_seq.cluster.split import absorb, compare, fork, go_alone
from tests.cluster.clocks import Clock

EPOCH = 4800
MACHINES = ("a", "b", "c")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(clock: Clock) -> Ledger:
    """Three machines hold 100 samples each, of which the first 50 are accepted; what follows is free."""
    ledger = Ledger(10 * EPOCH, EPOCH, clock, 10.0)
    for machine in MACHINES:
        ledger.lease(machine, 10, 10.0, 10.0)
    ledger.accept("a", [(0, 50)])
    return ledger


def train(ledger: Ledger, machine: str, samples: int) -> list[Range]:
    """Lease, train and bring in about so many samples; return their ranges."""
    given = ledger.lease(machine, 10, float(samples), 1.0)
    ranges = [(lease.start, lease.end) for lease in given]
    assert ledger.accept(machine, ranges)
    return ranges


def test_a_fork_goes_on_apart_with_the_same_leases(hub: Ledger) -> None:
    other = fork(hub)
    assert other.leases == hub.leases
    assert other.branch != hub.branch
    assert other.branch[1] == 1
    other.accept("b", [(100, 200)])
    assert (hub.accepted, other.accepted) == (50, 150)
    assert hub.faults() == other.faults() == []


def test_a_lone_machine_keeps_its_leases_and_others_lose_theirs(hub: Ledger) -> None:
    hub.heartbeat("b", {1: 130})
    alone = go_alone(hub, "b", MACHINES)
    (lease,) = alone.leases
    assert (lease.machine, lease.start, lease.reached, lease.end) == ("b", 100, 130, 200)
    assert list(alone.positions.given_before) == [(50, 100), (200, 300)]
    assert alone.accept("b", [(100, 200)])
    assert alone.standing().by_machine["b"].repeated == 0
    assert len(hub.leases) == 3
    assert alone.faults() == []


def test_a_lone_machine_keeps_what_it_was_given_after_the_round_that_it_knows(hub: Ledger) -> None:
    known = Ledger.from_json(hub.to_json(), hub._presence.clock)
    hub.heartbeat("b", {1: 200})
    hub.lease("b", 10, 10.0, 10.0)
    alone = go_alone(known, "b", MACHINES, held=hub.leases_of("b"))
    assert [(lease.start, lease.reached, lease.end) for lease in alone.leases] == [(100, 200, 200), (300, 300, 400)]
    assert alone.faults() == []


def test_lone_machines_train_apart_until_their_parts_of_the_epoch_are_done(hub: Ledger) -> None:
    done = {}
    for machine in MACHINES:
        alone = go_alone(hub, machine, reversed(MACHINES))
        (lease,) = alone.leases
        alone.accept(machine, [(lease.start, lease.end)])
        ranges = [(lease.start, lease.end)]
        while sum(end - start for start, end in ranges) < 1400:
            ranges += train(alone, machine, 100)
        done[machine] = ranges
    apart = Ranges([*done["a"], *done["b"], *done["c"]])  # which refuses what overlaps
    assert apart.size >= 4200
    assert max(end for _, end in apart) <= EPOCH


def test_a_lone_machine_ends_the_epoch_and_the_run(hub: Ledger) -> None:
    alone = go_alone(hub, "c", MACHINES)
    alone.accept("c", [(200, 300)])
    before = 0
    while not alone.is_complete:
        train(alone, "c", 1000)
        starts = [start for start, _ in alone.positions.free]
        if starts:
            assert alone.accepted - before <= 1000 + 150
            assert alone.accepted > starts[0] // EPOCH * EPOCH
            assert alone.accepted <= starts[0] // EPOCH * EPOCH + EPOCH + 1000  # an epoch after the other
        before = alone.accepted
    assert alone.standing().by_machine["c"].repeated == 150  # what the others held at the split
    assert alone.faults() == []


def test_the_others_may_join_a_lone_machine_and_bring_in_what_they_hold(hub: Ledger) -> None:
    alone = go_alone(hub, "b", MACHINES)
    assert alone.accept("c", [(200, 260)])
    assert alone.standing().by_machine["c"].accepted == 60
    assert alone.faults() == []


def test_on_reunion_the_ledger_of_the_winning_side_stays(hub: Ledger) -> None:
    alone = go_alone(hub, "b", MACHINES)
    train(alone, "b", 1000)  # 100 of which it holds
    hub.lose("b")
    train(hub, "a", 300)  # 50 of which it holds
    reunion = compare(hub, alone)
    assert (reunion.first_wins, reunion.accepted_at_split, reunion.discarded) == (False, 50, {"a": 250})
    told = Ledger.from_json(hub.to_json())
    absorb(alone, told)
    absorb(alone, hub)
    assert alone.accepted == 950
    assert alone.standing().by_machine["a"].discarded == 250
    assert alone.standing().all_machines.discarded == 250
    assert alone.faults() == []


def test_a_ledger_that_won_follows_the_order_again(hub: Ledger) -> None:
    alone = go_alone(hub, "b", MACHINES)
    train(alone, "b", 1000)
    absorb(alone, hub)
    lowest = next(iter(alone.positions.free))[0]
    assert alone.lease("a", 10, 10.0, 1.0)[0].start == lowest == 50


def test_the_losing_side_is_not_taken_for_the_winning_one(hub: Ledger) -> None:
    alone = go_alone(hub, "b", MACHINES)
    train(alone, "b", 1000)
    before = hub.to_json()
    with pytest.raises(ValueError, match="more accepted samples"):
        absorb(hub, alone)
    assert hub.to_json() == before


def test_ledgers_of_different_runs_are_not_compared(hub: Ledger) -> None:
    for other in (Ledger(10 * EPOCH, EPOCH), Ledger.from_json({**hub.to_json(), "epoch_size": EPOCH + 1})):
        with pytest.raises(ValueError, match="different runs"):
            compare(hub, other)
        with pytest.raises(ValueError, match="different runs"):
            absorb(hub, other)


def test_what_is_no_machine_does_not_go_alone(hub: Ledger) -> None:
    with pytest.raises(ValueError, match="no machine's id"):
        go_alone(hub, "b", ["a", "two words"])
