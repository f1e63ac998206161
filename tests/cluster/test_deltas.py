from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.cluster.compression import BLOCK, CHUNK, CODECS, ChunkError, Chunks, Codec, Fp32, Int8
from lowmem_seq.cluster.deltas import Feedback, Parcel
from lowmem_seq.cluster.layout import Floats, Layout
from lowmem_seq.errors import UsageError
from tests.cluster.vectors import EDGES, INFINITY, NAN, content_of, flat_layout, floats, parcel_of, vector_of

ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
SIZE = 2 * CHUNK + BLOCK + 1
LOST_OF_LARGEST = {"int8": 0.5 / 127, "bf16": 2.0**-9, "fp32": 0.0}
"""How much of a block's largest magnitude a compression loses at most."""


def send(feedback: Feedback, index: int, values: Floats) -> Floats:
    """Send a chunk and return what its receiver reads."""
    values = values.copy()
    return feedback.keep(index, values, feedback.compress(index, values))


# Parcels


@ALL
@pytest.mark.parametrize("size", EDGES)
def test_a_parcel_holds_what_its_chunks_hold(codec: Codec, size: int) -> None:
    values = vector_of(size)
    parcel = parcel_of(values, codec)
    assert parcel.is_whole
    assert parcel.held_bytes == parcel.chunks.total_bytes
    assert parcel.largest >= np.abs(content_of(parcel)).max()
    assert parcel.largest == pytest.approx(np.abs(values).max(), rel=2**-8)
    for index in range(parcel.chunks.count):
        out = np.empty(parcel.chunks.size(index), np.float32)
        codec.decode(codec.encode(values[parcel.chunks.span(index)]), out)
        assert np.array_equal(parcel.read(index), out)
        assert np.array_equal(content_of(parcel)[parcel.chunks.span(index)], out)


@given(st.permutations(range(3)))
def test_chunks_may_come_in_any_order(order: list[int]) -> None:
    values = vector_of(SIZE)
    parcel, whole = Parcel(Chunks(SIZE, Int8())), parcel_of(values, Int8())
    for count, index in enumerate(order):
        assert not parcel.is_whole
        assert parcel.missing == sorted(order[count:])
        parcel.put(index, memoryview(whole.payload(index)))
    assert parcel.is_whole
    assert parcel.missing == []
    assert np.array_equal(content_of(parcel), content_of(whole))


def test_an_incomplete_parcel_is_not_copied() -> None:
    parcel = Parcel(Chunks(SIZE, Int8()))
    parcel.put(1, Int8().encode(vector_of(CHUNK)))
    flat = np.full(SIZE, 7, np.float32)
    with pytest.raises(ChunkError, match="2 of 3 chunks are missing"):
        parcel.copy_into(flat)
    assert (flat == 7).all()
    for missing in (0, 2, 3, -1):
        with pytest.raises(ChunkError, match=f"chunk {missing} of 3 is not there"):
            parcel.payload(missing)


def test_a_chunk_may_come_again_but_no_other_in_its_place() -> None:
    values = floats(1, 2, 3)
    parcel = parcel_of(values, Fp32())
    parcel.put(0, Fp32().encode(values))
    with pytest.raises(ChunkError, match="chunk 0 came before with other bytes"):
        parcel.put(0, Fp32().encode(values * 5))
    assert content_of(parcel).tolist() == [1, 2, 3]
    assert parcel.largest == 3
    assert parcel.held_bytes == 12


@pytest.mark.parametrize(
    ("index", "payload"), [(1, b""), (-1, b""), (0, b""), (0, bytes(11)), (0, bytes(13)), (0, b"\xff" * 12)]
)
def test_what_is_no_chunk_of_it_leaves_a_parcel_as_it_was(index: int, payload: bytes) -> None:
    parcel = Parcel(Chunks(3, Fp32()))
    with pytest.raises(ChunkError):
        parcel.put(index, payload)
    assert parcel.missing == [0]
    assert parcel.held_bytes == 0


def test_a_parcel_of_nothing_is_whole() -> None:
    parcel = Parcel(Chunks(0, Int8()))
    assert parcel.is_whole
    assert content_of(parcel).size == 0


# Feedback


@ALL
@given(
    rounds=st.lists(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=30),
)
def test_what_was_sent_and_what_is_left_are_all_there_was(codec: Codec, rounds: list[list[float]]) -> None:
    feedback = Feedback(flat_layout(4), codec)
    sent = np.zeros(4)
    for values in rounds:
        sent += send(feedback, 0, floats(*values))
    left = feedback.residual.astype(np.float64)
    np.testing.assert_allclose(sent + left, np.sum(rounds, axis=0), atol=len(rounds) * 1e-6)
    # bounded, however many rounds: r <= loss * (1 + r)
    loss = LOST_OF_LARGEST[codec.name]
    assert np.abs(left).max() <= loss / (1 - loss) * (1 + 1e-6) + 127 * 2.0**-64


def test_what_is_too_small_for_its_block_is_sent_in_the_end() -> None:
    feedback = Feedback(flat_layout(2), Int8())
    values = floats(1, 0.0009)
    reads = [send(feedback, 0, values) for _ in range(1000)]
    assert reads[0].tolist() == [1, 0]
    assert float(np.sum(reads, axis=0)[1]) == pytest.approx(0.9, abs=1 / 127)


def test_every_chunk_has_its_own_part_of_what_was_lost() -> None:
    feedback = Feedback(flat_layout(CHUNK + 2), Int8())
    send(feedback, 1, floats(127, 0.25))
    assert not feedback.residual[:CHUNK].any()
    assert feedback.residual[CHUNK:].tolist() == [0, 0.25]
    assert send(feedback, 1, floats(127, 0.5)).tolist() == [127, 1]
    assert feedback.residual[CHUNK:].tolist() == [0, -0.25]


@ALL
def test_a_chunk_is_compressed_to_the_same_bytes_until_it_is_kept(codec: Codec) -> None:
    feedback = Feedback(flat_layout(1000), codec)
    send(feedback, 0, vector_of(1000, 1))
    before = feedback.residual.copy()
    first, second = (feedback.compress(0, vector_of(1000, 2)) for _ in range(2))
    assert first == second
    assert np.array_equal(feedback.residual, before)


@ALL
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY, 1e20])
def test_a_value_that_means_nothing_is_told_with_its_tensor(codec: Codec, value: float) -> None:
    layout = Layout.of_shapes({"a": [CHUNK - 1], "empty": [0], "head.bias": [], "head.weight": [2, 3]})
    feedback = Feedback(layout, codec)
    for index, at, place in ((0, CHUNK - 1, "element 0 of head.bias"), (1, 4, "element 4 of head.weight")):
        values = vector_of(feedback.chunks.size(index))
        values[at] = value
        with pytest.raises(UsageError) as caught:
            feedback.compress(index, values)
        assert caught.value.message == f"the training diverged: {place} has changed by {value:g}."
    assert not feedback.residual.any()
