"""What the hub sends: small messages at once, and vectors piece by piece, as fast as each machine reads.

Nothing here waits. A machine that has said which common weights it holds is kept at the newest by the updates that
it lacks; one for which the hub has not kept them is `lagging`. One that asks gets the weights as a whole first.
With the newest it is told the ledger, and the end of the run.

A transfer of the whole weights is of one round, though others are closed meanwhile: the weights of that round are
copied when the next is merged. There is one such copy at most; transfers that would need a second one begin again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lowmem_seq.cluster.compression import Chunks
from lowmem_seq.cluster.frames import FrameError, Payload
from lowmem_seq.cluster.hub_rounds import Rounds, Update
from lowmem_seq.cluster.hub_store import ledger_text
from lowmem_seq.cluster.layout import Floats
from lowmem_seq.cluster.messages import (
    Base,
    Finished,
    FromHub,
    LedgerTold,
    UpdatePiece,
    WeightsPiece,
    Which,
)
from lowmem_seq.cluster.outer import EXACT
from lowmem_seq.cluster.pieces import Cutter
from lowmem_seq.cluster.wire import Sent

MOST_WAITING = 100
"""Small messages to a machine that does not read; one that lets more come together is not worth it."""


class Sender(Protocol):
    """How a message goes out: HubEnd.send."""

    def __call__(self, machine: str, message: FromHub, payloads: Sequence[Payload] = ()) -> Sent:
        """Send a message, or don't."""


class Whole:
    """A vector in fp32 that is sent whole: the common weights of one round, or what the run gives.

    Args:
        which: which of the two.
        base: what the weights are.
        values: (elements,); live ones must not change before `freeze`.
    """

    def __init__(self, which: Which, base: Base, values: Floats) -> None:
        self.which, self.base = which, base
        self.is_frozen = False
        self._values = values
        self.chunks = Chunks(values.size, EXACT)

    def freeze(self) -> None:
        """Take a copy, because the values are about to change."""
        self._values = self._values.copy()
        self.is_frozen = True

    def chunk(self, index: int) -> bytes:
        """Return a chunk of it."""
        return EXACT.encode(self._values[self.chunks.span(index)])


@dataclass
class _Transfer:
    """A vector on its way to one machine."""

    content: Whole | Update
    cutter: Cutter
    index: int
    started_at: int

    @classmethod
    def of(cls, content: Whole | Update, index: int = 0) -> _Transfer:
        if isinstance(content, Whole):
            cutter = Cutter(content.chunks, content.chunk)
        else:
            cutter = Cutter(content.parcel.chunks, content.parcel.payload)
        first = index if index < cutter.count else 0
        return cls(content, cutter, first, first)

    def message(self) -> FromHub:
        codec, count, size = self.cutter.chunks.codec, self.cutter.count, self.cutter.chunks.total_bytes
        content = self.content
        if isinstance(content, Whole):
            return WeightsPiece(codec.name, self.index, count, size, content.which, content.base)  # type: ignore[arg-type]
        return UpdatePiece(
            codec.name,  # type: ignore[arg-type]
            self.index,
            count,
            size,
            content.from_round,
            content.base,
            content.merged,
        )


@dataclass
class _Box:
    """What one machine is to be sent."""

    at: int | None = None
    """The round whose weights it holds once all that was begun has arrived; None: not known, or none."""
    wants_whole: int | None = None
    """The piece from which on it wants the weights."""
    wants_average: int | None = None
    told: tuple[str, int] | None = None
    """Branch and round of the ledger that it was told."""
    waiting: deque[FromHub] = field(default_factory=deque)
    transfer: _Transfer | None = None


class Mail:
    """What goes out to all machines.

    Args:
        send: as HubEnd.send.
    """

    def __init__(self, send: Sender) -> None:
        self._send = send
        self._boxes: dict[str, _Box] = {}
        self.average: Whole | None = None
        """What the run gives, once it is there."""
        self.lagging: set[str] = set()
        """Machines that lack an update which is gone; they must take the weights as a whole."""
        self._bytes_sent = 0
        self._newest: Whole | None = None

    def open(self, machine: str, at: int | None) -> None:
        """Begin anew with a machine that said hello.

        Args:
            machine: its id.
            at: the round of the common weights that it holds.
        """
        self._boxes[machine] = _Box(at)

    def close(self, machine: str) -> None:
        """Send a machine nothing any more."""
        self._boxes.pop(machine, None)

    def place(self, machine: str, at: int) -> None:
        """Note which round's weights a machine holds, unless that is known."""
        box = self._boxes[machine]
        if box.at is None and box.wants_whole is None and not _is_whole(box.transfer, "weights"):
            box.at = at

    def want_weights(self, machine: str, index: int) -> bool:
        """Send a machine the weights as a whole, from a piece on; false where just that is under way."""
        box = self._boxes[machine]
        transfer = box.transfer
        if transfer is not None and _is_whole(transfer, "weights") and transfer.started_at == index:
            return False
        if box.wants_whole == index:
            return False
        box.transfer, box.at, box.wants_whole, box.told = None, None, index, None
        return True

    def want_average(self, machine: str, index: int) -> None:
        """Send a machine what the run gives, as soon as it is there."""
        box = self._boxes[machine]
        if not _is_whole(box.transfer, "average"):
            box.wants_average = index

    def say(self, machine: str, message: FromHub) -> None:
        """Send a small message; it waits where the machine reads slowly."""
        box = self._boxes.get(machine)
        if box is None or len(box.waiting) >= MOST_WAITING:
            return
        box.waiting.append(message)
        self._flush(machine, box)

    def mention(self, message: FromHub) -> None:
        """Send all machines a message that the next one makes out of date: who can't take it now, goes without."""
        for machine, box in list(self._boxes.items()):
            if not box.waiting:
                self._post(machine, message)

    def before_merge(self) -> None:
        """Get ready for the weights to change."""
        boxes = [box for box in self._boxes.values() if _is_whole(box.transfer, "weights")]
        older = [box for box in boxes if box.transfer is not None and box.transfer.content is not self._newest]
        if older:
            for box in boxes:
                if box not in older:
                    box.transfer, box.wants_whole = None, 0
        elif boxes and self._newest is not None:
            self._newest.freeze()
        self._newest = None

    def forget_weights(self) -> None:
        """Break off whatever leads to the weights: others took their place."""
        for box in self._boxes.values():
            box.transfer, box.at, box.told = None, None, None
        self._newest = None

    def arrived(self, machine: str, at: int) -> None:
        """Note that a machine holds the weights of this round by itself; it is told the ledger."""
        self._boxes[machine] = _Box(at, waiting=self._boxes[machine].waiting)

    def pump(self, rounds: Rounds | None) -> bool:
        """Send what can be sent now; return whether something is left."""
        left = False
        for machine, box in list(self._boxes.items()):
            left = not self._pump(machine, box, rounds) or left
        return left

    @property
    def is_busy(self) -> bool:
        """Whether vectors are on their way, or could be."""
        return any(
            box.transfer is not None or (box.wants_average is not None and self.average is not None)
            for box in self._boxes.values()
        )

    def take_bytes_sent(self) -> int:
        """Return how many bytes of vectors went out since this was asked last."""
        sent, self._bytes_sent = self._bytes_sent, 0
        return sent

    def _pump(self, machine: str, box: _Box, rounds: Rounds | None) -> bool:
        """Send to one machine; whether nothing is left."""
        while self._flush(machine, box):
            if box.transfer is None:
                box.transfer = self._next(machine, box, rounds)
            transfer = box.transfer
            if transfer is None:
                if rounds is None or not self._tell(box, rounds):
                    return True
                continue
            payload = transfer.cutter.piece(transfer.index)
            if self._post(machine, transfer.message(), payload) is not Sent.QUEUED:
                return machine not in self._boxes
            self._bytes_sent += len(payload)
            transfer.index += 1
            if transfer.index == transfer.cutter.count:
                box.transfer = None
                if isinstance(transfer.content, Update) or transfer.content.which == "weights":
                    box.at = transfer.content.base.round
        return machine not in self._boxes

    def _next(self, machine: str, box: _Box, rounds: Rounds | None) -> _Transfer | None:
        """Return what comes next, if it is a vector."""
        if rounds is not None and box.wants_whole is not None:
            if self._newest is None:
                self._newest = Whole("weights", rounds.base, rounds.weights.base)
            index, box.wants_whole = box.wants_whole, None
            return _Transfer.of(self._newest, index)
        if rounds is not None and box.at is not None and box.at != rounds.round:
            update = rounds.update_from(box.at)
            if update is not None:
                return _Transfer.of(update)
            self.lagging.add(machine)
            box.at = None
        if box.wants_average is not None and self.average is not None:
            index, box.wants_average = box.wants_average, None
            return _Transfer.of(self.average, index)
        return None

    def _tell(self, box: _Box, rounds: Rounds) -> bool:
        """Tell a machine with the newest weights the ledger, once; whether there was something to tell."""
        base = rounds.base
        if box.at != base.round or box.told == (base.branch, base.round):
            return False
        box.told = (base.branch, base.round)
        text = ledger_text(rounds.ledger.to_json())
        box.waiting.append(LedgerTold(base, text))
        if rounds.ledger.is_complete:
            box.waiting.append(Finished(base))
        return True

    def _flush(self, machine: str, box: _Box) -> bool:
        """Send the small messages; whether all went out."""
        while box.waiting:
            if self._post(machine, box.waiting[0]) is not Sent.QUEUED:
                return False
            box.waiting.popleft()
        return True

    def _post(self, machine: str, message: FromHub, *payloads: Payload) -> Sent:
        try:
            sent = self._send(machine, message, payloads)
        except FrameError:
            if not isinstance(message, LedgerTold):
                raise
            return Sent.QUEUED  # a ledger that no header has room for: its machine can't go alone, and trains on
        if sent is Sent.GONE:
            self.close(machine)
        return sent


def _is_whole(transfer: _Transfer | None, which: Which) -> bool:
    content = None if transfer is None else transfer.content
    return isinstance(content, Whole) and content.which == which
