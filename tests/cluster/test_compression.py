from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.cluster.compression import (
    BLOCK,
    CHUNK,
    CODECS,
    LARGEST,
    SMALLEST_SCALE,
    Bf16,
    ChunkError,
    Chunks,
    Codec,
    Fp32,
    Int8,
    UnsendableError,
)
from lowmem_seq.cluster.layout import Floats
from tests.cluster.vectors import EDGES, INFINITY, NAN, floats, vector_of

ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)

sendable = st.floats(-LARGEST, LARGEST, width=32)
vectors = st.lists(sendable, max_size=12).map(lambda values: floats(*values))
magnitudes = st.floats(float(np.float32(128 * SMALLEST_SCALE)), LARGEST, width=32)


def decoded(codec: Codec, values: Floats) -> Floats:
    out = np.empty_like(values)
    codec.decode(codec.encode(values), out)
    return out


def word(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


# Pinned: what one machine sends, any other has to read.


def test_the_bytes_of_fp32_are_pinned() -> None:
    assert Fp32().encode(floats(1, -2.5, 0.1)).hex() == "0000803f000020c0cdcccc3d"


def test_the_bytes_of_bf16_are_pinned_with_ties_going_to_the_even_one() -> None:
    values = floats(1, -2.5, 0.1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 2**-130)
    assert Bf16().encode(values).hex() == "803f20c0cd3d803f823f813f0800"


def test_the_bytes_of_int8_are_pinned_with_ties_going_to_the_even_one() -> None:
    values = floats(127, 0.5, 1.5, 2.5, -0.5, -1.5, 0.51, -127, 0, -3)
    assert Int8().encode(values).hex() == "0000803f7f00020200fe018100fd"


def test_the_bytes_of_int8_are_pinned_over_the_end_of_a_block() -> None:
    values = np.zeros(2 * BLOCK + 3, np.float32)
    values[[0, 1, 255]] = 0.1, -0.033, 0.05
    values[2 * BLOCK :] = -7, 3, 1e-30
    encoded = Int8().encode(values)
    scales, steps = encoded[:12], encoded[12:]
    assert scales.hex() == "a0694e3a0000000087c3613d"  # 0.1 / 127, 0, 7 / 127
    assert len(steps) == values.size
    assert steps[:2].hex() == "7fd6"
    assert steps[255] == 0x40  # 63.5
    assert steps[2 * BLOCK :].hex() == "813600"
    assert set(steps[2:255]) == set(steps[256 : 2 * BLOCK]) == {0}


def test_a_chunk_is_a_mebibyte_of_whole_blocks() -> None:
    assert 4 * CHUNK == 2**20
    assert CHUNK % BLOCK == 0
    assert list(CODECS) == ["int8", "bf16", "fp32"]


# Values


@given(st.lists(magnitudes, min_size=1, max_size=8), st.lists(st.floats(-1, 1, width=32), max_size=20))
def test_int8_is_what_double_precision_rounded_to_float32_gives(largest: list[float], shares: list[float]) -> None:
    """A quotient of two float32 that is first rounded to float64 ends at the same float32."""
    values = floats(*largest, *(share * max(largest) for share in shares))
    scale = float(np.float32(float(np.abs(values).max()) / 127.0))
    steps = [round(float(np.float32(float(value) / scale))) for value in values]
    assert Int8().encode(values) == word(scale) + bytes(step & 0xFF for step in steps)
    assert decoded(Int8(), values).tolist() == [float(np.float32(step * scale)) for step in steps]


@given(magnitudes)
def test_the_largest_of_a_block_is_127_steps(largest: float) -> None:
    assert Int8().encode(floats(largest, -largest))[4:].hex() == "7f81"


@given(vectors)
def test_int8_is_off_by_half_a_step_at_most(values: Floats) -> None:
    step = float(np.abs(values).max(initial=0)) / 127
    limit = max(step / 2, 127 * SMALLEST_SCALE) * (1 + 1e-6)
    difference = decoded(Int8(), values).astype(np.float64) - values
    assert float(np.abs(difference).max(initial=0)) <= limit


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_bf16_rounds_as_torch_does(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    values = values[np.abs(values) <= np.float32(LARGEST)].copy()
    expected = torch.from_numpy(values).bfloat16()
    assert Bf16().encode(values) == expected.view(torch.int16).numpy().tobytes()
    assert decoded(Bf16(), values).tobytes() == expected.float().numpy().tobytes()


@given(vectors)
def test_fp32_keeps_every_bit(values: Floats) -> None:
    assert decoded(Fp32(), values).tobytes() == values.tobytes()


@ALL
@pytest.mark.parametrize("size", [0, *EDGES])
def test_sizes_at_the_edges_come_back_and_take_what_was_said(codec: Codec, size: int) -> None:
    for span in map(Chunks(size, codec).span, range(Chunks(size, codec).count)):
        values = vector_of(size)[span]
        assert len(codec.encode(values)) == codec.encoded_bytes(values.size)
        np.testing.assert_allclose(decoded(codec, values), values, rtol=2**-8, atol=5e-3 / 127 / 2)


@ALL
def test_an_empty_chunk_has_no_bytes(codec: Codec) -> None:
    assert codec.encode(floats()) == b""
    codec.decode(b"", floats())
    assert codec.check(b"", 0) == 0


@ALL
def test_a_block_of_zeros_stays_zero(codec: Codec) -> None:
    values = vector_of(3 * BLOCK)
    values[BLOCK : 2 * BLOCK] = 0
    assert decoded(codec, values)[BLOCK : 2 * BLOCK].tobytes() == bytes(4 * BLOCK)
    assert decoded(codec, values)[:BLOCK].any()


def test_a_block_that_is_next_to_nothing_is_sent_as_zeros() -> None:
    under = np.nextafter(np.float32(127 * SMALLEST_SCALE), np.float32(0))
    assert Int8().encode(floats(under, -under, 1e-45)) == bytes(7)
    assert Int8().encode(floats(127 * SMALLEST_SCALE, 1e-45)) == word(SMALLEST_SCALE) + b"\x7f\0"


@ALL
def test_the_largest_magnitude_passes_and_is_told(codec: Codec) -> None:
    values = floats(0, -LARGEST, 3)
    assert LARGEST <= codec.check(codec.encode(values), 3) <= LARGEST * (1 + 1e-6)
    np.testing.assert_allclose(decoded(codec, values)[1], -LARGEST, rtol=1e-6)
    small = vector_of(1000)
    assert np.abs(decoded(codec, small)).max() <= codec.check(codec.encode(small), 1000) <= 1e-2


# What is refused


@ALL
@pytest.mark.parametrize(
    "value", [NAN, INFINITY, -INFINITY, float(np.nextafter(np.float32(LARGEST), np.float32(INFINITY))), -1e30]
)
@pytest.mark.parametrize("position", [0, BLOCK, BLOCK + 2])
def test_a_value_that_means_nothing_never_leaves(codec: Codec, value: float, position: int) -> None:
    values = vector_of(BLOCK + 3)
    values[position] = value
    with pytest.raises(UnsendableError) as caught:
        codec.encode(values)
    assert caught.value.position == position
    assert str(caught.value) == f"element {position} is {float(np.float32(value))}"


@ALL
def test_a_signalling_nan_never_leaves(codec: Codec) -> None:
    with pytest.raises(UnsendableError, match="element 1 is nan"):
        codec.encode(np.array([0, 0x7F800001], np.uint32).view(np.float32))


@ALL
@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("other", [lambda sent: sent[:-1], lambda sent: sent + b"\0", lambda sent: b""])
def test_another_length_is_refused(codec: Codec, size: int, other: Callable[[bytes], bytes]) -> None:
    payload = other(codec.encode(vector_of(size)))
    out = np.full(size, 7, np.float32)
    message = (
        f"^{size:,} elements take {codec.encoded_bytes(size):,} bytes as {codec.name}, and {len(payload):,} came$"
    )
    with pytest.raises(ChunkError, match=message):
        codec.decode(payload, out)
    assert (out == 7).all()


TOO_LARGE = 1.001 * LARGEST
BAD_NANS = [bytes.fromhex("0000c07f"), bytes.fromhex("0100807f"), bytes.fromhex("0000c0ff")]


@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        *((Int8(), nan + b"\1\2") for nan in BAD_NANS),
        (Int8(), word(INFINITY) + b"\1\2"),
        (Int8(), word(-1) + b"\1\2"),
        (Int8(), word(SMALLEST_SCALE / 2) + b"\1\2"),
        (Int8(), word(1e-45) + b"\1\2"),
        (Int8(), word(TOO_LARGE / 127) + b"\1\2"),
        (Int8(), word(1) + b"\1\x80"),
        *((Bf16(), b"\0\0" + nan[2:]) for nan in BAD_NANS if nan[2:] != b"\x80\x7f"),
        (Bf16(), b"\0\0\x80\x7f"),
        (Bf16(), b"\x80\xff\0\0"),
        (Bf16(), b"\x81\x5f\0\0"),
        *((Fp32(), word(1) + nan) for nan in BAD_NANS),
        (Fp32(), word(1, INFINITY)),
        (Fp32(), word(-INFINITY, 1)),
        (Fp32(), word(1, -TOO_LARGE)),
    ],
)
def test_a_payload_that_nobody_sends_is_refused(codec: Codec, payload: bytes) -> None:
    out = floats(7, 7)
    with pytest.raises(ChunkError):
        codec.decode(payload, out)
    assert out.tolist() == [7, 7]
    with pytest.raises(ChunkError):
        codec.check(payload, 2)


@ALL
@given(payload=st.binary(max_size=40), size=st.integers(0, 12))
def test_any_bytes_are_refused_or_finite(codec: Codec, payload: bytes, size: int) -> None:
    out = np.zeros(size, np.float32)
    try:
        codec.decode(payload, out)
    except ChunkError:
        assert not out.any()
    else:
        assert (np.abs(out) <= np.float32(LARGEST * (1 + 1e-6))).all()


@ALL
def test_any_kind_of_buffer_is_read(codec: Codec) -> None:
    values = vector_of(300)
    payload = codec.encode(values)
    for given_payload in (bytearray(payload), memoryview(payload)):
        out = np.empty_like(values)
        codec.decode(given_payload, out)
        assert np.array_equal(out, decoded(codec, values))


# Chunks


@ALL
@pytest.mark.parametrize("size", [0, *EDGES])
def test_chunks_cover_the_vector_and_their_bytes_are_known_before(codec: Codec, size: int) -> None:
    chunks = Chunks(size, codec)
    spans = [chunks.span(index) for index in range(chunks.count)]
    assert [at for span in spans for at in (span.start, span.stop)] == [
        end for start in range(0, size, CHUNK) for end in (start, min(start + CHUNK, size))
    ]
    assert [chunks.size(index) for index in range(chunks.count)] == [span.stop - span.start for span in spans]
    assert chunks.total_bytes == sum(chunks.encoded_bytes(index) for index in range(chunks.count))


@pytest.mark.parametrize("index", [-1, 2, 10**9])
def test_there_is_no_chunk_outside_of_the_vector(index: int) -> None:
    for ask in (
        Chunks(CHUNK + 1, Int8()).span,
        Chunks(CHUNK + 1, Int8()).size,
        Chunks(CHUNK + 1, Int8()).encoded_bytes,
    ):
        with pytest.raises(ChunkError, match=f"there is no chunk {index} of 2"):
            ask(index)


@pytest.mark.parametrize(("elements", "megabytes"), [(7_593_412, {"int8": 7.71, "bf16": 15.19, "fp32": 30.37})])
def test_a_delta_of_small_takes_so_much(elements: int, megabytes: dict[str, float]) -> None:
    for name, codec in CODECS.items():
        assert round(Chunks(elements, codec).total_bytes / 1e6, 2) == megabytes[name]


@ALL
def test_a_chunk_takes_little_memory_beside_itself(codec: Codec) -> None:
    values = vector_of(CHUNK)
    out = np.empty_like(values)
    payload = codec.encode(values)
    for work in (lambda: codec.encode(values), lambda: codec.decode(payload, out)):
        tracemalloc.start()
        try:
            work()
            assert tracemalloc.get_traced_memory()[1] < 2.5 * 2**20
        finally:
            tracemalloc.stop()
