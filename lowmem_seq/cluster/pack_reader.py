"""The host's packed images, as a machine that has none reads them from the hub: in pieces, a few asked for ahead.

The line may break off and come back meanwhile, and so may the hub. What comes is believed only where it is the
piece that is due, as long as it must be: nothing is held for what the hub only claims.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import get_args

from lowmem_seq.cluster.client_end import ClientEnd, Line
from lowmem_seq.cluster.frames import MOST_PAYLOAD_BYTES, Received
from lowmem_seq.cluster.messages import (
    SAME_RELEASE_HINT,
    FromHub,
    GoAway,
    Hello,
    PackPart,
    PackPiece,
    PackWanted,
    Refused,
    Welcome,
)
from lowmem_seq.cluster.pack_told import MOST_TOLD_BYTES, believe
from lowmem_seq.cluster.refusals import refused, sent_away
from lowmem_seq.cluster.wire import Sent
from lowmem_seq.data.pack import PackDescription
from lowmem_seq.errors import ClusterError
from lowmem_seq.units import format_seconds

AHEAD = 4
"""Pieces that are asked for before they are due: 1 MiB, which fills a line of 100 MB/s at a round trip of 10 ms."""
ANSWER_SECONDS = 15.0
"""How long a piece may take before it is asked for again."""
PATIENCE_SECONDS = 600.0
"""How long the host may be gone. It starts again in minutes; who wants it later starts this machine again, too."""
LOOK_SECONDS = 1.0
"""How often it is looked whether that is over."""
PARTS: dict[str, PackPart] = {part: part for part in get_args(PackPart)}


class PackReader:
    """Reads the host's pack.

    Args:
        end: this machine's end of the line, which is up.
        hello: what it says of itself.
        lost: called when the line is lost.
        again: the command that goes on later.
        patience_seconds: how long nothing may come.
    """

    def __init__(
        self,
        end: ClientEnd,
        hello: Hello,
        lost: Callable[[], object] = lambda: None,
        again: str = "",
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._end, self._hello, self._lost = end, hello, lost
        self._again, self._patience_seconds = again, patience_seconds
        self._welcomed = False
        self._data: str | None = None
        self._came_at = time.monotonic()
        end.send(hello)

    def describe(self, image_size: int) -> PackDescription:
        """Return what the host says of its pack, which is the one that is read then.

        Args:
            image_size: that its pictures must have.

        Raises:
            ClusterError: the hub refuses this machine, is gone for too long, or tells what can't be.
        """
        told = b"".join(self._pieces("description", 0, None))
        try:
            description = believe(told)
        except ValueError as error:
            raise _nonsense(str(error)) from error
        if (description.fingerprint, description.image_size) != (self._data, image_size):
            raise _nonsense(f"its pictures have {description.image_size} px, or are of another pack")
        return description

    def read(self, name: str, start: int, size: int) -> Iterator[bytes]:
        """Yield what a file of the pack holds from a byte on, piece by piece.

        Args:
            name: of the file.
            start: the first byte, where a piece begins.
            size: of the whole file.

        Raises:
            ClusterError: as of `describe`.
        """
        return self._pieces(PARTS[name], start // MOST_PAYLOAD_BYTES, size)

    def _pieces(self, part: PackPart, index: int, size: int | None) -> Iterator[bytes]:
        """Yield pieces from one on; how many there are is told with the first one, where it isn't known."""
        asked = index
        while size is None or index < count_pieces(size):
            until = index + 1 if size is None else min(index + AHEAD, count_pieces(size))
            while asked < until and self._ask(PackWanted(self._data, part, asked)):
                asked += 1
            heard = self._hear()
            if heard is None:
                asked = index  # what was asked for is forgotten
                continue
            piece, payload = heard
            if (piece.part, piece.index) != (part, index):
                continue  # it was asked for twice
            if size is None and piece.total_bytes > MOST_TOLD_BYTES:
                raise _nonsense(f"{piece.total_bytes:,} bytes would tell of it")
            size = piece.total_bytes if size is None else size
            self._data = self._data or piece.data
            wanted = min(MOST_PAYLOAD_BYTES, size - index * MOST_PAYLOAD_BYTES)
            if (piece.data, piece.total_bytes, len(payload)) != (self._data, size, wanted):
                raise _nonsense(f"piece {index} of {part} has {len(payload):,} of {piece.total_bytes:,} bytes")
            self._came_at = time.monotonic()
            index += 1
            yield payload

    def _ask(self, wanted: PackWanted) -> bool:
        return self._welcomed and self._end.send(wanted) is Sent.QUEUED

    def _hear(self) -> tuple[PackPiece, bytes] | None:
        """Return the next piece; None where what was asked for must be asked for again."""
        until = time.monotonic() + ANSWER_SECONDS
        while (left := until - time.monotonic()) > 0:
            self._require_patience()
            heard = self._end.receive(min(left, LOOK_SECONDS))
            if heard is Line.UP:
                self._end.send(self._hello)
            elif heard is Line.DOWN:
                self._welcomed = False
                self._lost()
            elif isinstance(heard, Received):
                message = heard.message
                if isinstance(message, PackPiece):
                    return message, heard.payloads[0]
                if isinstance(message, Welcome):
                    self._welcomed = True
                    return None
                self._mind(message)
        if not self._welcomed:
            self._end.send(self._hello)
        return None

    def _mind(self, message: FromHub) -> None:
        """Take in what else the hub says.

        Raises:
            ClusterError: that it wants no more of this machine.
        """
        if isinstance(message, Refused):
            raise refused(message)
        if isinstance(message, GoAway):
            if message.reason not in ("hello_first", "dropped", "stopping"):
                raise sent_away(message)
            self._welcomed = False
            self._end.send(self._hello)

    def _require_patience(self) -> None:
        silent_seconds = time.monotonic() - self._came_at
        if silent_seconds > self._patience_seconds:
            raise ClusterError(
                f"nothing came from the host for {format_seconds(silent_seconds)}"
                + (f": {self._end.trouble}" if self._end.trouble else ""),
                f"once it is there again: {self._again}   goes on where this ended",
            )


def count_pieces(size: int) -> int:
    """Return in how many pieces so many bytes travel."""
    return -(-size // MOST_PAYLOAD_BYTES)


def _nonsense(what: str) -> ClusterError:
    return ClusterError(f"the hub does not send its images as this machine knows it: {what}", SAME_RELEASE_HINT)
