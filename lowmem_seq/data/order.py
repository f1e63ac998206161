"""The one global order of samples, read at any position without walking there.

Positions count on through the epochs: epoch e of n samples holds the positions e*n to (e+1)*n - 1, and its
order is a permutation keyed by (seed, e). The permutation is a Feistel network over the next power of four,
with positions that land outside of 0..n-1 sent through again (cycle walking; Black and Rogaway, "Ciphers with
arbitrary finite domains", CT-RSA 2002), so a batch costs O(batch) wherever it lies, and resuming is a seek.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lowmem_seq.data.draws import Bits, Purpose, bits

ROUNDS = 8


@dataclass(frozen=True)
class SampleOrder:
    """A permutation of 0..size-1 for every epoch."""

    size: int
    seed: int

    def at(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the epochs and the samples at global positions, each of the shape of `positions`: (B,)."""
        epochs, within = np.divmod(positions, self.size)
        value = within.astype(np.uint64)
        outside = np.ones(value.shape, dtype=bool)
        while outside.any():
            value[outside] = self._permute_power_of_four(value[outside], epochs[outside])
            outside = value >= np.uint64(self.size)
        return epochs, value.astype(np.int64)

    def _permute_power_of_four(self, value: Bits, epochs: npt.NDArray[np.int64]) -> Bits:
        half_bits = np.uint64(max(1, ((self.size - 1).bit_length() + 1) // 2))
        mask = (np.uint64(1) << half_bits) - np.uint64(1)
        left, right = value >> half_bits, value & mask
        for turn in range(ROUNDS):
            keyed = (right.astype(np.uint64) << np.uint64(8)) | np.uint64(turn)
            left, right = right, left ^ (bits(self.seed, epochs, keyed, Purpose.ORDER) & mask)
        permuted: Bits = (left << half_bits) | right
        return permuted
