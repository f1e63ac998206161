from __future__ import annotations

import pytest

from lowmem_seq.cluster.history import MOST_BRANCHES, Counts, History, Reunion, compare, total_of


def grown(history: History, **accepted: int) -> History:
    for machine, samples in accepted.items():
        history.count(machine, accepted=samples)
    return history


def test_counters_add_up() -> None:
    history = grown(History(), a=10, b=5)
    history.count("a", repeated=2)
    history.count("a", discarded=3)
    assert history.by_machine() == {"a": Counts(10, 2, 3), "b": Counts(5, 0, 0)}
    assert total_of(history.by_machine()) == Counts(15, 2, 3)
    assert total_of({}) == Counts(0, 0, 0)


def test_the_side_with_more_accepted_samples_wins_and_the_other_ones_are_discarded() -> None:
    hub = grown(History(), host=100, a=50)
    alone = grown(hub.fork(), a=70)
    grown(hub, host=20)
    assert compare(alone, hub) == Reunion(True, 150, {"host": 20})
    assert compare(hub, alone) == Reunion(False, 150, {"host": 20})
    alone.absorb(hub)
    assert alone.by_machine() == {"host": Counts(100, 0, 20), "a": Counts(120, 0, 0)}


def test_both_sides_may_have_gone_on_alone() -> None:
    common = grown(History(), a=10, b=10)
    a, b = grown(common.fork(), a=5), grown(grown(common, b=2).fork(), b=9)
    assert compare(a, b) == Reunion(False, 20, {"a": 5})
    b.absorb(a)
    assert b.by_machine() == {"a": Counts(10, 0, 5), "b": Counts(21, 0, 0)}


def test_an_earlier_state_of_the_same_branch_loses_nothing() -> None:
    hub = grown(History(), a=10)
    earlier = hub.copy()
    grown(hub, a=10)
    assert compare(hub, earlier) == Reunion(True, 10, {})
    hub.absorb(earlier)
    assert hub.by_machine() == {"a": Counts(20, 0, 0)}
    assert hub.given_up == {}


def test_a_draw_is_decided_alike_on_both_sides() -> None:
    common = grown(History(), a=10)
    for _ in range(10):
        one, other = grown(common.fork(), a=5), grown(common.fork(), b=5)
        assert compare(one, other).first_wins is not compare(other, one).first_wins


def test_at_a_draw_who_forked_more_often_goes_on() -> None:
    common = grown(History(), a=10)
    assert compare(common.fork(), common).first_wins
    assert not compare(common, common.fork()).first_wins


def test_runs_that_have_nothing_in_common_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different runs"):
        compare(History(), History())


def test_the_losing_side_absorbs_nothing() -> None:
    hub = grown(History(), a=10)
    alone = grown(hub.fork(), a=1)
    with pytest.raises(ValueError, match="more accepted samples"):
        hub.absorb(alone)
    assert hub.by_machine() == {"a": Counts(10, 0, 0)}


def test_what_was_discarded_and_repeated_on_the_losing_side_is_not_forgotten() -> None:
    hub = grown(History(), a=10)
    alone = grown(hub.fork(), a=5)
    alone.count("a", repeated=3, discarded=4)
    grown(hub, b=6)
    hub.absorb(alone)
    assert hub.by_machine() == {"a": Counts(10, 3, 9), "b": Counts(6, 0, 0)}


def test_a_loss_that_is_told_twice_counts_once() -> None:
    hub = grown(History(), a=10)
    alone = grown(hub.fork(), b=5, c=3)
    grown(hub, a=20)
    for _ in range(3):
        hub.absorb(alone)
    assert hub.by_machine()["b"] == Counts(0, 0, 5)
    hub.absorb(grown(alone, b=1))  # it had not heard of its loss, and went on
    assert hub.by_machine() == {"a": Counts(30, 0, 0), "b": Counts(0, 0, 6), "c": Counts(0, 0, 3)}
    hub.absorb(grown(alone.fork(), c=2))  # on its way, too
    assert hub.by_machine() == {"a": Counts(30, 0, 0), "b": Counts(0, 0, 6), "c": Counts(0, 0, 5)}


def test_old_news_of_a_losing_side_take_nothing_back() -> None:
    hub = grown(History(), a=10)
    alone = grown(hub.fork(), b=5)
    earlier = alone.copy()
    grown(hub, a=20)
    hub.absorb(grown(alone, b=2))
    hub.absorb(earlier)
    assert hub.by_machine()["b"] == Counts(0, 0, 7)


def test_the_split_is_where_the_last_common_branch_was_left() -> None:
    second = grown(grown(History(), a=10).fork(), a=10)
    one, other = grown(second.fork(), a=3), grown(second, a=5)
    assert compare(one, other) == Reunion(False, 20, {"a": 3})


def test_a_side_that_was_counted_out_may_still_win_later() -> None:
    hub = grown(History(), a=10)
    alone = grown(hub.fork(), b=5)
    grown(hub, a=20)
    hub.absorb(alone)
    grown(alone, b=100)  # the news did not reach it
    assert compare(hub, alone) == Reunion(False, 10, {"a": 20})
    alone.absorb(hub)
    assert alone.by_machine() == {"a": Counts(10, 0, 20), "b": Counts(105, 0, 0)}


def test_what_was_heard_of_third_sides_is_passed_on() -> None:
    root = grown(History(), a=10)
    one, two, three = (grown(root.fork(), **told) for told in ({"a": 1}, {"b": 2}, {"c": 3}))
    two.absorb(one)
    three.absorb(two)
    assert three.by_machine()["a"] == Counts(10, 0, 1)
    three.absorb(one)
    assert three.by_machine() == {"a": Counts(10, 0, 1), "b": Counts(0, 0, 2), "c": Counts(3, 0, 0)}


def test_going_alone_again_and_again_for_nothing_leaves_no_trace() -> None:
    history = grown(History(), a=1)
    for generation in range(1, 300):
        history = history.fork()
        assert history.branch.generation == generation
    assert len(history.branches) == 2
    assert list(history.faults()) == []


def test_only_so_many_branches_are_remembered_and_the_runs_own_is() -> None:
    root = History()
    history = root
    for _ in range(2 * MOST_BRANCHES):
        history = grown(history.fork(), a=1)
    assert len(history.branches) == MOST_BRANCHES
    assert compare(history, root) == Reunion(True, 0, {})
    assert list(history.faults()) == []


def test_losses_are_counted_when_their_branches_are_forgotten() -> None:
    hub = grown(History(), a=1000)
    for _ in range(MOST_BRANCHES + 20):
        hub.absorb(_lost(hub))
        grown(hub, a=5)
    assert len(hub.given_up) == MOST_BRANCHES
    assert hub.by_machine()["b"] == Counts(0, 0, MOST_BRANCHES + 20)
    assert list(hub.faults()) == []


def _lost(hub: History) -> History:
    """A side that left, accepted one sample, and met the hub when that had two more."""
    side = grown(hub.fork(), b=1)
    grown(hub, a=2)
    return side
