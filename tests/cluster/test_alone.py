from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.cluster.alone import Alone, blocks_of, order_alone
from lowmem_seq.cluster.ranges import Range, Ranges

NAMES = ("a", "b", "c")


def size(ranges: list[Range]) -> int:
    return sum(end - start for start, end in ranges)


@given(count=st.integers(1, 5), epoch=st.integers(1, 300), start=st.integers(0, 10**12))
def test_each_position_of_an_epoch_is_in_one_machines_blocks(count: int, epoch: int, start: int) -> None:
    names = tuple(f"m{number}" for number in range(count))
    whole = Ranges()
    for name in names:
        for block in blocks_of(start, start + epoch, Alone(name, names)):
            whole.add(*block)  # which refuses what is there already
    assert list(whole) == [(start, start + epoch)]


def test_parts_are_about_equal_whatever_is_left_of_the_epoch() -> None:
    for left in (20_000, 10_000, 4_000):
        parts = [
            sum(
                size(Ranges([(20_000 - left, 20_000)]).overlap(*block))
                for block in blocks_of(0, 20_000, Alone(name, NAMES))
            )
            for name in NAMES
        ]
        assert sum(parts) == left
        assert max(parts) - min(parts) <= 2 * 512


def test_blocks_of_large_epochs_hold_whole_batches() -> None:
    ends = [end - start for start, end in blocks_of(0, 50_000, Alone("b", NAMES))]
    assert set(ends[:-1]) == {2048}


def test_a_machine_trains_its_own_part_of_an_epoch_and_then_the_rest_of_it() -> None:
    free = Ranges([(90, 240)])
    order = list(order_alone(free, Ranges(), 100, Alone("b", ("a", "b"))))
    assert [start // 100 for start, _ in order] == sorted(start // 100 for start, _ in order)
    second = [piece for piece in order if 100 <= piece[0] < 200]
    own = list(blocks_of(100, 200, Alone("b", ("a", "b"))))
    assert second[: len(own)] == own
    assert size(second) == 100
    assert size(order) == 150


def test_what_others_had_on_lease_waits_for_the_end_of_the_epoch() -> None:
    alone = Alone("a", ("a", "b"))
    order = list(order_alone(Ranges([(0, 1000)]), Ranges([(0, 100)]), 500, alone))
    place = {piece[0]: number for number, piece in enumerate(order)}
    assert order[0][0] > 100
    assert place[0] > max(place[start] for start, _ in blocks_of(0, 500, alone) if start >= 100)
    assert place[0] < min(number for start, number in place.items() if start >= 500)


@given(
    gaps=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 20)), max_size=6),
    before=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 20)), max_size=4),
    epoch=st.integers(1, 120),
    name=st.sampled_from(NAMES),
)
def test_all_that_is_free_comes_once(
    gaps: list[tuple[int, int]], before: list[tuple[int, int]], epoch: int, name: str
) -> None:
    free, given_before = Ranges([(0, 100)]), Ranges()
    for start, count in gaps:
        free.discard(start, start + count)
    for start, count in before:
        for part in free.overlap(start, start + count):
            given_before.include(*part)
    order = list(order_alone(free, given_before, epoch, Alone(name, NAMES)))
    assert Ranges(order) == free
    epochs = [start // epoch for start, _ in order]
    assert epochs == sorted(epochs)
    assert all((end - 1) // epoch == start // epoch for start, end in order)
