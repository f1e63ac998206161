"""How the samples of a step are shared out to the ranks: contiguous parts, by speed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from lowmem_seq.cluster.ranges import Range


def cuts(samples: int, speeds: Sequence[float]) -> list[int]:
    """Return where each rank's part of so many samples begins, and at last where the last one's ends.

    A part is as large as its rank's speed is of all speeds, to within two samples: cuts are even, so that images
    that are mixed with each other stay together. Where no speed is known all parts are alike.
    """
    known = list(speeds) if sum(speeds) > 0 else [1.0] * len(speeds)
    ends = [round(samples * before / sum(known) / 2) * 2 for before in accumulate(known)]
    return [0, *(min(end, samples) for end in ends[:-1]), samples]


def part_of(ranges: Sequence[Range], start: int, end: int) -> list[Range]:
    """Return the samples from the start-th to the one before the end-th of some ranges."""
    found: list[Range] = []
    before = 0
    for first, after in ranges:
        begin, stop = max(first, first + start - before), min(after, first + end - before)
        if begin < stop:
            found.append((begin, stop))
        before += after - first
    return found


def speeds_by_kind(kinds: Sequence[tuple[str, ...]], speeds: Sequence[float]) -> list[float]:
    """Return the speeds with equals levelled: what ranks of one kind differ in is how they were measured.

    Args:
        kinds: of each rank its machine, device and whatever else makes it equal to another one.
        speeds: images/s, as each rank's plan knows it.
    """
    known: dict[tuple[str, ...], list[float]] = {}
    for kind, speed in zip(kinds, speeds, strict=True):
        known.setdefault(kind, []).append(speed)
    return [sum(known[kind]) / len(known[kind]) for kind in kinds]
