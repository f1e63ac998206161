"""Every random draw of a run, as a pure function of (seed, epoch, sample, purpose).

A generator has a state that has to be carried along, saved, and kept in step with the work. This has none: the
draws for sample 17 in epoch 3 are the same in whichever micro-batch, process, machine or session they are
asked for. The mixing function is SplitMix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014; constants of variant 13), on 64-bit integers only, so that every system gets the
same bits. Its values are pinned by tests: changing them changes every run that is under way.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[np.uint64]
Integers: TypeAlias = npt.NDArray[np.integer] | npt.NDArray[np.uint64] | npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


class Purpose(IntEnum):
    """What a draw is for. Numbers are part of the format: never reused, never changed."""

    ORDER = 1
    VALIDATION = 2
    AUGMENTATION = 3
    MIXING = 4
    DROP_PATH = 5
    DROPOUT = 6
    INITIALISATION = 7


def _mix(value: Bits) -> Bits:
    first: Bits = (value ^ (value >> np.uint64(30))) * _FIRST
    second: Bits = (first ^ (first >> np.uint64(27))) * _SECOND
    mixed: Bits = second ^ (second >> np.uint64(31))
    return mixed


def bits(seed: int, epoch: int | Integers, sample: int | Integers, purpose: Purpose) -> Bits:
    """Return 64 random bits for each pair of `epoch` and `sample`: (B,), scalars count as one."""
    key = np.full(1, seed, dtype=np.uint64)
    for part in (int(purpose), epoch, sample):
        key = _mix(key + (np.atleast_1d(np.asarray(part)).astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return key


def uniforms(
    seed: int, epoch: int | Integers, sample: Integers, purpose: Purpose, count: int
) -> npt.NDArray[np.float32]:
    """Return `count` numbers in [0, 1) for each sample: (B, count), exact multiples of 2^-24."""
    keys = bits(seed, epoch, sample, purpose)  # (B,)
    counters = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * _GOLDEN  # (count,)
    words = _mix(keys[:, None] + counters[None, :])  # (B, count)
    numbers: npt.NDArray[np.float32] = (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return numbers
