"""The hub's side of a round: from the machines' deltas to one update, the same for all.

The deltas are kept as they came, compressed, until the round closes; then the vector is walked through once, chunk
by chunk: the average, the outer step, what compression lost before, the compressed update. So nothing has to be
taken back when a machine drops out half way, and the result depends on who takes part, not on who came first.

Memory: 8 bytes a parameter (base, residual), 4 more with momentum, and for int8 1.016 for each machine's delta and
for the update; on top a few chunks. For N machines, int8, plain average: 68 + 7.7 N MB for 7.6M parameters,
487 + 55 N MB for 54M.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lowmem_seq.cluster.compression import Chunks, Codec, Fp32
from lowmem_seq.cluster.deltas import Feedback, Parcel
from lowmem_seq.cluster.layout import Floats, Layout

MOST_SAMPLES = 2**53
LARGEST_CHANGE = 2.0**32
"""The largest magnitude in a delta. No weight changes by as much in a round, and no outer step makes an update of
it that is too large to be sent: a machine that went astray can't stop the others."""
LARGEST_RATE = 10.0
LARGEST_MOMENTUM = 0.99
EXACT = Fp32()
"""How a base is sent: a joiner's has to have the same bits as everybody's."""


@dataclass(frozen=True)
class OuterStep:
    """How the average of the deltas becomes the update, with a velocity V that begins at 0.

    The plain average: U = average. With momentum m and rate r (slow momentum, arXiv 1910.00643, algorithm 1, with
    the inner learning rate taken as constant): V <- m V + average, U = r V. With Nesterov's (DiLoCo, arXiv
    2311.08105, section 2): V <- m V + average, U = r (average + m V).

    Raises:
        ValueError: the rate is not above 0 and up to 10, or the momentum not from 0 to 0.99.
    """

    rate: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False
    """Whether the momentum is Nesterov's; without momentum it makes no difference."""

    def __post_init__(self) -> None:
        if not 0 < self.rate <= LARGEST_RATE:
            raise ValueError(f"the rate must be above 0 and at most {LARGEST_RATE:g}, not {self.rate}")
        if not 0 <= self.momentum <= LARGEST_MOMENTUM:
            raise ValueError(f"the momentum must be from 0 to {LARGEST_MOMENTUM:g}, not {self.momentum}")

    def apply(self, average: Floats, velocity: Floats | None) -> None:
        """Turn an average into an update, in place.

        Args:
            average: of the deltas.
            velocity: V, which is moved on; None where the momentum is 0.

        Shapes:
            average, velocity: (n,)
        """
        if velocity is not None:
            velocity *= np.float32(self.momentum)
            velocity += average
            if self.nesterov:
                average += velocity * np.float32(self.momentum)
            else:
                np.copyto(average, velocity)
        if self.rate != 1:
            average *= np.float32(self.rate)


@dataclass(frozen=True)
class Contribution:
    """What one machine brings into a round."""

    samples: int
    """That it was trained on; its weight in the average."""
    delta: Parcel


class SharedWeights:
    """The weights that all machines share, at the hub, and what makes the next ones of deltas.

    Args:
        layout: what the vectors hold.
        codec: how updates are sent.
        step: what is made of the average.
        base: the weights that all machines share, (elements,); it is kept and changed, not copied.
    """

    def __init__(self, layout: Layout, codec: Codec, step: OuterStep, base: Floats) -> None:
        layout.check_flat(base)
        self.layout = layout
        self.base = base
        self._step = step
        self._feedback = Feedback(layout, codec)
        self._velocity: Floats | None = np.zeros(layout.elements, np.float32) if step.momentum else None

    def merge(self, contributions: Mapping[str, Contribution]) -> Parcel:
        """Close a round: move the base on by the update that is made of these deltas, and return that update.

        One machine's delta alone is its own average, exactly.

        Args:
            contributions: by machine. Their deltas may have been compressed in different ways.

        Raises:
            ChunkError: chunks of a delta are missing; nothing has changed.
            ValueError: there is no delta, or `find_fault` finds one; nothing has changed.
        """
        if not contributions:
            raise ValueError("there is no delta to merge")
        for machine, contribution in contributions.items():
            contribution.delta.require_whole()
            fault = self.find_fault(contribution)
            if fault is not None:
                raise ValueError(f"the delta of {machine} can't be used: {fault}")
        total = sum(contribution.samples for contribution in contributions.values())
        parts = [  # in one order, because float32 sums depend on it
            (np.float32(contribution.samples / total), contribution.delta)
            for _, contribution in sorted(contributions.items())
        ]
        update = Parcel(self._feedback.chunks)
        for index in range(update.chunks.count):
            span = update.chunks.span(index)
            change = np.zeros(update.chunks.size(index), np.float32)
            for share, delta in parts:
                values = delta.read(index)
                values *= share
                change += values
            self._step.apply(change, None if self._velocity is None else self._velocity[span])
            payload = self._feedback.compress(index, change)
            self.base[span] += self._feedback.keep(index, change, payload)
            update.put(index, payload)
        return update

    def send_as(self, codec: Codec) -> None:
        """Compress updates like this from now on; what was lost before still comes later."""
        self._feedback.chunks = Chunks(self.layout.elements, codec)

    def begin_at(self, base: Parcel) -> None:
        """Take other weights as the base, without anything that was left over from rounds before.

        Raises:
            ChunkError: chunks are missing; nothing has changed.
            ValueError: it is of another length; nothing has changed.
        """
        if base.chunks.elements != self.layout.elements:
            raise ValueError(f"{base.chunks.elements:,} elements came for {self.layout.elements:,}")
        base.copy_into(self.base)
        self._feedback.residual.fill(0)
        if self._velocity is not None:
            self._velocity.fill(0)

    def base_chunk(self, index: int) -> bytes:
        """Return a chunk of the base as it is now, uncompressed (fp32), for a machine that joins.

        Chunks that were taken before and after a `merge` belong together once the update is added to the earlier.

        Raises:
            ChunkError: there is no such chunk.
        """
        return EXACT.encode(self.base[Chunks(self.layout.elements, EXACT).span(index)])

    def find_fault(self, contribution: Contribution) -> str | None:
        """Return why a contribution can't be merged, as far as its chunks have come; None: nothing is wrong."""
        if not 1 <= contribution.samples <= MOST_SAMPLES:
            return f"it is said to hold the work of {contribution.samples:,} samples"
        if contribution.delta.chunks.elements != self.layout.elements:
            return f"it has {contribution.delta.chunks.elements:,} elements, not {self.layout.elements:,}"
        if contribution.delta.largest > LARGEST_CHANGE:
            return f"a weight has changed by {contribution.delta.largest:g}"
        return None

    def state(self) -> dict[str, Floats]:
        """The live vectors that a checkpoint holds, each (elements,): base, residual, with momentum velocity."""
        vectors = {"base": self.base, "residual": self._feedback.residual}
        if self._velocity is not None:
            vectors["velocity"] = self._velocity
        return vectors

    def load(self, state: Mapping[str, Floats]) -> None:
        """Go on from what `state` returned.

        Raises:
            ValueError: as `Layout.load`; nothing has changed.
        """
        self.layout.load(self.state(), state)
