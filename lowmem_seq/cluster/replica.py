"""A machine's side of a round: from its weights to a delta, and from the hub's update back to its weights.

With B the base that all machines share, W the machine's weights and e what compression has lost:

    snapshot   A = W - B             between two optimizer steps
    chunk      send C(A + e)         while training goes on
    receive    B <- B + U            U: what the hub made of all deltas; the same bits on every machine
               e <- A + e - C(A + e) where this machine's delta is in U
    correct    W <- W + U - A         between two optimizer steps; W + U where its delta is not in U

So W - B is always the work of this machine that nobody else has yet. A delta that came too late for an update may
come in time for the next one, as it is; or a new snapshot takes its place, and holds the same work and what was
done since.

Memory: 12 bytes a parameter (B, A, e), which is 91 MB for 7.6M of them and 648 MB for 54M; the updates that were
received and not yet corrected for, in their compressed form; a few chunks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lowmem_seq.cluster.compression import Chunks, Codec
from lowmem_seq.cluster.deltas import Feedback, Parcel
from lowmem_seq.cluster.layout import Floats, Layout


class Replica:
    """What a machine shares with the others, and how far its own weights have gone beyond it.

    Not for two threads at once: the one that trains and the one that talks to the hub take turns.

    Args:
        layout: what the vectors hold.
        codec: how deltas are sent.
        base: the weights that all machines share, (elements,); it is kept and changed, not copied.
    """

    def __init__(self, layout: Layout, codec: Codec, base: Floats) -> None:
        layout.check_flat(base)
        self.layout = layout
        self.base = base
        self._feedback = Feedback(layout, codec)
        self._change: Floats = np.zeros(layout.elements, np.float32)
        self._in_flight = False
        self._updates: list[tuple[Parcel, bool]] = []

    @property
    def in_flight(self) -> bool:
        """Whether there is a delta that no update has merged yet."""
        return self._in_flight

    @property
    def needs_correction(self) -> bool:
        """Whether an update was received that the weights don't have yet."""
        return bool(self._updates)

    @property
    def chunks(self) -> Chunks:
        """How the delta is cut and compressed."""
        return self._feedback.chunks

    def snapshot(self, tensors: Mapping[str, Floats], codec: Codec | None = None) -> None:
        """Take what the weights have gone beyond the base as the next delta, in place of one that wasn't merged.

        Args:
            tensors: the weights.
            codec: how this delta is sent; None: as the one before.

        Raises:
            ValueError: the tensors aren't those of the layout, or an update was not corrected for.
        """
        if self._updates:
            raise ValueError("the weights must be corrected for the last update before a snapshot")
        self.layout.check(tensors)
        for place, part in self.layout.pieces(tensors, 0, self.layout.elements):
            np.subtract(part, self.base[place], out=self._change[place])
        if codec is not None:
            self._feedback.use(codec)
        self._in_flight = True

    def chunk(self, index: int) -> bytes:
        """Return a chunk of the delta, compressed; the same bytes each time until an update has merged it.

        Raises:
            ValueError: there is no delta.
            ChunkError: there is no such chunk.
            UsageError: a weight is not finite any more; it names the tensor.
        """
        self._require_delta()
        values = self._change[self._feedback.chunks.span(index)].copy()
        return self._feedback.compress(index, values)

    def receive(self, update: Parcel, merged: bool) -> None:
        """Move the base on by an update of the hub; the weights follow by `correct`.

        Args:
            update: all of its chunks. It is held until the weights are corrected.
            merged: whether this machine's delta is in it.

        Raises:
            ChunkError: a chunk is missing; nothing has changed.
            ValueError: it is of another length, or there is no delta that it can have merged; nothing has changed.
        """
        self._require_fit(update)
        if merged:
            self._require_delta()
        for index in range(update.chunks.count):
            span = update.chunks.span(index)
            if merged:
                values = self._change[span].copy()
                self._feedback.keep(index, values, self._feedback.compress(index, values))
            self.base[span] += update.read(index)
        self._in_flight = self._in_flight and not merged
        self._updates.append((update, merged))

    def correct(self, tensors: Mapping[str, Floats]) -> None:
        """Add to the weights, in place, what the updates since the last time bring from the others.

        Raises:
            ValueError: the tensors aren't those of the layout; nothing has changed.
        """
        self.layout.check(tensors)
        for update, merged in self._updates:
            for index in range(update.chunks.count):
                span = update.chunks.span(index)
                correction = update.read(index)
                if merged:
                    correction -= self._change[span]
                for place, part in self.layout.pieces(tensors, span.start, span.stop):
                    part += correction[place]
        self._updates.clear()

    def adopt(self, base: Parcel, tensors: Mapping[str, Floats]) -> None:
        """Begin anew at the base of the others: what this machine had not brought in is dropped.

        Args:
            base: all chunks of it.
            tensors: the weights, which become the base.

        Raises:
            ChunkError: a chunk is missing; nothing has changed.
            ValueError: the base has another length, or the tensors aren't those of the layout; nothing has changed.
        """
        self._require_fit(base)
        self.layout.check(tensors)
        base.copy_into(self.base)
        self.settle(tensors)

    def begin_here(self, tensors: Mapping[str, Floats]) -> None:
        """Take the weights as the base, for a machine that goes on alone: its work is in it, and nobody else's.

        Raises:
            ValueError: the tensors aren't those of the layout; nothing has changed.
        """
        self.layout.flatten(tensors, self.base)
        self._begin_anew()

    def settle(self, tensors: Mapping[str, Floats]) -> None:
        """Begin anew at the base that is here, as at the end of the run: what was not brought in is dropped.

        Raises:
            ValueError: the tensors aren't those of the layout; nothing has changed.
        """
        self.layout.check(tensors)
        for name, weights in self.layout.views(self.base).items():
            np.copyto(tensors[name], weights)
        self._begin_anew()

    def state(self) -> dict[str, Floats]:
        """The live vectors that a checkpoint holds beside the weights, each (elements,).

        A delta in flight is not among them: what it held is in the weights.

        Raises:
            ValueError: the weights must be corrected for the last update first.
        """
        if self._updates:
            raise ValueError("the weights must be corrected for the last update before a checkpoint")
        return {"base": self.base, "residual": self._feedback.residual}

    def load(self, state: Mapping[str, Floats]) -> None:
        """Go on from what `state` returned, with no delta in flight.

        Raises:
            ValueError: as `Layout.load`; nothing has changed.
        """
        self.layout.load({"base": self.base, "residual": self._feedback.residual}, state)
        self._in_flight = False
        self._updates.clear()

    def _begin_anew(self) -> None:
        self._feedback.residual.fill(0)
        self._in_flight = False
        self._updates.clear()

    def _require_delta(self) -> None:
        if not self._in_flight:
            raise ValueError("there is no delta")

    def _require_fit(self, parcel: Parcel) -> None:
        parcel.require_whole()
        if parcel.chunks.elements != self.layout.elements:
            raise ValueError(f"{parcel.chunks.elements:,} elements came for {self.layout.elements:,}")
