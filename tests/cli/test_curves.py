from __future__ import annotations

import io
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lowmem_seq.cli.curves import BLOCKS, MARKS, MOST_POINTS, Curve, Series, largest, mean

FIGURES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3 * MOST_POINTS)


def drawn(curve: Curve, width: int = 80, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    console = Console(file=stream, width=width, force_terminal=False)
    console.print(curve)
    stream.flush()
    raw = stream.buffer
    assert isinstance(raw, io.BytesIO)
    return raw.getvalue().decode(encoding).rstrip("\n")


@given(FIGURES)
def test_few_points_stand_for_all_values(values: list[float]) -> None:
    highest, average = Series(largest), Series(mean)
    for value in values:
        highest.add(value)
        average.add(value)
    assert len(highest.points) <= MOST_POINTS
    assert max(highest.points) == max(values)
    if len(values) <= MOST_POINTS // 2:
        assert list(average.points) == values


def test_each_point_is_the_mean_of_its_share() -> None:
    series = Series(mean)
    values = [float(number % 7) for number in range(4 * MOST_POINTS)]
    for value in values:
        series.add(value)
    share = len(values) // len(series.points)
    assert share * len(series.points) == len(values)
    expected = [fmean(values[start : start + share]) for start in range(0, len(values), share)]
    assert list(series.points) == pytest.approx(expected)


def test_a_curve_goes_from_the_lowest_block_to_the_highest() -> None:
    assert drawn(Curve([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 40)) == BLOCKS
    assert drawn(Curve([7.0, 0.0], 40)) == BLOCKS[-1] + BLOCKS[0]
    assert drawn(Curve([3.0, 3.0], 40)) == BLOCKS[0] * 2
    assert drawn(Curve([50.0, 100.0, 130.0], 40, lowest=0.0, highest=100.0)) == BLOCKS[4] + BLOCKS[-1] * 2


def test_many_points_fit_into_the_width() -> None:
    values = [float(number) for number in range(200)]
    assert len(drawn(Curve(values, 40))) == 40
    assert len(drawn(Curve(values, 40), width=10)) == 10


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_a_terminal_without_blocks_gets_marks_that_it_has(encoding: str) -> None:
    assert drawn(Curve([float(number) for number in range(8)], 40), encoding=encoding) == MARKS
