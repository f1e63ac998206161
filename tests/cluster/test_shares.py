from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.cluster.shares import cuts, part_of, speeds_by_kind

SPEEDS = st.lists(st.floats(0, 10**6), min_size=1, max_size=9)


@given(st.integers(0, 10**6), SPEEDS)
def test_every_sample_is_in_one_part(samples: int, speeds: list[float]) -> None:
    ends = cuts(samples, speeds)
    assert len(ends) == len(speeds) + 1
    assert (ends[0], ends[-1]) == (0, samples)
    assert ends == sorted(ends)
    assert all(end % 2 == 0 for end in ends[:-1] if end < samples)


@given(st.integers(1, 10**6), st.lists(st.floats(1, 1000), min_size=1, max_size=9))
def test_parts_are_as_large_as_ranks_are_fast(samples: int, speeds: list[float]) -> None:
    ends = cuts(samples, speeds)
    for speed, start, end in zip(speeds, ends[:-1], ends[1:], strict=True):
        assert abs(end - start - samples * speed / sum(speeds)) <= 2


@pytest.mark.parametrize(
    ("samples", "speeds", "ends"),
    [
        (128, [3.0, 1.0], [0, 96, 128]),
        (128, [0.0, 0.0], [0, 64, 128]),
        (32, [1.0, 1.0, 1.0], [0, 10, 22, 32]),
        (1, [1.0, 1.0], [0, 0, 1]),
        (0, [1.0, 1.0], [0, 0, 0]),
    ],
)
def test_where_parts_begin(samples: int, speeds: list[float], ends: list[int]) -> None:
    assert cuts(samples, speeds) == ends


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=5), SPEEDS)
def test_the_parts_of_ranges_are_the_ranges(steps: list[tuple[int, int]], speeds: list[float]) -> None:
    ranges, at = [], 0
    for gap, length in steps:
        ranges.append((at + gap, at + gap + length))
        at += gap + length
    ends = cuts(sum(end - start for start, end in ranges), speeds)
    parts = [part_of(ranges, start, end) for start, end in pairwise(ends)]
    together = [position for part in parts for start, end in part for position in range(start, end)]
    assert together == [position for start, end in ranges for position in range(start, end)]
    assert [sum(end - start for start, end in part) for part in parts] == [
        end - start for start, end in pairwise(ends)
    ]


def test_equals_are_levelled() -> None:
    kinds = [("a", "cpu"), ("a", "cpu"), ("b", "cpu")]
    assert speeds_by_kind(kinds, [90.0, 110.0, 300.0]) == [100.0, 100.0, 300.0]
