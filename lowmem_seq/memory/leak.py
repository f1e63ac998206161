"""Whether a process holds a little more after every step than after the one before.

Allocators hold more and less from step to step, and fill up for a while at the start. So only the least that was
held within each of many spans of time counts, and only if it rises along a line that chance doesn't draw.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

from lowmem_seq.units import format_bytes

SPAN_SECONDS = 10.0
SPANS = 12
"""Two minutes; what was before them (a start, say) is forgotten."""
LEAST_GROWTH_BYTES = 16 * 2**20
"""Over the spans; less is what allocators do."""
STEADY = 0.7
"""Share of the slope of the first half of the spans that the second half's must have: what fills up slows down."""
SURE = 8.0
"""How many times its standard error the slope must be."""


class LeakWatch:
    """Notices growth that won't fit until the end of the run.

    Args:
        room_bytes: what the process may hold.
        clock: seconds.
    """

    def __init__(self, room_bytes: int, clock: Callable[[], float]) -> None:
        self._room_bytes, self._clock = room_bytes, clock
        self.noticed: str | None = None
        """What was noticed, as a clause."""
        self.start_anew()

    def start_anew(self) -> None:
        """Forget what was held until now: something else is computed from here on."""
        self._spans: deque[tuple[float, float]] = deque(maxlen=SPANS)
        self._span_ends = self._clock() + SPAN_SECONDS
        self._least: tuple[float, float] | None = None
        self._step = 0

    def step_ended(self, held_bytes: int, steps_left: int) -> str | None:
        """Hear what is held after a step; return words about a leak when one is noticed for the first time."""
        self._step += 1
        if self._least is None or held_bytes < self._least[1]:
            self._least = (float(self._step), float(held_bytes))
        if self._clock() < self._span_ends:
            return None
        self._spans.append(self._least)
        self._least, self._span_ends = None, self._clock() + SPAN_SECONDS
        if self.noticed is not None or len(self._spans) < SPANS:
            return None
        spans = list(self._spans)
        slope, error = line(spans)
        first, last = line(spans[: SPANS // 2])[0], line(spans[SPANS // 2 :])[0]
        at_the_end = spans[-1][1] + slope * steps_left
        if spans[-1][1] - spans[0][1] < LEAST_GROWTH_BYTES or slope < SURE * error or last < STEADY * first:
            return None
        if at_the_end < self._room_bytes:
            return None
        self.noticed = f"memory grows by {format_bytes(round(slope))} a step"
        end, room = format_bytes(round(at_the_end)), format_bytes(self._room_bytes)
        return f"{self.noticed}: {end} by the end of the run, and {room} are there"


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the slope of the least-squares line through at least three points, and the slope's standard error."""
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return slope, math.sqrt(rest / (count - 2) / spread)
