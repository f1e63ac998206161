"""A member's talk without a network: what it says is kept, and time goes when it is told to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from lowmem_seq.cluster.compression import Chunks, Codec, Fp32
from lowmem_seq.cluster.deltas import Parcel
from lowmem_seq.cluster.layout import Floats
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.member_talk import Talk
from lowmem_seq.cluster.member_work import Work
from lowmem_seq.cluster.messages import (
    Base,
    DeltaPiece,
    FromClient,
    FromHub,
    Lease,
    Leased,
    LedgerTold,
    Merged,
    Range,
    Settings,
    UpdatePiece,
    WeightsPiece,
    Welcome,
)
from lowmem_seq.cluster.pieces import Assembly, Cutter
from lowmem_seq.cluster.wire import Sent
from tests.cluster.clocks import Clock
from tests.cluster.vectors import content_of, flat_layout, floats, parcel_of
from tests.cluster.wires import MACHINE, PEER, hello

CLUSTER = "00c1a5be"
TOTAL, EPOCH = 10_000, 1000
SETTINGS = Settings(30.0, 1.0, 10.0, "fp32", 0, "plain", 1.0, 0.0)
Kind = TypeVar("Kind")


def base_of(ledger: Ledger, number: int) -> Base:
    return Base(CLUSTER, ledger.branch[0], number, ledger.accepted)


def pieces_of(parcel: Parcel) -> list[bytes]:
    cutter = Cutter(parcel.chunks, parcel.payload)
    return [cutter.piece(index) for index in range(cutter.count)]


class Scene:
    """A member whose hub is the test; two weights, which begin at `first`."""

    def __init__(self, settings: Settings = SETTINGS, first: Sequence[float] = (10, 20)) -> None:
        self.clock = Clock()
        self.layout = flat_layout(2)
        self.told: list[dict[str, Any]] = []
        self.said: list[FromClient] = []
        self.payloads: list[bytes] = []
        self.work = Work(MACHINE, self.layout, 8, self.clock)
        self.talk = Talk(hello(), self.work, self.told.append, self.clock)
        self.tensors = {"weight": np.zeros(2, np.float32)}
        self.settings = settings
        self.ledger = Ledger(TOTAL, EPOCH)
        self.round = 0
        self.shared = floats(*first)
        self.full = False

    @property
    def base(self) -> Base:
        return base_of(self.ledger, self.round)

    @property
    def weights(self) -> list[float]:
        return [float(one) for one in self.tensors["weight"]]

    def post(self, message: FromClient, payloads: Sequence[bytes]) -> Sent:
        if self.full:
            return Sent.FULL
        self.said.append(message)
        self.payloads += payloads
        return Sent.QUEUED

    def listen(self) -> list[FromClient]:
        """Have it say all that is due, and return that."""
        self.said.clear()
        while self.talk.say(self.post) == 0:
            pass
        return list(self.said)

    def heard(self, kind: type[Kind]) -> list[Kind]:
        """All of a kind that it says now."""
        return [one for one in self.listen() if isinstance(one, kind)]

    def tell(self, message: FromHub, *payloads: bytes) -> None:
        self.talk.hear(message, payloads)
        update = self.talk.arrived()
        if update is not None:
            self.work.replica.receive(update.parcel, update.merged)
            self.work.end_update(update)

    def welcome(self, base: Base | None = None) -> None:
        self.tell(Welcome(base or self.base, TOTAL, self.settings, (PEER,)))

    def weigh(self, part: str = "weights", vector: Floats | None = None, base: Base | None = None) -> None:
        """Send it weights whole; the common ones unless others are told."""
        pieces = pieces_of(parcel_of(self.shared if vector is None else vector, Fp32()))
        for index, piece in enumerate(pieces):
            total = sum(map(len, pieces))
            self.tell(WeightsPiece("fp32", index, len(pieces), total, part, base or self.base), piece)  # type: ignore[arg-type]

    def tell_ledger(self) -> None:
        self.tell(LedgerTold(self.base, text_of(self.ledger)))

    def lease(self, seconds: float = 1.0, speed: float = 80.0) -> list[Range]:
        """Give it samples of the ledger."""
        given = self.ledger.lease(MACHINE, 8, speed, seconds)
        leases = tuple(Lease(one.id, Range(one.start, one.end), 10.0) for one in given)
        self.tell(Leased(self.talk._request, leases, None if leases else 2.0))
        return [one.range for one in leases]

    def update(self, change: Floats, deltas: Sequence[int] = (), codec: Codec | None = None) -> None:
        """Close a round: send it what moves the common weights by a change."""
        parcel = parcel_of(change, codec or Fp32())
        before, self.round = self.round, self.round + 1
        self.shared += content_of(parcel)
        merged = tuple(Merged(MACHINE, number, 8) for number in deltas)
        pieces = pieces_of(parcel)
        for index, piece in enumerate(pieces):
            total = sum(map(len, pieces))
            name = parcel.chunks.codec.name
            self.tell(UpdatePiece(name, index, len(pieces), total, before, self.base, merged), piece)  # type: ignore[arg-type]
        self.tell_ledger()

    def begin(self) -> None:
        """Connect, be welcomed, and take the common weights."""
        self.talk.line_up()
        self.listen()
        self.welcome()
        self.work.begin_anew()
        self.listen()
        self.weigh()
        self.tell_ledger()
        assert self.work.between(self.tensors)

    def train(self, samples: int, *change: float) -> None:
        """A step on so many samples; the weights change by that."""
        self.work.note_trained(self.work.holdings.take(samples), 0.1)
        self.tensors["weight"] += floats(*change)

    def hand_in(self) -> tuple[DeltaPiece, list[float]]:
        """Let a round pass, and return the delta that it hands in."""
        self.clock.go_on(self.settings.round_seconds)
        self.talk._heard = self.clock()
        assert self.work.needs_tensors()
        self.work.between(self.tensors)
        self.payloads.clear()
        (piece,) = self.heard(DeltaPiece)
        return piece, delta_in(piece, self.payloads)


def text_of(ledger: Ledger) -> str:
    return json.dumps(ledger.to_json(), separators=(",", ":"))


def delta_in(piece: Any, payloads: list[bytes]) -> list[float]:
    assembly = Assembly(Chunks(2, Fp32()))
    for payload in payloads:
        assembly.take(piece, payload)
    return [float(one) for one in content_of(assembly.parcel)]
