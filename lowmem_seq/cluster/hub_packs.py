"""The host's packed images, for machines that have none: pieces of them, one by one as they are asked for.

A machine asks for a few pieces ahead, and for the next when one came; so no more is on its way than it can take. A
piece is read when its turn comes: nothing is held here, and the hub hears all others in between. All machines
together get PACK_BYTES_A_SECOND, in turn, for the cores that encrypt and the line are the training's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowmem_seq.cluster.frames import MOST_PAYLOAD_BYTES
from lowmem_seq.cluster.hub_mail import Sender
from lowmem_seq.cluster.messages import MOST_MACHINES, GoAway, PackPiece, PackWanted
from lowmem_seq.cluster.pack_told import tell
from lowmem_seq.cluster.serving import Serving
from lowmem_seq.cluster.wire import PACK_BYTES_A_SECOND, Sent
from lowmem_seq.data.pack import Pack, file_sizes
from lowmem_seq.errors import LowmemSeqError

MOST_BYTES_A_SECOND = 25 * 10**6
AT_ONCE_BYTES = 4 * MOST_PAYLOAD_BYTES
"""After which the others are heard again, whatever may be sent by then."""
MOST_ASKED = 8
"""Pieces that a machine may ask for ahead; what it asks beyond is unheard, and asked again."""


@dataclass
class _Guest:
    """A machine that was let in."""

    name: str
    asked: deque[PackWanted] = field(default_factory=deque)
    is_known: bool = False
    """Whether the host was told that it fetches."""


class Packs:
    """What the hub sends of the pack that its run is trained on.

    Args:
        serving: what the hub was told.
        send: as HubEnd.send.
        say: tells the supervisor of an event.
        clock: seconds that only grow.
    """

    def __init__(
        self, serving: Serving, send: Sender, say: Callable[[dict[str, Any]], None], clock: Callable[[], float]
    ) -> None:
        self._serving, self._send, self._say, self._clock = serving, send, say, clock
        self._guests: dict[str, _Guest] = {}
        self._told = b""
        self._sizes: dict[str, int] = {}
        self._allowance = 0.0
        self._allowed_at = clock()

    def let_in(self, machine: str, name: str) -> None:
        """Hear that a machine may have the images; what it asked for before is forgotten."""
        known = self._guests.pop(machine, None)
        self._guests[machine] = _Guest(name, is_known=known is not None and known.is_known)
        while len(self._guests) > MOST_MACHINES:
            del self._guests[next(iter(self._guests))]

    def shut_out(self, machine: str) -> None:
        """Hear that a machine may not have them, or is gone."""
        self._guests.pop(machine, None)

    def ask(self, machine: str, wanted: PackWanted) -> None:
        """Hear what a machine asks for; nobody answers one that was not let in."""
        guest = self._guests.get(machine)
        if guest is not None and len(guest.asked) < MOST_ASKED:
            guest.asked.append(wanted)

    def pump(self) -> bool:
        """Send what may be sent now, a piece for each machine in turn; return whether something is left."""
        now = self._clock()
        self._allowance = min(AT_ONCE_BYTES, self._allowance + (now - self._allowed_at) * PACK_BYTES_A_SECOND)
        self._allowed_at = now
        asking = deque(machine for machine, guest in self._guests.items() if guest.asked)
        while asking and self._allowance > 0:
            machine = asking.popleft()
            guest = self._guests.pop(machine)
            sent = self._answer(machine, guest)
            if sent is not Sent.GONE:
                self._guests[machine] = guest  # behind those who wait, also the next time
            if sent is Sent.QUEUED and guest.asked:
                asking.append(machine)
        return any(guest.asked for guest in self._guests.values())

    def _answer(self, machine: str, guest: _Guest) -> Sent:
        """Send a machine what it asked for first."""
        wanted = guest.asked[0]
        try:
            piece, payload = self._read(wanted)
        except (LowmemSeqError, OSError, ValueError) as error:  # it may name a path, which is the host's business
            guest.asked.clear()
            self._say({"event": "pack_not_sent", "name": guest.name, "message": str(error)})
            return self._send(machine, GoAway("no_pack", "the host can't send its images; its screen says why"))
        self._allowance -= len(payload)
        sent = self._send(machine, piece, (payload,))
        if sent is Sent.QUEUED:
            guest.asked.popleft()
            self._tell_of(machine, guest, wanted)
        return sent

    def _tell_of(self, machine: str, guest: _Guest, wanted: PackWanted) -> None:
        """Say once of a machine that it fetches; the description alone is asked for also by one that has them."""
        if not guest.is_known and wanted.part != "description":
            guest.is_known = True
            size = sum(self._sizes.values()) - len(self._told)
            self._say({"event": "pack_wanted", "machine": machine, "name": guest.name, "bytes": size})

    def _read(self, wanted: PackWanted) -> tuple[PackPiece, bytes]:
        """Return a piece.

        Raises:
            DataError: the pack can't be used any more.
            ValueError: there is no such piece, or the pack is another one.
            OSError: what the disk said.
        """
        if not self._told:
            self._open()
        size, start = self._sizes[wanted.part], wanted.index * MOST_PAYLOAD_BYTES
        if start >= size or wanted.data not in (None, self._serving.data):
            raise ValueError(f"there is no piece {wanted.index} of {wanted.part} of the pack {wanted.data}")
        if wanted.part == "description":
            payload = self._told[start : start + MOST_PAYLOAD_BYTES]
        else:
            with (Path(self._serving.pack) / wanted.part).open("rb", buffering=0) as file:
                file.seek(start)
                payload = file.read(MOST_PAYLOAD_BYTES)
        if len(payload) != min(MOST_PAYLOAD_BYTES, size - start):
            raise ValueError(f"the pack's file {wanted.part} ends early")
        return PackPiece(self._serving.data, wanted.part, wanted.index, size), payload

    def _open(self) -> None:
        pack = Pack.open(Path(self._serving.pack))
        if pack.fingerprint != self._serving.data:
            raise ValueError(f"the pack {pack.folder} holds other images than the run was started with")
        self._told = tell(pack.description)
        self._sizes = {"description": len(self._told), **file_sizes(pack.description)}
