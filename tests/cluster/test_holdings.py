from __future__ import annotations

from lowmem_seq.cluster.holdings import MOST_TOLD, Holdings
from lowmem_seq.cluster.messages import Progress


def test_samples_are_taken_in_order_and_a_step_may_span_two_leases() -> None:
    holdings = Holdings()
    holdings.give(7, 100, 110)
    holdings.give(3, 0, 6)
    assert holdings.take(4) == [(0, 4)]
    assert holdings.take(4) == [(4, 6), (100, 102)]
    assert (holdings.untaken, holdings.untrained) == (8, 16)
    assert holdings.take(100) == [(102, 110)]
    assert holdings.take(100) == []


def test_what_is_trained_waits_to_be_merged() -> None:
    holdings = Holdings()
    holdings.give(3, 0, 10)
    assert holdings.note_trained(holdings.take(4)) == 4
    assert holdings.progress() == (Progress(3, 4),)
    assert list(holdings.unmerged) == [(0, 4)]
    holdings.take(2)
    holdings.note_merged([(0, 4)])
    assert holdings.unmerged.size == 0
    assert (holdings.untrained, holdings.untaken) == (6, 4)
    assert holdings.progress() == (Progress(3, 4),)


def test_a_lease_is_given_up_when_all_of_it_is_merged() -> None:
    holdings = Holdings()
    holdings.give(3, 0, 10)
    holdings.note_trained(holdings.take(10))
    holdings.note_merged([(0, 6)])
    assert [one.lease for one in holdings.held] == [3]
    holdings.note_merged([(6, 10)])
    assert holdings.held == ()


def test_a_step_on_what_is_no_longer_held_counts_nothing() -> None:
    holdings = Holdings()
    holdings.give(3, 0, 10)
    taken = holdings.take(5)
    holdings.clear()
    holdings.give(4, 0, 10)
    assert holdings.note_trained(taken) == 0
    assert holdings.unmerged.size == 0
    assert holdings.take(10) == [(0, 10)]


def test_a_lease_that_was_claimed_again_has_a_new_name() -> None:
    holdings = Holdings()
    holdings.give(3, 0, 10)
    holdings.note_trained(holdings.take(5))
    holdings.give(9, 2, 10)
    assert holdings.progress() == (Progress(9, 3),)
    assert holdings.take(10) == [(5, 10)]


def test_a_beat_tells_first_what_is_not_done() -> None:
    holdings = Holdings()
    for lease in range(MOST_TOLD + 6):
        holdings.give(lease, 10 * lease, 10 * lease + 10)
    holdings.note_trained(holdings.take(60))
    told = holdings.progress()
    assert len(told) == MOST_TOLD
    assert [one.lease for one in told] == list(range(6, MOST_TOLD + 6))
