from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from lowmem_seq.cluster.compression import CHUNK, CODECS, ChunkError, Chunks, Codec
from lowmem_seq.cluster.frames import MOST_PAYLOAD_BYTES
from lowmem_seq.cluster.messages import Encoding, UploadPiece
from lowmem_seq.cluster.pieces import Assembly, Cutter, count_pieces
from tests.cluster.vectors import content_of, parcel_of, vector_of
from tests.cluster.wires import BASE

SIZES = [1, 300, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 65537]


def piece_of(number: int, chunks: Chunks, **changes: object) -> UploadPiece:
    told: dict[str, object] = {
        "encoding": chunks.codec.name,
        "index": number,
        "count": count_pieces(chunks),
        "total_bytes": chunks.total_bytes,
        "base": BASE,
    }
    return UploadPiece(**{**told, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
@pytest.mark.parametrize("elements", SIZES)
def test_a_vector_arrives_as_it_was(elements: int, codec: Codec) -> None:
    sent = parcel_of(vector_of(elements), codec)
    cutter, assembly = Cutter(sent.chunks, sent.payload), Assembly(sent.chunks)
    whole = b"".join(sent.payload(index) for index in range(sent.chunks.count))
    for index in range(cutter.count):
        assert not assembly.is_whole
        payload = cutter.piece(index)
        assert payload == whole[index * MOST_PAYLOAD_BYTES :][:MOST_PAYLOAD_BYTES]
        assembly.take(piece_of(index, sent.chunks), payload)
    assert assembly.is_whole
    assert np.array_equal(content_of(assembly.parcel), content_of(sent))


def test_each_chunk_is_made_once_where_pieces_are_taken_in_order() -> None:
    sent = parcel_of(vector_of(5 * CHUNK), CODECS["int8"])
    asked = []

    def chunk(index: int) -> bytes:
        asked.append(index)
        return sent.payload(index)

    cutter = Cutter(sent.chunks, chunk)
    for index in range(cutter.count):
        cutter.piece(index)
    assert asked == [0, 1, 2, 3, 4]
    for index in (-1, cutter.count):
        with pytest.raises(ChunkError, match="there is no piece"):
            cutter.piece(index)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoding": "bf16"}, "are not the"),
        ({"count": 6}, "are not the"),
        ({"total_bytes": 2**33}, "are not the"),
        ({"index": 1}, "where piece 0 was due"),
    ],
)
def test_a_piece_that_is_not_due_is_refused(changes: dict[str, object], words: str) -> None:
    sent = parcel_of(vector_of(CHUNK), CODECS["fp32"])
    assembly = Assembly(sent.chunks)
    with pytest.raises(ChunkError, match=words):
        assembly.take(piece_of(0, sent.chunks, **changes), bytes(MOST_PAYLOAD_BYTES))
    with pytest.raises(ChunkError, match="where piece 0 was due"):
        assembly.take(piece_of(0, sent.chunks), bytes(MOST_PAYLOAD_BYTES - 1))
    last = count_pieces(sent.chunks) - 1
    for index in range(last):
        assembly.take(piece_of(index, sent.chunks), b"\xff" * MOST_PAYLOAD_BYTES)
    with pytest.raises(ChunkError, match="none that is sent"):
        assembly.take(piece_of(last, sent.chunks), b"\xff" * MOST_PAYLOAD_BYTES)


def test_what_pieces_say_and_what_codecs_there_are_is_one_list() -> None:
    assert set(get_args(Encoding)) == CODECS.keys()
