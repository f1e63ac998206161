"""A flat float32 vector in chunks, each compressed by itself: to one byte an element, to two, or not at all.

The bytes are the same on every machine: little-endian, each operation rounded to nearest, ties to even, as IEEE 754
says, and no arithmetic on numbers so small that some processors take them for zero. What can't be sent is refused
at both ends: no NaN, no infinity, nothing larger than `LARGEST`. So sums of what arrives never overflow.

A chunk of n elements, by codec:
    fp32: n floats.
    bf16: n 16-bit words, the upper halves of the floats, rounded.
    int8: one float32 scale for each `BLOCK` elements begun, then n signed bytes from -127 to 127. An element is its
        byte times its block's scale. A scale is the block's largest magnitude / 127, or 0 (and so are the bytes)
        where that would be under `SMALLEST_SCALE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from lowmem_seq.cluster.layout import Floats

CHUNK = 1 << 18
"""Elements in a chunk, 1 MiB of float32; the last one of a vector may have fewer."""
BLOCK = 256
"""Elements that share a scale. On seven changes of Small by 1, 10 and 100 steps of AdamW the norm of int8's error
is 0.70 to 0.80 % of the change's with blocks of 128, 0.78 to 0.93 with 256, 0.87 to 1.08 with 512 and 0.97 to 1.24
with 1,024; the scales add 3.1, 1.6, 0.8 and 0.4 % to the bytes."""
LARGEST = 2.0**64
"""The largest magnitude that is sent. No weight that still means something is near it, and sums of such numbers,
weighted by counts of samples, stay far from where float32 ends (2**128)."""
SMALLEST_SCALE = 2.0**-64
"""Far above 2**-126, under which some processors round to zero, and far under what moves a weight."""
MOST = 127
LARGEST_SCALE = np.float32(LARGEST) / np.float32(MOST)

Payload: TypeAlias = bytes | bytearray | memoryview

_WIRE_FLOAT = np.dtype("<f4")
_WIRE_HALF = np.dtype("<u2")


class ChunkError(ValueError):
    """What came is no chunk of the vector that was agreed on."""


class UnsendableError(ValueError):
    """A value is NaN, infinite, or larger than anything that is sent."""

    def __init__(self, position: int, value: float) -> None:
        super().__init__(f"element {position} is {value}")
        self.position, self.value = position, value


class Codec(Protocol):
    """A way to write the elements of a chunk. Shapes: values, out: (n,), contiguous."""

    @property
    def name(self) -> str:
        """What the wire calls it."""

    def encoded_bytes(self, elements: int) -> int:
        """Return the bytes that so many elements take."""

    def encode(self, values: Floats) -> bytes:
        """Return the elements' bytes.

        Raises:
            UnsendableError: a value is not finite, or larger than `LARGEST`.
        """

    def decode(self, payload: Payload, out: Floats) -> None:
        """Write the elements that a payload holds into `out`, which says how many there are.

        Raises:
            ChunkError: as `check`; `out` is as it was.
        """

    def check(self, payload: Payload, elements: int) -> float:
        """Return the largest magnitude of a payload's elements, or a little more.

        Raises:
            ChunkError: the payload has another length than so many elements take, or holds what is never sent.
        """


@dataclass(frozen=True)
class Fp32:
    """The floats as they are."""

    name: str = "fp32"

    def encoded_bytes(self, elements: int) -> int:
        """4 an element."""
        return 4 * elements

    def encode(self, values: Floats) -> bytes:
        """As `Codec.encode`."""
        _refuse_unsendable(values)
        return values.astype(_WIRE_FLOAT, copy=False).tobytes()

    def decode(self, payload: Payload, out: Floats) -> None:
        """As `Codec.decode`."""
        self.check(payload, out.size)
        np.copyto(out, np.frombuffer(payload, _WIRE_FLOAT))

    def check(self, payload: Payload, elements: int) -> float:
        """As `Codec.check`."""
        _check_length(self, payload, elements)
        return _checked(_largest(np.frombuffer(payload, _WIRE_FLOAT)))


@dataclass(frozen=True)
class Bf16:
    """The upper halves of the floats: all of the range, 8 bits of precision."""

    name: str = "bf16"

    def encoded_bytes(self, elements: int) -> int:
        """2 an element."""
        return 2 * elements

    def encode(self, values: Floats) -> bytes:
        """As `Codec.encode`."""
        _refuse_unsendable(values)
        bits = values.view(np.uint32)
        rounded: npt.NDArray[np.uint32] = bits >> np.uint32(16)
        rounded &= np.uint32(1)  # a tie goes to the even one of its neighbours
        rounded += np.uint32(0x7FFF)
        rounded += bits
        rounded >>= np.uint32(16)
        return rounded.astype(_WIRE_HALF).tobytes()

    def decode(self, payload: Payload, out: Floats) -> None:
        """As `Codec.decode`."""
        self.check(payload, out.size)
        bits = out.view(np.uint32)
        np.copyto(bits, np.frombuffer(payload, _WIRE_HALF))
        bits <<= np.uint32(16)

    def check(self, payload: Payload, elements: int) -> float:
        """As `Codec.check`."""
        _check_length(self, payload, elements)
        magnitudes = np.frombuffer(payload, _WIRE_HALF) & np.uint16(0x7FFF)
        largest = np.array([magnitudes.max(initial=0)], np.uint32) << np.uint32(16)
        return _checked(float(largest.view(np.float32)[0]))


@dataclass(frozen=True)
class Int8:
    """Signed bytes with one scale a block."""

    name: str = "int8"

    def encoded_bytes(self, elements: int) -> int:
        """1 an element and 4 a block."""
        return elements + 4 * _blocks(elements)

    def encode(self, values: Floats) -> bytes:
        """As `Codec.encode`."""
        blocks = _blocks(values.size)
        padded = values
        if values.size % BLOCK:
            padded = np.zeros(blocks * BLOCK, np.float32)
            padded[: values.size] = values
        rows = padded.reshape(-1, BLOCK)  # (blocks, BLOCK)
        scaled = np.abs(rows)
        largest = scaled.max(axis=1, initial=0)  # NaN where a block has one
        if not (largest <= np.float32(LARGEST)).all():
            _refuse_unsendable(values)
        scales = largest / np.float32(MOST)
        scales[scales < np.float32(SMALLEST_SCALE)] = 0
        np.divide(rows, np.where(scales > 0, scales, np.float32(1))[:, None], out=scaled)
        np.rint(scaled, out=scaled)  # no further than 127: a scale is short of largest / 127 by half an ulp at most
        encoded = np.empty(self.encoded_bytes(values.size), np.int8)
        encoded[: 4 * blocks] = scales.astype(_WIRE_FLOAT, copy=False).view(np.int8)
        np.copyto(encoded[4 * blocks :], scaled.reshape(-1)[: values.size], casting="unsafe")
        return encoded.tobytes()

    def decode(self, payload: Payload, out: Floats) -> None:
        """As `Codec.decode`."""
        self.check(payload, out.size)
        scales, steps = self._parts(payload, out.size)
        whole = out.size - out.size % BLOCK
        rows = (whole // BLOCK, BLOCK)
        np.multiply(
            steps[:whole].reshape(rows), scales[: rows[0], None], out=out[:whole].reshape(rows), dtype=np.float32
        )
        if whole < out.size:
            np.multiply(steps[whole:], scales[-1], out=out[whole:], dtype=np.float32)

    def check(self, payload: Payload, elements: int) -> float:
        """As `Codec.check`."""
        _check_length(self, payload, elements)
        scales, steps = self._parts(payload, elements)
        sent = (scales >= np.float32(SMALLEST_SCALE)) & (scales <= LARGEST_SCALE)  # a NaN is neither
        if not (sent | (scales == 0)).all():
            raise ChunkError("a scale is none that is sent")
        if steps.min(initial=0) < -MOST:
            raise ChunkError(f"a byte is under -{MOST}")
        return float(scales.max(initial=0) * np.float32(MOST))

    def _parts(self, payload: Payload, elements: int) -> tuple[Floats, npt.NDArray[np.int8]]:
        """Return the scales, (blocks,), and the bytes, (elements,)."""
        blocks = _blocks(elements)
        scales = np.frombuffer(payload, _WIRE_FLOAT, blocks).astype(np.float32, copy=False)
        return scales, np.frombuffer(payload, np.int8, elements, 4 * blocks)


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Int8(), Bf16(), Fp32())}
"""By what the wire and the settings call them."""


@dataclass(frozen=True)
class Chunks:
    """How a vector is cut, and what each chunk takes; known before anything is there."""

    elements: int
    codec: Codec

    @property
    def count(self) -> int:
        """The chunks; none of them is empty."""
        return -(-self.elements // CHUNK)

    def span(self, index: int) -> slice:
        """Return where a chunk lies in the vector.

        Raises:
            ChunkError: there is no such chunk.
        """
        if not 0 <= index < self.count:
            raise ChunkError(f"there is no chunk {index} of {self.count}")
        return slice(index * CHUNK, min((index + 1) * CHUNK, self.elements))

    def size(self, index: int) -> int:
        """Return the elements of a chunk.

        Raises:
            ChunkError: there is no such chunk.
        """
        span: slice = self.span(index)
        return int(span.stop - span.start)

    def encoded_bytes(self, index: int) -> int:
        """Return the bytes that a chunk takes.

        Raises:
            ChunkError: there is no such chunk.
        """
        return self.codec.encoded_bytes(self.size(index))

    @property
    def total_bytes(self) -> int:
        """The bytes that all chunks take together."""
        whole, rest = divmod(self.elements, CHUNK)
        return whole * self.codec.encoded_bytes(CHUNK) + self.codec.encoded_bytes(rest)


def _blocks(elements: int) -> int:
    return -(-elements // BLOCK)


def _check_length(codec: Codec, payload: Payload, elements: int) -> None:
    found, wanted = memoryview(payload).nbytes, codec.encoded_bytes(elements)
    if found != wanted:
        raise ChunkError(f"{elements:,} elements take {wanted:,} bytes as {codec.name}, and {found:,} came")


def _largest(values: Floats) -> float:
    """The largest magnitude; NaN where there is one."""
    return float(np.abs(values).max(initial=0))


def _checked(largest: float) -> float:
    if not largest <= LARGEST:
        raise ChunkError(f"a magnitude of {largest:g} is none that is sent")
    return largest


def _refuse_unsendable(values: Floats) -> None:
    if not _largest(values) <= LARGEST:
        wrong = ~(np.abs(values) <= np.float32(LARGEST))
        position = int(np.argmax(wrong))
        raise UnsendableError(position, float(values[position]))
