from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.cluster.ranges import Range, Ranges, lowest

FAR = 10**12
starts = st.integers(0, 30)
some_ranges = st.tuples(starts, st.integers(1, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def positions(ranges: list[Range] | Ranges) -> set[int]:
    return {position for start, end in ranges for position in range(start, end)}


def filled(changes: list[Range]) -> tuple[Ranges, set[int]]:
    ranges = Ranges()
    for change in changes:
        ranges.include(*change)
    return ranges, positions(changes)


def test_neighbours_merge_on_both_sides() -> None:
    ranges = Ranges([(0, 3), (6, 9)])
    ranges.add(3, 6)
    assert list(ranges) == [(0, 9)]
    assert ranges.size == 9


def test_taking_from_the_middle_leaves_both_ends() -> None:
    ranges = Ranges([(0, FAR)])
    ranges.remove(5, FAR - 5)
    assert list(ranges) == [(0, 5), (FAR - 5, FAR)]
    assert ranges.size == 10


@pytest.mark.parametrize("change", [(2, 2), (3, 2), (4, 5), (0, 6), (5, 11), (9, 10), (0, 30)])
def test_what_is_in_is_not_put_in_again(change: Range) -> None:
    ranges = Ranges([(4, 6), (8, 12)])
    with pytest.raises(ValueError, match=r"range|already"):
        ranges.add(*change)
    assert ranges == Ranges([(4, 6), (8, 12)])


@pytest.mark.parametrize("change", [(4, 4), (6, 4), (3, 5), (5, 9), (0, 1), (11, 13), (12, 14)])
def test_what_is_not_in_is_not_taken_out(change: Range) -> None:
    ranges = Ranges([(4, 6), (8, 12)])
    with pytest.raises(ValueError, match="not all of"):
        ranges.remove(*change)
    assert ranges == Ranges([(4, 6), (8, 12)])


def test_a_copy_changes_apart() -> None:
    ranges = Ranges([(0, 5)])
    other = ranges.copy()
    other.remove(0, 1)
    assert list(ranges) == [(0, 5)]
    assert other.size == 4


def test_the_lowest_positions_come_first() -> None:
    assert lowest([(3, 5), (8, 20)], 4) == [(3, 5), (8, 10)]
    assert lowest([(3, 5), (8, 20)], 2) == [(3, 5)]
    assert lowest([(3, 5)], 9) == [(3, 5)]
    assert lowest([(3, 5)], 0) == []


@given(changes=st.lists(st.tuples(st.booleans(), some_ranges), max_size=30))
def test_it_is_a_set_of_positions_told_in_the_shortest_way(changes: list[tuple[bool, Range]]) -> None:
    ranges, expected = Ranges(), set[int]()
    for puts_in, change in changes:
        asked = positions([change])
        if puts_in:
            ranges.include(*change)
            expected |= asked
        else:
            assert ranges.discard(*change) == len(expected & asked)
            expected -= asked
        pairs = list(ranges)
        assert positions(ranges) == expected
        assert ranges.size == len(expected)
        assert all(start < end for start, end in pairs)
        assert all(one[1] < other[0] for one, other in pairwise(pairs))


@given(changes=st.lists(some_ranges, max_size=8), asked=some_ranges)
def test_questions_are_answered_as_a_set_would(changes: list[Range], asked: Range) -> None:
    ranges, inside = filled(changes)
    wanted = positions([asked])
    assert positions(ranges.overlap(*asked)) == inside & wanted
    assert positions(ranges.gaps(*asked)) == wanted - inside
    assert ranges.covers(*asked) == (wanted <= inside)
    assert all(start < end for start, end in (*ranges.overlap(*asked), *ranges.gaps(*asked)))


@given(changes=st.lists(some_ranges, max_size=8), asked=some_ranges)
def test_adding_and_removing_do_all_or_nothing(changes: list[Range], asked: Range) -> None:
    ranges, inside = filled(changes)
    for change, fits in (
        (ranges.add, not inside & positions([asked])),
        (ranges.remove, positions([asked]) <= inside),
    ):
        before = ranges.copy()
        if not fits:
            with pytest.raises(ValueError, match="there"):
                change(*asked)
            assert ranges == before
        else:
            change(*asked)
            assert positions(ranges) ^ positions(before) == positions([asked])
            return
