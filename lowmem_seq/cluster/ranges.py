"""Sets of positions as few ranges: sorted, apart from each other, neighbours merged.

A position may be as large as 10^12, so nothing here is done for each of them: an operation costs a bisection, and
moving the ranges behind the place that changes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
"""The positions from the first value up to, and without, the second."""


class Ranges:
    """A set of positions.

    Args:
        ranges: what is in it, in any order.

    Raises:
        ValueError: a range is empty or backwards, or two overlap.
    """

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._size = 0
        for start, end in ranges:
            self.add(start, end)

    @property
    def size(self) -> int:
        """How many positions are in it."""
        return self._size

    def __iter__(self) -> Iterator[Range]:
        """The ranges, lowest first."""
        return zip(self._starts, self._ends, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and (self._starts, self._ends) == (other._starts, other._ends)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Ranges({list(self)})"

    def copy(self) -> Ranges:
        """Return a set of its own with the same positions."""
        other = Ranges()
        other._starts, other._ends, other._size = self._starts[:], self._ends[:], self._size
        return other

    def add(self, start: int, end: int) -> None:
        """Put positions in, none of which is in yet.

        Raises:
            ValueError: the range is empty or backwards, or some of it is in already.
        """
        if not start < end:
            raise ValueError(f"{start} to {end} is no range")
        place = bisect_left(self._starts, start)
        is_last = place == len(self._starts)
        if (place > 0 and self._ends[place - 1] > start) or (not is_last and self._starts[place] < end):
            raise ValueError(f"some of {start} to {end} is there already")
        first = place - 1 if place > 0 and self._ends[place - 1] == start else place
        last = place + 1 if not is_last and self._starts[place] == end else place
        starts, ends = [start, *self._starts[first:last]], [end, *self._ends[first:last]]
        self._starts[first:last], self._ends[first:last] = [min(starts)], [max(ends)]
        self._size += end - start

    def remove(self, start: int, end: int) -> None:
        """Take positions out, all of which are in.

        Raises:
            ValueError: the range is empty or backwards, or some of it is not in.
        """
        if not self.covers(start, end):
            raise ValueError(f"not all of {start} to {end} is there")
        place = bisect_right(self._starts, start) - 1
        around = ((self._starts[place], start), (end, self._ends[place]))
        kept = [(one, other) for one, other in around if one < other]
        self._starts[place : place + 1] = [one for one, _ in kept]
        self._ends[place : place + 1] = [other for _, other in kept]
        self._size -= end - start

    def include(self, start: int, end: int) -> None:
        """Put in what is not in yet."""
        for gap in self.gaps(start, end):
            self.add(*gap)

    def discard(self, start: int, end: int) -> int:
        """Take out what is in; return how many positions that were."""
        before = self._size
        for part in self.overlap(start, end):
            self.remove(*part)
        return before - self._size

    def covers(self, start: int, end: int) -> bool:
        """Whether the range is one, and all of it is in."""
        place = bisect_right(self._starts, start) - 1
        return start < end and place >= 0 and end <= self._ends[place]

    def overlap(self, start: int, end: int) -> list[Range]:
        """Return what is in of these positions, lowest first."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        inside = zip(self._starts[first:last], self._ends[first:last], strict=True)
        return [(max(start, one), min(end, other)) for one, other in inside]

    def gaps(self, start: int, end: int) -> list[Range]:
        """Return what is not in of these positions, lowest first."""
        parts = self.overlap(start, end)
        begins, ends = [start, *(end for _, end in parts)], [*(begin for begin, _ in parts), end]
        return [(begin, end) for begin, end in zip(begins, ends, strict=True) if begin < end]


def lowest(ranges: Iterable[Range], amount: int) -> list[Range]:
    """Return the first `amount` positions of ranges, or all where there are fewer, in their order."""
    taken: list[Range] = []
    for start, end in ranges:
        if amount <= 0:
            break
        taken.append((start, min(end, start + amount)))
        amount -= end - start
    return taken
