"""A curve of any length in bounded memory: of each stretch the first, lowest, highest and last point stay.

A peak or a dip is what one looks for in a curve, so none may be lost when it is thinned out. Points are gathered in
stretches of equal width; when these become too many, two neighbours become one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

MOST_STRETCHES = 400


class Point(NamedTuple):
    """One value of a curve."""

    x: float
    y: float
    at: float | None = None
    """When it was seen, in seconds since 1970."""


class Series:
    """Points in the order of x, at most four a stretch.

    Args:
        most_stretches: how many stay; two at the least.
        width: of a stretch at the beginning, in units of x.
    """

    def __init__(self, most_stretches: int = MOST_STRETCHES, width: float = 1.0) -> None:
        self._most, self._width = max(2, most_stretches), width
        self._stretches: dict[int, list[Point]] = {}

    def add(self, x: float, y: float, at: float | None = None) -> None:
        """Take a point in; x need not grow."""
        index, point = int(x // self._width), Point(x, y, at)
        stretch = self._stretches.get(index)
        if stretch is not None:
            _widen(stretch, point)
            return
        self._stretches[index] = [point] * 4
        while len(self._stretches) > self._most:
            self._join_neighbours()

    def forget_after(self, x: float) -> None:
        """Drop what lies beyond x: a session went on from there."""
        for index in [index for index in self._stretches if (index + 1) * self._width > x]:
            left = [point for point in dict.fromkeys(self._stretches.pop(index)) if point.x <= x]
            if left:
                self._stretches[index] = _gathered(left)

    def __iter__(self) -> Iterator[Point]:
        """Yield the points that stayed, in the order of x."""
        for index in sorted(self._stretches):
            yield from sorted(dict.fromkeys(self._stretches[index]))

    def __len__(self) -> int:
        return sum(len(set(stretch)) for stretch in self._stretches.values())

    def _join_neighbours(self) -> None:
        before, self._stretches, self._width = self._stretches, {}, 2 * self._width
        for index, stretch in before.items():
            into = self._stretches.setdefault(index // 2, stretch)
            if into is not stretch:
                for point in stretch:
                    _widen(into, point)


def _widen(stretch: list[Point], point: Point) -> None:
    """Have a stretch (first, lowest, highest, last) take a point in."""
    first, lowest, highest, last = stretch
    if point.x < first.x:
        stretch[0] = point
    if point.y < lowest.y:
        stretch[1] = point
    if point.y > highest.y:
        stretch[2] = point
    if point.x >= last.x:
        stretch[3] = point


def _gathered(points: Iterable[Point]) -> list[Point]:
    first, *rest = points
    stretch = [first] * 4
    for point in rest:
        _widen(stretch, point)
    return stretch
