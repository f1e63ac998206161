from __future__ import annotations

import heapq
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.cluster.sizing import Pace, samples_to_give

SECONDS = 30.0


def test_a_lone_machine_gets_whole_batches_for_the_wanted_time() -> None:
    assert samples_to_give(Pace(128, 100.0), [], 10**12, SECONDS) == 23 * 128  # of 3,000 samples
    assert samples_to_give(Pace(128, 100.0), [], 10_000, SECONDS) == 23 * 128


def test_what_it_holds_is_not_given_twice() -> None:
    assert samples_to_give(Pace(10, 100.0, untrained=1000), [], 10**6, SECONDS) == 2000


def test_a_machine_that_lacks_little_waits() -> None:
    assert samples_to_give(Pace(10, 100.0, untrained=1501), [], 10**6, SECONDS) == 0
    assert samples_to_give(Pace(10, 100.0, untrained=1500), [], 10**6, SECONDS) == 1500


def test_a_machine_of_unknown_speed_gets_one_batch_at_a_time() -> None:
    assert samples_to_give(Pace(64, 0.0), [Pace(64, 50.0)], 10**6, SECONDS) == 64
    assert samples_to_give(Pace(64, 0.0, untrained=1), [], 10**6, SECONDS) == 0


def test_a_machine_that_is_slower_than_its_batch_gets_one_batch() -> None:
    assert samples_to_give(Pace(128, 1.0), [], 10**6, SECONDS) == 128


def test_no_rest_of_less_than_a_batch_is_left() -> None:
    assert samples_to_give(Pace(100, 10.0), [], 499, SECONDS) == 300
    assert samples_to_give(Pace(100, 10.0), [], 399, SECONDS) == 399
    assert samples_to_give(Pace(100, 10.0), [], 7, SECONDS) == 7
    assert samples_to_give(Pace(100, 10.0), [], 0, SECONDS) == 0


def test_towards_the_end_a_machine_gets_half_of_its_equal_part() -> None:
    # 4,000 samples at 400/s are 10 s; half of that is 5 s
    assert samples_to_give(Pace(10, 300.0), [Pace(10, 100.0)], 4000, SECONDS) == 1500
    assert samples_to_give(Pace(10, 100.0), [Pace(10, 300.0)], 4000, SECONDS) == 500


def test_what_others_hold_counts_as_work_that_is_left() -> None:
    assert samples_to_give(Pace(10, 300.0), [Pace(10, 100.0, untrained=4000)], 4000, SECONDS) == 3000


def test_pieces_do_not_become_slivers() -> None:
    assert (
        samples_to_give(Pace(10, 100.0), [Pace(10, 100.0)], 380, SECONDS) == 180
    )  # not 90: 1.9 s of the wanted 30


def test_a_slow_machine_does_not_take_what_a_fast_one_ends_sooner() -> None:
    fast, slow = Pace(128, 1000.0), Pace(128, 10.0)
    assert samples_to_give(slow, [fast], 2000, SECONDS) == 0  # 2 s for the fast one, 12.8 s for one batch
    assert samples_to_give(slow, [fast], 20_000, SECONDS) == 128
    assert samples_to_give(fast, [slow], 2000, SECONDS) > 0


paces = st.builds(
    Pace, st.integers(1, 300), st.sampled_from([0.0, 0.3, 7.0, 100.0, 2500.0]), st.sampled_from([0, 0, 1, 500])
)


@given(machines=st.lists(paces, min_size=1, max_size=5), free=st.integers(1, 10**5), seconds=st.floats(0.1, 600))
def test_the_amount_is_whole_batches_or_all(machines: list[Pace], free: int, seconds: float) -> None:
    amount = samples_to_give(machines[0], machines[1:], free, seconds)
    assert 0 <= amount <= free
    assert amount % machines[0].batch == 0 or amount == free
    assert amount in (0, free) or free - amount >= machines[0].batch


@given(machines=st.lists(paces, min_size=1, max_size=5), free=st.integers(1, 10**5), seconds=st.floats(0.1, 600))
def test_where_all_have_ended_their_work_somebody_gets_more(
    machines: list[Pace], free: int, seconds: float
) -> None:
    idle = [Pace(one.batch, one.samples_per_second) for one in machines]
    given_out = [samples_to_give(one, [*idle[:i], *idle[i + 1 :]], free, seconds) for i, one in enumerate(idle)]
    assert any(given_out)


def simulated(
    machines: list[tuple[int, float, float]], total: int, seed: int
) -> tuple[list[float], list[int], list[list[int]]]:
    """Return when each machine ended, how many optimizer steps it made, and the pieces that it was given.

    Machines are (batch, measured samples/s, true samples/s). One asks after each step; one that idles, each 0.1 s.
    """
    random = Random(seed)
    held, ended, steps = [0] * len(machines), [0.0] * len(machines), [0] * len(machines)
    pieces: list[list[int]] = [[] for _ in machines]
    free = total
    events = [(random.random(), index) for index in range(len(machines))]
    heapq.heapify(events)
    training = [0] * len(machines)
    while events:
        now, me = heapq.heappop(events)
        if training[me]:
            held[me], training[me], ended[me] = held[me] - training[me], 0, now
        all_paces = [Pace(one[0], one[1], has) for one, has in zip(machines, held, strict=True)]
        amount = samples_to_give(all_paces[me], [*all_paces[:me], *all_paces[me + 1 :]], free, SECONDS)
        free, held[me] = free - amount, held[me] + amount
        pieces[me] += [amount] if amount else []
        if held[me]:
            training[me] = min(held[me], machines[me][0])
            steps[me] += 1
            heapq.heappush(events, (now + training[me] / machines[me][2], me))
        elif free or any(held):
            heapq.heappush(events, (now + 0.1, me))
    assert sum(map(sum, pieces)) == total
    return ended, steps, pieces


FLEETS = {
    "alike": [(128, 400.0, 400.0), (128, 400.0, 400.0)],
    "four to one": [(128, 400.0, 400.0), (128, 100.0, 100.0)],
    "one is measured a third too fast": [(128, 400.0, 400.0), (128, 400.0, 300.0)],
    "one is twice as fast as measured": [(128, 200.0, 400.0), (128, 400.0, 400.0)],
    "four of all kinds": [(64, 900.0, 850.0), (128, 300.0, 330.0), (128, 60.0, 66.0), (256, 100.0, 90.0)],
}


@pytest.mark.parametrize("fleet", FLEETS.values(), ids=FLEETS)
@pytest.mark.parametrize("seed", range(3))
def test_all_end_at_about_the_same_time(fleet: list[tuple[int, float, float]], seed: int) -> None:
    total = int(sum(speed for _, _, speed in fleet) * 20 * SECONDS)
    ended, _, _ = simulated(fleet, total, seed)
    longest_step = max(batch / speed for batch, _, speed in fleet)
    assert max(ended) - min(ended) < longest_step + 0.1 * SECONDS
    assert max(ended) < 20 * SECONDS + longest_step + 0.1 * SECONDS


@pytest.mark.parametrize("fleet", FLEETS.values(), ids=FLEETS)
def test_nobody_gets_slivers_over_and_over(fleet: list[tuple[int, float, float]]) -> None:
    total = int(sum(speed for _, _, speed in fleet) * 20 * SECONDS)
    _, steps, pieces = simulated(fleet, total, seed=0)
    for (batch, measured, _), count, mine in zip(fleet, steps, pieces, strict=True):
        expected = sum(mine) / (measured * SECONDS)
        assert len(mine) <= 2.2 * expected + 8  # half of what it shall hold, less a batch, and the end of the run
        assert sum(piece < batch for piece in mine) <= 1
        assert count <= sum(mine) // batch + 1
