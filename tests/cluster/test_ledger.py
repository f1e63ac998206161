from __future__ import annotations

import json
import math

import pytest

from lowmem_seq.cluster.history import MOST_MACHINES
from lowmem_seq.cluster.ledger import MOST_LEASES_EACH, Ledger
from lowmem_seq.cluster.positions import Lease
from lowmem_seq.cluster.ranges import Range
from lowmem_seq.cluster.standing import Share
from tests.cluster.clocks import Clock

SILENT = 10.0
RUN = 10**12
EPOCH = 20_000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(RUN, EPOCH, clock, SILENT)


def leased(ledger: Ledger, machine: str, samples: int) -> Range:
    """Lease as many samples as these at once: a machine of one sample/s asks for so many seconds."""
    held = sum(lease.untrained for lease in ledger.leases_of(machine))
    (lease,) = ledger.lease(machine, 1, 1.0, samples + held)
    return lease.start, lease.end


def share(ledger: Ledger, machine: str) -> Share:
    return ledger.standing().by_machine[machine]


def test_leases_follow_the_order(ledger: Ledger) -> None:
    assert [leased(ledger, one, 100) for one in "aba"] == [(0, 100), (100, 200), (200, 300)]


def test_a_lease_tells_all_about_itself(ledger: Ledger, clock: Clock) -> None:
    assert ledger.lease("a", 128, 10.0, 30.0) == [Lease(0, "a", 0, 256, 0, clock.now, clock.now + SILENT)]
    clock.go_on(2)
    assert ledger.heartbeat("a", {0: 128}) == []
    (lease,) = ledger.leases
    assert lease == Lease(0, "a", 0, 256, 128, clock.now - 2, clock.now + SILENT)
    assert (lease.state, lease.samples, lease.untrained) == ("out", 256, 128)
    ledger.heartbeat("a", {0: 256})
    assert ledger.leases[0].state == "done"


def test_leases_are_sized_by_the_measured_speeds_of_all(clock: Clock) -> None:
    ledger = Ledger(4000, EPOCH, clock, SILENT)
    assert ledger.lease("slow", 10, 100.0, 1.0)[0].samples == 100
    ledger.heartbeat("slow", {}, samples_per_second=0.0)
    assert ledger.lease("fast", 10, 300.0, 30.0)[0].samples == 2000  # half of 4,000, which only it works on
    ledger.discard("fast")
    ledger.heartbeat("slow", {}, samples_per_second=100.0)
    assert ledger.lease("fast", 10, 300.0, 30.0)[0].samples == 1500  # half of 10 s of both


def test_a_machine_that_was_lost_counts_no_more_in_sizes(clock: Clock) -> None:
    short = Ledger(4000, EPOCH, clock, SILENT)
    for machine in ("left", "silent"):
        (lease,) = short.lease(machine, 10, 300.0, 1.0)
        short.accept(machine, [(lease.start, lease.end)])
    short.lose("left")
    clock.go_on(SILENT)
    assert short.lease("fast", 10, 300.0, 8.0)[0].samples == 850  # half of 3,400 for two
    short.discard("fast")
    assert short.expire() == []  # nothing was held
    assert short.lease("fast", 10, 300.0, 8.0)[0].samples == 2400


def test_work_that_lies_apart_comes_as_several_leases(ledger: Ledger) -> None:
    for one in "abab":
        leased(ledger, one, 10)
    ledger.lose("a")
    given = ledger.lease("c", 5, 25.0, 1.0)
    assert [(lease.start, lease.end) for lease in given] == [(0, 10), (20, 30), (40, 45)]


def test_what_is_accepted_is_counted_and_gone(ledger: Ledger) -> None:
    leased(ledger, "a", 100)
    leased(ledger, "b", 50)
    assert ledger.accept("a", [(0, 100)])
    assert list(ledger.positions.accepted) == [(0, 100)]
    assert [lease.machine for lease in ledger.leases] == ["b"]
    assert share(ledger, "a") == Share(accepted=100, in_flight=0, repeated=0, discarded=0)
    assert share(ledger, "b") == Share(accepted=0, in_flight=50, repeated=0, discarded=0)
    standing = ledger.standing()
    assert standing.all_machines == Share(accepted=100, in_flight=50, repeated=0, discarded=0)
    assert (standing.remaining, standing.progress, standing.epoch) == (RUN - 100, 1e-10, 100 / EPOCH)


def test_a_snapshot_in_the_middle_of_a_lease_is_accepted_as_far_as_it_went(ledger: Ledger) -> None:
    leased(ledger, "a", 100)
    leased(ledger, "a", 100)
    ledger.heartbeat("a", {0: 100, 1: 160})
    assert ledger.accept("a", [(0, 130)])
    (lease,) = ledger.leases
    assert (lease.id, lease.start, lease.reached, lease.end) == (1, 130, 160, 200)
    assert ledger.accept("a", [(130, 200)])
    assert ledger.leases == []


def test_a_heartbeat_that_is_behind_what_was_accepted_takes_nothing_back(ledger: Ledger) -> None:
    leased(ledger, "a", 100)
    ledger.accept("a", [(0, 60)])
    ledger.heartbeat("a", {0: 50})
    assert ledger.leases[0].reached == 60


def test_a_heartbeat_hears_which_leases_are_gone(ledger: Ledger) -> None:
    leased(ledger, "a", 10)
    leased(ledger, "a", 10)
    leased(ledger, "b", 10)
    ledger.accept("a", [(0, 10)])
    assert ledger.heartbeat("a", {0: 10, 1: 12, 2: 25, 77: 0}) == [0, 2, 77]


def test_nobody_trained_more_than_was_given(ledger: Ledger) -> None:
    leased(ledger, "a", 10)
    before = ledger.to_json()
    with pytest.raises(ValueError, match="a trained more than lease 0 has"):
        ledger.heartbeat("a", {0: 11})
    assert ledger.to_json() == before


def test_a_machine_that_is_silent_loses_what_is_not_accepted(ledger: Ledger, clock: Clock) -> None:
    leased(ledger, "a", 100)
    leased(ledger, "b", 100)
    ledger.accept("a", [(0, 40)])
    clock.go_on(SILENT - 0.5)
    ledger.heartbeat("b", {})
    assert ledger.expire() == []
    clock.go_on(0.5)
    assert [(lease.machine, lease.start, lease.end) for lease in ledger.expire()] == [("a", 40, 100)]
    assert share(ledger, "a") == Share(accepted=40, in_flight=0, repeated=0, discarded=0)
    ledger.heartbeat("b", {1: 200})
    assert leased(ledger, "b", 60) == (40, 100)
    assert share(ledger, "b") == Share(accepted=0, in_flight=160, repeated=60, discarded=0)


def test_asking_and_bringing_in_are_signs_of_life(ledger: Ledger, clock: Clock) -> None:
    leased(ledger, "a", 100)
    leased(ledger, "b", 100)
    clock.go_on(SILENT / 2)
    ledger.lease("a", 1, 1.0, 10.0)  # it holds enough, and gets nothing
    ledger.accept("b", [(100, 101)])
    clock.go_on(SILENT / 2)
    assert ledger.expire() == []
    clock.go_on(SILENT / 2)
    assert [lease.machine for lease in ledger.expire()] == ["a", "b"]


def test_a_machine_that_returns_brings_in_what_nobody_else_was_given(ledger: Ledger) -> None:
    leased(ledger, "a", 100)
    leased(ledger, "b", 100)
    ledger.lose("a")
    assert ledger.takes("a", [(0, 70)])
    assert ledger.accept("a", [(0, 70)])
    assert share(ledger, "a") == Share(accepted=70, in_flight=0, repeated=0, discarded=0)
    assert ledger.faults() == []


def test_a_delta_of_which_some_was_given_to_another_is_refused_as_a_whole(ledger: Ledger) -> None:
    leased(ledger, "a", 100)
    ledger.lose("a")
    leased(ledger, "b", 10)
    leased(ledger, "a", 20)
    ledger.heartbeat("a", {2: 25})
    assert not ledger.takes("a", [(0, 100)])
    assert not ledger.accept("a", [(0, 100)])
    assert share(ledger, "a") == Share(accepted=0, in_flight=0, repeated=20, discarded=100)
    assert ledger.accepted == 0
    assert [lease.machine for lease in ledger.leases] == ["b"]


def test_it_stays_refused_when_the_other_loses_it_too(ledger: Ledger) -> None:
    leased(ledger, "a", 100)
    ledger.lose("a")
    leased(ledger, "b", 100)
    ledger.lose("b")
    assert not ledger.takes("a", [(0, 100)])
    assert ledger.takes("b", [(0, 100)])


def test_the_same_delta_is_not_taken_twice(ledger: Ledger) -> None:
    leased(ledger, "a", 100)
    assert ledger.accept("a", [(0, 100)])
    assert not ledger.accept("a", [(0, 100)])
    assert ledger.accepted == 100


@pytest.mark.parametrize(
    "ranges", [[(1, 10)], [(0, 3), (5, 10)], [(0, 11)], [(10, 11)], [(20, 21)], [(0, 10), (30, 31)]]
)
def test_what_was_not_trained_from_the_start_of_a_lease_on_is_refused(ledger: Ledger, ranges: list[Range]) -> None:
    leased(ledger, "a", 10)
    leased(ledger, "b", 10)
    assert not ledger.takes("a", ranges)
    ledger.lose("a")
    assert not ledger.takes("a", ranges)


@pytest.mark.parametrize("ranges", [[(5, 5)], [(5, 4)], [(-1, 4)], [(0, RUN + 1)], [(0, 4), (3, 6)]])
def test_what_is_no_range_changes_nothing(ledger: Ledger, ranges: list[Range]) -> None:
    leased(ledger, "a", 10)
    before = ledger.to_json()
    for call in (ledger.takes, ledger.accept, ledger.discard):
        with pytest.raises(ValueError, match=r"no range|outside of the run|there already"):
            call("a", ranges)
    assert ledger.to_json() == before


def test_work_that_is_discarded_is_counted_and_nobody_can_bring_it_in(ledger: Ledger) -> None:
    leased(ledger, "a", 100)
    ledger.accept("a", [(0, 10)])
    ledger.heartbeat("a", {0: 45})
    assert ledger.discard("a", [(10, 50)]) == 40
    assert share(ledger, "a") == Share(accepted=10, in_flight=0, repeated=0, discarded=40)
    assert not ledger.takes("a", [(10, 50)])
    assert leased(ledger, "a", 90) == (10, 100)
    assert share(ledger, "a").repeated == 90


def test_what_was_trained_is_discarded_though_no_delta_claims_it(ledger: Ledger) -> None:
    leased(ledger, "a", 100)
    leased(ledger, "a", 100)
    ledger.heartbeat("a", {0: 100, 1: 130})
    assert not ledger.accept("a", [(0, 100), (500, 510)])
    assert share(ledger, "a") == Share(accepted=0, in_flight=0, repeated=0, discarded=140)


def test_a_machine_that_returns_takes_up_what_it_lost(ledger: Ledger) -> None:
    leased(ledger, "a", 100)
    ledger.lose("a")
    leased(ledger, "b", 30)
    assert ledger.reclaim("a", 0, 100) is None
    assert ledger.reclaim("b", 30, 100) is None
    lease = ledger.reclaim("a", 30, 100)
    assert lease is not None
    assert (lease.machine, lease.start, lease.end) == ("a", 30, 100)
    assert share(ledger, "a") == Share(accepted=0, in_flight=70, repeated=0, discarded=0)
    assert ledger.reclaim("a", 30, 100) is None


def test_a_run_ends_when_all_is_accepted(clock: Clock) -> None:
    ledger = Ledger(10, 4, clock)
    assert leased(ledger, "a", 10) == (0, 10)
    assert ledger.lease("b", 1, 1.0, 1.0) == []
    told = []
    for part in ((0, 9), (9, 10)):
        ledger.accept("a", [part])
        standing = ledger.standing()
        told.append(
            (standing.remaining, standing.progress, standing.epoch, standing.is_complete, ledger.is_complete)
        )
    assert told == [(1, 0.9, 2.25, False, False), (0, 1.0, 2.5, True, True)]


def test_a_run_can_be_made_longer(clock: Clock) -> None:
    ledger = Ledger(10, 10, clock)
    leased(ledger, "a", 10)
    ledger.accept("a", [(0, 10)])
    ledger.extend(20)
    assert ledger.standing().remaining == 10
    assert leased(ledger, "a", 10) == (10, 20)
    for total in (20, 19, 10**15 + 1):
        with pytest.raises(ValueError, match="no r"):
            ledger.extend(total)
    assert ledger.faults() == []


def test_a_machine_whose_work_is_never_merged_gets_no_more(clock: Clock) -> None:
    ledger = Ledger(RUN, EPOCH, clock)
    for number in range(MOST_LEASES_EACH):
        _, end = leased(ledger, "a", 1)
        ledger.heartbeat("a", {number: end})
    assert ledger.lease("a", 1, 1.0, 5.0) == []
    ledger.accept("a", [(0, 1)])
    assert ledger.lease("a", 1, 1.0, 5.0) != []


def test_lost_work_is_not_taken_up_in_crumbs(clock: Clock) -> None:
    ledger = Ledger(RUN, EPOCH, clock)
    leased(ledger, "a", MOST_LEASES_EACH + 1)
    ledger.lose("a")
    taken = [ledger.reclaim("a", number, number + 1) for number in range(MOST_LEASES_EACH + 1)]
    assert [lease is None for lease in taken] == [False] * MOST_LEASES_EACH + [True]


def test_there_are_only_so_many_machines(ledger: Ledger) -> None:
    for number in range(MOST_MACHINES):
        leased(ledger, f"m{number}", 1)
    with pytest.raises(ValueError, match="more than 256 machines"):
        ledger.lease("another", 1, 1.0, 5.0)
    assert Ledger.from_json(ledger.to_json()) == ledger


@pytest.mark.parametrize("machine", ["", "two words", "x" * 65, "tab\t", "line\n", "ö"])
def test_what_is_no_id_is_refused(ledger: Ledger, machine: str) -> None:
    for call in (lambda: ledger.lease(machine, 1, 1.0, 1.0), lambda: ledger.accept(machine, [])):
        with pytest.raises(ValueError, match="is no machine's id"):
            call()


@pytest.mark.parametrize(
    ("batch", "speed", "seconds"),
    [(0, 1.0, 1.0), (1, -1.0, 1.0), (1, math.nan, 1.0), (1, math.inf, 1.0), (1, 1.0, 0.0), (1, 1.0, math.nan)],
)
def test_absurd_wishes_are_refused(ledger: Ledger, batch: int, speed: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="samples"):
        ledger.lease("a", batch, speed, seconds)
    with pytest.raises(ValueError, match="samples/s"):
        ledger.heartbeat("a", {}, math.nan)


@pytest.mark.parametrize(("total", "epoch_size"), [(0, 1), (1, 0), (10**15 + 1, 1), (1, 10**15 + 1)])
def test_absurd_runs_are_refused(total: int, epoch_size: int) -> None:
    with pytest.raises(ValueError, match="no run"):
        Ledger(total, epoch_size)


def test_a_long_run_keeps_few_ranges_and_a_small_file(clock: Clock) -> None:
    ledger = Ledger(RUN, EPOCH, clock)
    machines = {"a": 2 * RUN // 10**4, "b": RUN // 10**4}
    while not ledger.is_complete:
        for machine, speed in machines.items():
            for lease in ledger.lease(machine, 128, float(speed), 1.0):
                ledger.heartbeat(machine, {lease.id: lease.end})
        for machine in machines:
            ledger.accept(machine, [(lease.start, lease.end) for lease in ledger.leases_of(machine)])
        assert len(list(ledger.positions.accepted)) == 1
        assert len(json.dumps(ledger.to_json())) < 1000
    assert {one: share(ledger, one).accepted // 10**11 for one in machines} == {"a": 6, "b": 3}
