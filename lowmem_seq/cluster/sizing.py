"""How many samples a machine gets when it asks: enough for a while, and less towards the end of the run.

Near the end each machine gets half of what would let all end together, then half of that, and so on (factoring;
Hummel, Schonberg and Flynn, Communications of the ACM 35(8), 1992): speeds that were measured wrongly cost the time
of the last, small piece, and not that of a whole lease.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

TAPER = 0.5
"""Share of an equal part of what is left that is given at once, near the end of the run."""
WORTHWHILE = 0.5
"""Share of what it shall hold that a machine must lack to get more while it still holds some."""
LEAST = 1 / 16
"""Share of the wanted duration for which a machine gets work at the least."""


@dataclass(frozen=True)
class Pace:
    """A machine that is present."""

    batch: int
    """Samples of its optimizer steps."""
    samples_per_second: float
    """As measured; 0 where that is not known yet."""
    untrained: int = 0
    """Samples that it holds on lease and has not trained."""


def samples_to_give(asking: Pace, others: Sequence[Pace], free: int, seconds: float) -> int:
    """Return how many of the `free` samples a machine gets that asks, so that it holds enough for `seconds`.

    That is a multiple of its batch, or all of them where less than a batch would be left. It is none where it holds
    nearly enough, and where another machine would end all that is free before this one its least piece. Whoever
    would end all of it first and holds nothing always gets some: the run ends.
    """
    if free <= 0:
        return 0
    speed = asking.samples_per_second
    if not speed:
        return 0 if asking.untrained else _whole_batches(asking.batch, asking.batch, free)
    if others:
        work = free + asking.untrained + sum(other.untrained for other in others)
        seconds_left = work / (speed + sum(other.samples_per_second for other in others))
        wanted_seconds = min(seconds, TAPER * seconds_left)
    else:
        wanted_seconds = seconds
    wanted = speed * wanted_seconds - asking.untrained
    least = max(asking.batch, LEAST * speed * seconds)
    if asking.untrained:
        enough = wanted < max(least, WORTHWHILE * speed * wanted_seconds)
        return 0 if enough else _whole_batches(wanted, asking.batch, free)
    least = min(free, least)
    if any(_seconds_for_all(other, free) < least / speed for other in others):
        return 0
    return _whole_batches(max(wanted, least), asking.batch, free)


def _seconds_for_all(other: Pace, free: int) -> float:
    speed = other.samples_per_second
    return (other.untrained + free) / speed if speed else math.inf


def _whole_batches(wanted: float, batch: int, free: int) -> int:
    amount = min(free, max(1, int(min(wanted, free)) // batch) * batch)
    return free if free - amount < batch else amount
