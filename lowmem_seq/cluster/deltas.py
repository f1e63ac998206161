"""A compressed vector on its way: what has come of it, and what its compression lost.

A vector travels in chunks. Who receives it keeps them as they came until all are there: then it counts, and
before that nothing has been touched that would have to be taken back. Who sends it adds to each vector what
compression lost of those before (error feedback, arXiv 1901.09847): nothing is lost for good, it only comes later.
"""

from __future__ import annotations

import numpy as np

from lowmem_seq.cluster.compression import ChunkError, Chunks, Codec, Payload, UnsendableError
from lowmem_seq.cluster.layout import Floats, Layout
from lowmem_seq.errors import UsageError


class Parcel:
    """A compressed vector, chunk by chunk as they come, in any order."""

    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks
        self.largest = 0.0
        """Largest magnitude of any element so far, or a little more."""
        self._payloads: dict[int, bytes] = {}

    def put(self, index: int, payload: Payload) -> None:
        """Take a chunk in. One that is there already may come again, as after a connection that broke.

        Raises:
            ChunkError: it is none of this vector, or another one than came before; the parcel is as it was.
        """
        payload = bytes(payload)
        largest = self.chunks.codec.check(payload, self.chunks.size(index))
        if self._payloads.setdefault(index, payload) != payload:
            raise ChunkError(f"chunk {index} came before with other bytes")
        self.largest = max(self.largest, largest)

    @property
    def missing(self) -> list[int]:
        """The chunks that have not come yet."""
        return [index for index in range(self.chunks.count) if index not in self._payloads]

    @property
    def is_whole(self) -> bool:
        """Whether all chunks are there."""
        return len(self._payloads) == self.chunks.count

    @property
    def held_bytes(self) -> int:
        """What the chunks that are there take in memory."""
        return sum(map(len, self._payloads.values()))

    def payload(self, index: int) -> bytes:
        """Return a chunk as it came.

        Raises:
            ChunkError: it hasn't come, or there is no such chunk.
        """
        if index not in self._payloads:
            raise ChunkError(f"chunk {index} of {self.chunks.count} is not there")
        return self._payloads[index]

    def read(self, index: int) -> Floats:
        """Return the elements of a chunk.

        Shapes:
            -> (n,)

        Raises:
            ChunkError: it hasn't come, or there is no such chunk.
        """
        payload = self.payload(index)
        values = np.empty(self.chunks.size(index), np.float32)
        self.chunks.codec.decode(payload, values)
        return values

    def copy_into(self, flat: Floats) -> None:
        """Write the whole vector.

        Shapes:
            flat: (elements,)

        Raises:
            ChunkError: chunks are missing; nothing was written.
        """
        self.require_whole()
        for index in range(self.chunks.count):
            flat[self.chunks.span(index)] = self.read(index)

    def require_whole(self) -> None:
        """Make sure that all chunks are there.

        Raises:
            ChunkError: they aren't.
        """
        if not self.is_whole:
            raise ChunkError(f"{len(self.missing)} of {self.chunks.count} chunks are missing")


class Feedback:
    """What compression has lost so far of the vectors that were sent, to be sent with the next one.

    A chunk is compressed as often as it is asked for, to the same bytes, and only `keep` counts it as sent. So
    it can be sent again though nobody held on to it, and where a vector never counts nothing has to be undone.
    """

    def __init__(self, layout: Layout, codec: Codec) -> None:
        self.layout = layout
        self.chunks = Chunks(layout.elements, codec)
        self.residual: Floats = np.zeros(layout.elements, np.float32)
        """(elements,): of an int8 chunk never more than half of its blocks' scales; 0 everywhere with fp32."""

    def use(self, codec: Codec) -> None:
        """Compress from now on in another way; what was lost before is still sent with the next vector."""
        self.chunks = Chunks(self.layout.elements, codec)

    def compress(self, index: int, values: Floats) -> bytes:
        """Return what to send for a chunk of a vector.

        Args:
            index: which chunk.
            values: its elements; what was lost before is added to them in place.

        Shapes:
            values: (n,)

        Raises:
            UsageError: one of them is not finite, or too large to mean anything; it names the tensor.
            ChunkError: there is no such chunk.
        """
        span = self.chunks.span(index)
        values += self.residual[span]
        try:
            return self.chunks.codec.encode(values)
        except UnsendableError as error:
            name, position = self.layout.where(span.start + error.position)
            raise UsageError(
                f"the training diverged: element {position} of {name} has changed by {error.value:g}.",
                "go on from the newest checkpoint, or start again with a lower learning rate",
            ) from error

    def keep(self, index: int, values: Floats, payload: bytes) -> Floats:
        """Count a chunk as sent, and return what its receivers read.

        Args:
            index: which chunk.
            values: its elements as `compress` left them.
            payload: what `compress` returned.

        Shapes:
            values: (n,) -> (n,)
        """
        read = np.empty_like(values)
        self.chunks.codec.decode(payload, read)
        np.subtract(values, read, out=self.residual[self.chunks.span(index)])
        return read
