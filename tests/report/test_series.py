from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.report.series import Point, Series

MOST = 8
values = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))
curves = st.lists(st.tuples(st.integers(0, 10_000), values), min_size=1, max_size=200)


def series_of(points: list[tuple[int, float]], most: int = MOST) -> Series:
    series = Series(most)
    for x, y in points:
        series.add(x, y)
    return series


def test_a_short_curve_is_kept_as_it_is() -> None:
    series = Series()
    series.add(1, 5.0, at=100.0)
    series.add(2, 3.0, at=101.0)
    assert list(series) == [Point(1, 5.0, 100.0), Point(2, 3.0, 101.0)]
    assert not Series()


@given(curves)
def test_a_curve_stays_bounded_and_loses_no_peak_dip_or_end(points: list[tuple[int, float]]) -> None:
    kept = list(series_of(points))
    assert len(kept) <= 4 * MOST
    assert {(point.x, point.y) for point in kept} <= set(points)
    heights = [y for _, y in points]
    assert (min(point.y for point in kept), max(point.y for point in kept)) == (min(heights), max(heights))
    assert (kept[0].x, kept[-1].x) == (min(x for x, _ in points), max(x for x, _ in points))
    assert [point.x for point in kept] == sorted(point.x for point in kept)


@given(curves, st.integers(-1, 10_001))
def test_what_lies_beyond_is_forgotten_and_nothing_else(points: list[tuple[int, float]], last: int) -> None:
    series = series_of(points)
    before = set(series)
    series.forget_after(last)
    assert set(series) == {point for point in before if point.x <= last}


def test_a_long_curve_keeps_a_single_outlier() -> None:
    points = [(step, 1.0) for step in range(100_000)]
    points[77_777] = (77_777, 9.0)
    kept = list(series_of(points, most=50))
    assert Point(77_777, 9.0) in kept
    assert len(kept) <= 200
