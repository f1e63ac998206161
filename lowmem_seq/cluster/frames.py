"""Messages as bytes: one header frame of JSON, then the payload frames that it describes.

    {"format":1,"message":{"kind":"want","request":7,"seconds":30.0},"payloads":[]}

The header is UTF-8 and says each payload's length and CRC-32 (as zlib has it); what came is compared with that
before anything is believed. `format` stays where it is in every later format, so that two versions can tell that
they differ. CURVE keeps forgers out; the checksums are for defects, ours and those of other systems' programs.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

from lowmem_seq.cluster.messages import SAME_RELEASE_HINT, Ballast, FromClient, FromHub, PackPiece, Piece
from lowmem_seq.errors import ClusterError

FORMAT = 1
MOST_HEADER_BYTES = 2**16
MOST_PAYLOAD_BYTES = 2**18
"""Each connection of a stranger can make the hub hold so much, since ZeroMQ takes a whole frame before it looks at
it. At 25 Mbit/s a beat waits 84 ms behind such a frame."""
MOST_PAYLOADS = 4

Payload = bytes | bytearray | memoryview
Kind = TypeVar("Kind", FromClient, FromHub)


class WireError(ClusterError):
    """A connection that can't be, or bytes that are no message."""


class FrameError(WireError):
    """What came is not a message of this format."""

    def __init__(self, message: str, hint: str = SAME_RELEASE_HINT) -> None:
        super().__init__(message, hint)


class Described(Struct, frozen=True, forbid_unknown_fields=True):
    """A payload frame, as the header describes it."""

    bytes: Annotated[int, Meta(ge=0, le=MOST_PAYLOAD_BYTES)]
    crc32: Annotated[int, Meta(ge=0, le=2**32 - 1)]


Descriptions = Annotated[tuple[Described, ...], Meta(max_length=MOST_PAYLOADS)]


class ClientHeader(Struct, frozen=True, forbid_unknown_fields=True):
    """The header of what a client says."""

    format: int
    message: FromClient
    payloads: Descriptions


class HubHeader(Struct, frozen=True, forbid_unknown_fields=True):
    """The header of what the hub says."""

    format: int
    message: FromHub
    payloads: Descriptions


class FormatOnly(Struct, frozen=True):
    """What every format's header has."""

    format: Annotated[int, Meta(ge=1, le=2**31 - 1)]


FORMAT_ONLY = msgspec.json.Decoder(FormatOnly)


@dataclass(frozen=True)
class Received(Generic[Kind]):
    """A message that was checked, and its payloads."""

    message: Kind
    payloads: tuple[bytes, ...] = ()


class Codec(Generic[Kind]):
    """Reads and writes what one of the two sides says.

    Args:
        header: the type of its headers.
    """

    def __init__(self, header: type[ClientHeader] | type[HubHeader]) -> None:
        self._header = header
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(header)

    def encode(self, message: Kind, payloads: Sequence[Payload] = ()) -> list[Payload]:
        """Return the frames of a message: its header, then the payloads as they are, not copied.

        Raises:
            FrameError: it breaks a limit, as the other side would say.
        """
        described = tuple(Described(len(memoryview(data).cast("B")), zlib.crc32(data)) for data in payloads)
        header = msgspec.json.encode(self._header(FORMAT, message, described))  # type: ignore[arg-type]
        self._read(header)  # a defect shows where it was made, not at the other end
        _check_pieces(message, described)
        return [header, *payloads]

    def decode(self, frames: Sequence[bytes]) -> Received[Kind]:
        """Return the message that these frames are.

        Raises:
            FrameError: they are none. The message says why, in a line that is safe to show.
        """
        if not 1 <= len(frames) <= 1 + MOST_PAYLOADS:
            raise FrameError(f"a message has 1 to {1 + MOST_PAYLOADS} frames, not {len(frames)}")
        header = self._read(frames[0])
        described, payloads = header.payloads, tuple(frames[1:])
        if len(described) != len(payloads):
            raise FrameError(f"the header describes {len(described)} payloads, {len(payloads)} came")
        for number, (wanted, data) in enumerate(zip(described, payloads, strict=True)):
            if len(data) != wanted.bytes:
                raise FrameError(f"payload {number} has {len(data):,} bytes, the header says {wanted.bytes:,}")
            if zlib.crc32(data) != wanted.crc32:
                raise FrameError(f"payload {number} was damaged on its way: its CRC-32 is another")
        _check_pieces(header.message, described)
        return Received(header.message, payloads)

    def _read(self, header: bytes) -> Any:
        if len(header) > MOST_HEADER_BYTES:
            raise FrameError(f"a header has at most {MOST_HEADER_BYTES:,} bytes, this one {len(header):,}")
        try:
            spoken = FORMAT_ONLY.decode(header).format
            if spoken != FORMAT:
                raise FrameError(f"the other side speaks format {spoken} of the wire, this one format {FORMAT}")
            return self._decoder.decode(header)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"the header can't be read: {_one_line(error)}") from error


def _check_pieces(message: object, described: Sequence[Described]) -> None:
    """A piece comes with exactly one payload, within its total; ballast with one or none; nothing else with any."""
    if isinstance(message, Ballast):
        if len(described) > 1:
            raise FrameError(f"a message of the kind {type(message).__name__} comes with one payload at the most")
    elif not isinstance(message, Piece | PackPiece):
        if described:
            raise FrameError(f"a message of the kind {type(message).__name__} comes without payloads")
    elif len(described) != 1 or not 1 <= described[0].bytes <= message.total_bytes:
        raise FrameError("a piece comes as one payload, which is neither empty nor longer than the whole")


def _one_line(error: Exception) -> str:
    return re.sub(r"[^ -~]", "?", str(error))[:300]


CLIENT_CODEC: Codec[FromClient] = Codec(ClientHeader)
HUB_CODEC: Codec[FromHub] = Codec(HubHeader)
