from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.memory.prediction import MARGIN, predict_bytes, predict_recomputed, with_margin

sizes = st.lists(st.integers(1, 1024), min_size=2, max_size=6, unique=True)


@given(st.integers(10**7, 10**9), st.integers(0, 10**8), sizes, st.integers(1, 2048))
def test_the_prediction_is_exact_where_memory_is_affine(
    base: int, slope: int, measured: list[int], asked: int
) -> None:
    points = {size: base + slope * size for size in measured}
    assert predict_bytes(points, asked, floor_bytes=0) == pytest.approx(base + slope * asked, rel=1e-6)


def test_the_larger_of_two_lines_counts() -> None:
    # through the two nearest: 120 + 5 * 8; by least squares, the flat start lowers the slope, and the base grows
    assert predict_bytes({1: 100, 2: 100, 4: 100, 8: 120}, 16, floor_bytes=0) == 160
    # the end is flat: the nearest two say 140, the line through all says more
    assert predict_bytes({1: 100, 2: 120, 4: 140, 8: 140}, 16, floor_bytes=0) > 170


@given(st.integers(1, 512), st.integers(10**8, 10**9), st.integers(0, 10**8), st.integers(1, 2048))
def test_from_one_measurement_all_above_the_floor_is_taken_to_grow(
    size: int, peak: int, floor: int, asked: int
) -> None:
    grown = floor + (peak - floor) * asked / size
    assert predict_bytes({size: peak}, asked, floor) == pytest.approx(grown, rel=1e-9, abs=1)


def test_a_floor_above_the_measurement_is_not_taken_for_a_gain() -> None:
    assert predict_bytes({8: 500}, 64, floor_bytes=600) >= 500


def test_noise_that_falls_is_not_taken_for_a_gain() -> None:
    assert predict_bytes({8: 500, 16: 490}, 64, floor_bytes=0) >= 490


@given(st.dictionaries(st.integers(1, 512), st.integers(10**8, 10**9), min_size=1, max_size=6), st.data())
def test_more_images_never_need_less(points: dict[int, int], data: st.DataObject) -> None:
    asked = data.draw(st.integers(max(points), 4096))
    more = data.draw(st.integers(asked, 8192))
    assert points[max(points)] <= predict_bytes(points, asked, 10**7) <= predict_bytes(points, more, 10**7)


def test_recomputing_the_first_layers_saves_what_they_keep() -> None:
    shares = (0.5, 0.25, 0.125, 0.125)
    told = [predict_recomputed(1000, 200, shares, count) for count in range(5)]
    assert told == [1000, 600, 400, 300, 200]


def test_the_margin_is_added_on_top() -> None:
    assert with_margin(1000) == round(1000 * (1 + MARGIN)) == 1060
