"""Curves of one line of text: figures as they come, kept in little memory, and drawn as blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

MOST_POINTS = 256
BLOCKS, MARKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
"""What a value is drawn as, from the least to the largest, where the terminal has blocks and where it hasn't."""
Combine = Callable[[float, float, int], float]


def mean(before: float, value: float, count: int) -> float:
    """Return the mean of `count` values, of which `before` is the mean of all but the last."""
    return before + (value - before) / count


def largest(before: float, value: float, _count: int) -> float:
    """Return the larger one."""
    return max(before, value)


class Series:
    """Ever more values, of which each point that is kept stands for equally many.

    Args:
        combine: makes one of those that a point stands for.
    """

    def __init__(self, combine: Combine) -> None:
        self._combine = combine
        self._points: list[float] = []
        self._every, self._count = 1, 0

    def add(self, value: float) -> None:
        """Take in one value more."""
        self._count += 1
        if self._count == 1:
            self._points.append(value)
        else:
            self._points[-1] = self._combine(self._points[-1], value, self._count)
        if self._count == self._every:
            self._count = 0
            if len(self._points) >= MOST_POINTS:
                self._points = list(_halved(self._points, self._combine))
                self._every *= 2

    @property
    def points(self) -> Sequence[float]:
        """Those that are kept, oldest first."""
        return self._points


def _halved(points: Sequence[float], combine: Combine) -> Iterator[float]:
    return (combine(one, other, 2) for one, other in zip(points[::2], points[1::2], strict=True))


class Curve:
    """Draws points over the width that there is.

    Args:
        points: oldest first.
        lowest: drawn as the lowest block; None takes the least point.
        highest: drawn as the highest block; None takes the largest point.
        widest: characters that it takes at the most.
    """

    def __init__(
        self, points: Sequence[float], widest: int, lowest: float | None = None, highest: float | None = None
    ) -> None:
        self._points, self._widest = points, widest
        self._lowest = min(points, default=0.0) if lowest is None else lowest
        self._highest = max(points, default=0.0) if highest is None else highest

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(self._widest, options.max_width, len(self._points))
        marks = MARKS if options.ascii_only or options.legacy_windows else BLOCKS
        yield Text("".join(self._mark(value, marks) for value in _spread(self._points, width)))

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, max(1, min(self._widest, options.max_width, len(self._points))))

    def _mark(self, value: float, marks: str) -> str:
        span = self._highest - self._lowest
        share = (value - self._lowest) / span if span > 0 else 0.0
        return marks[min(len(marks) - 1, max(0, int(share * len(marks))))]


def _spread(points: Sequence[float], width: int) -> Iterator[float]:
    """Yield `width` means, each over its share of the points."""
    for index in range(width):
        share = points[index * len(points) // width : (index + 1) * len(points) // width]
        yield sum(share) / len(share)
