"""Which samples a machine trains first when it goes on alone.

What it trains shall be apart from what others train that go on alone as well, as long as that is possible without
leaving the epoch: the learning rate follows the position, and a sample counts once an epoch. Each epoch is cut into
blocks that belong to the machines in turn, so that all agree on whose a block is, even where one of them knew a
round less when they lost each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lowmem_seq.cluster.ranges import Range, Ranges

BLOCKS_EACH = 8
"""In an epoch: of what is left of one, everybody's part is then about equal."""
ROUND_SAMPLES = 512
"""Blocks are multiples of this where they are larger: batches fit in."""


@dataclass(frozen=True)
class Alone:
    """A machine that goes on alone."""

    machine: str
    machines: tuple[str, ...]
    """All that took part when they lost each other, sorted; this one is among them."""


def order_alone(free: Ranges, given_before: Ranges, epoch_size: int, alone: Alone) -> Iterator[Range]:
    """Yield the free ranges in the order in which a lone machine trains them, epoch by epoch.

    First come its own blocks without what others had on lease, then the rest of the epoch.
    """
    for start, end in _epochs(free, epoch_size):
        first = Ranges()
        for block in blocks_of(start, end, alone):
            for part in free.overlap(*block):
                for piece in given_before.gaps(*part):
                    first.add(*piece)
        yield from first
        for part in free.overlap(start, end):
            yield from first.gaps(*part)


def blocks_of(start: int, end: int, alone: Alone) -> Iterator[Range]:
    """Yield the blocks of an epoch, told by its first and the next one's first position, that are the machine's."""
    count = len(alone.machines)
    size = max(1, (end - start) // (BLOCKS_EACH * count))
    if size > ROUND_SAMPLES:
        size -= size % ROUND_SAMPLES
    for first in range(start + alone.machines.index(alone.machine) * size, end, count * size):
        yield first, min(first + size, end)


def _epochs(free: Ranges, epoch_size: int) -> Iterator[Range]:
    """Yield the epochs of which something is free."""
    done = 0
    for start, end in free:
        first = max(start, done)
        while first < end:
            done = (first // epoch_size + 1) * epoch_size
            yield first // epoch_size * epoch_size, done
            first = done
