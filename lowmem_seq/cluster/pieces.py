"""A compressed vector as the pieces that travel: what one side cuts, and the other puts together.

A vector's chunks (compression.py), one after the other, are its bytes; a piece is `MOST_PAYLOAD_BYTES` of them, the
last one fewer. So a piece may hold the end of one chunk and the start of the next. Pieces come in order: a
connection keeps the order, and a new connection begins where the reader says.
"""

from __future__ import annotations

from collections.abc import Callable

from lowmem_seq.cluster.compression import ChunkError, Chunks
from lowmem_seq.cluster.deltas import Parcel
from lowmem_seq.cluster.frames import MOST_PAYLOAD_BYTES
from lowmem_seq.cluster.messages import Piece


def count_pieces(chunks: Chunks) -> int:
    """Return in how many pieces a vector travels."""
    return -(-chunks.total_bytes // MOST_PAYLOAD_BYTES)


class Cutter:
    """Cuts a vector into its pieces; no more than two of its chunks are held.

    Args:
        chunks: how it is compressed.
        chunk: returns a chunk's bytes; it is asked once for each, if the pieces are taken in order.
    """

    def __init__(self, chunks: Chunks, chunk: Callable[[int], bytes]) -> None:
        self.chunks, self.count = chunks, count_pieces(chunks)
        self._chunk = chunk
        self._held: dict[int, bytes] = {}

    def piece(self, index: int) -> bytes:
        """Return a piece.

        Raises:
            ChunkError: there is no such piece.
        """
        if not 0 <= index < self.count:
            raise ChunkError(f"there is no piece {index} of {self.count}")
        start = index * MOST_PAYLOAD_BYTES
        end = min(start + MOST_PAYLOAD_BYTES, self.chunks.total_bytes)
        size = self.chunks.encoded_bytes(0)  # of all chunks but the last
        wanted = range(start // size, (end - 1) // size + 1)
        self._held = {number: self._held.get(number) or self._chunk(number) for number in wanted}
        joined = b"".join(self._held.values())
        return joined[start - wanted[0] * size : end - wanted[0] * size]


class Assembly:
    """Puts the pieces of a vector together; what is held grows only by what came and fits."""

    def __init__(self, chunks: Chunks) -> None:
        self.parcel = Parcel(chunks)
        self.next_index = 0
        """The piece that must come next."""
        self._rest = b""
        self._chunks_taken = 0

    @property
    def is_whole(self) -> bool:
        """Whether all has come."""
        return self.parcel.is_whole

    def take(self, piece: Piece, payload: bytes) -> None:
        """Take the next piece in.

        Raises:
            ChunkError: it is none of this vector, or not the next one, or holds what is never sent. What came
                before is no use any more.
        """
        chunks = self.parcel.chunks
        told = (piece.encoding, piece.count, piece.total_bytes)
        if told != (chunks.codec.name, count_pieces(chunks), chunks.total_bytes):
            raise ChunkError(
                f"{piece.total_bytes:,} bytes as {piece.encoding} in {piece.count} pieces are not the "
                f"{chunks.total_bytes:,} as {chunks.codec.name} that were expected"
            )
        start = piece.index * MOST_PAYLOAD_BYTES
        wanted = min(MOST_PAYLOAD_BYTES, chunks.total_bytes - start)
        if piece.index != self.next_index or len(payload) != wanted:
            raise ChunkError(
                f"piece {piece.index} of {len(payload):,} bytes came where piece {self.next_index} was due"
            )
        data = self._rest + payload
        at = 0
        while self._chunks_taken < chunks.count and len(data) - at >= chunks.encoded_bytes(self._chunks_taken):
            size = chunks.encoded_bytes(self._chunks_taken)
            self.parcel.put(self._chunks_taken, data[at : at + size])
            at += size
            self._chunks_taken += 1
        self._rest = data[at:]
        self.next_index += 1
