"""A hub that does what a member needs and no more, on the real wire: for tests of the member alone."""

from __future__ import annotations

import threading

import numpy as np

from lowmem_seq.cluster.compression import CODECS, ChunkError, Chunks, Fp32
from lowmem_seq.cluster.deltas import Parcel
from lowmem_seq.cluster.hub_end import Arrived, HubEnd
from lowmem_seq.cluster.layout import Floats, Layout
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.messages import (
    Base,
    Bye,
    DeltaPiece,
    Finished,
    FromHub,
    Hello,
    Lease,
    Leased,
    LedgerTold,
    Merged,
    Peers,
    Range,
    Refused,
    Settings,
    UpdatePiece,
    Want,
    WeightsPiece,
    WeightsWanted,
    Welcome,
)
from lowmem_seq.cluster.outer import Contribution, OuterStep, SharedWeights
from lowmem_seq.cluster.pieces import Assembly
from lowmem_seq.cluster.wire import Sent
from tests.cluster.members import base_of, pieces_of, text_of
from tests.cluster.vectors import parcel_of
from tests.cluster.wires import PEER, TOKEN

QUICK = Settings(0.2, 0.05, 1.0, "int8", 1, "plain", 1.0, 0.0)


class PocketHub:
    """Serves one machine; merges each of its deltas as soon as it is whole, and keeps all updates."""

    def __init__(
        self, layout: Layout, first: Floats, total: int = 4000, settings: Settings = QUICK, port: int = 0
    ) -> None:
        self.settings, self.ledger = settings, Ledger(total, 500)
        self.weights = SharedWeights(layout, Fp32(), OuterStep(), first.copy())
        self.round = 0
        self.refused: Refused | None = None
        self.average: Floats | None = None
        self.byes: list[Bye] = []
        self.hellos: list[Hello] = []
        self.merges = True
        self._updates: list[tuple[int, Base, Parcel, tuple[Merged]]] = []
        self._layout = layout
        self._deltas: dict[str, tuple[int, Assembly]] = {}
        self._holds: dict[str, int] = {}
        self._end = HubEnd(TOKEN, port, "127.0.0.1")
        self.port = self._end.port
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over = True
        self._end.wake()
        self._thread.join()
        self._end.close()

    def __enter__(self) -> PocketHub:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._over:
            self.close()

    def _run(self) -> None:
        while not self._over:
            arrived = self._end.receive(0.05)
            if arrived is not None:
                self._hear(arrived)
            base = base_of(self.ledger, self.round)
            for machine in self._end.machines:
                self._end.send(machine, Peers(base.round, base.accepted, (PEER,)))

    def _hear(self, arrived: Arrived) -> None:
        machine, message = arrived.machine, arrived.message
        base = base_of(self.ledger, self.round)
        match message:
            case Hello():
                self.hellos.append(message)
                self._say(machine, self.refused or Welcome(base, self.ledger.total, self.settings, (PEER,)))
                known = message.base.round if message.base else self.round
                for update in self._updates[known:]:
                    self._send_update(machine, *update)
            case Want():
                given = self.ledger.lease(machine, 8, 400.0, message.seconds)
                leases = tuple(Lease(one.id, Range(one.start, one.end), 1.0) for one in given)
                self._say(machine, Leased(message.request, leases, None if leases else 0.05))
            case WeightsWanted(part="average"):
                if self.average is not None:
                    self._weigh(machine, "average", self.average)
            case WeightsWanted(base=None):
                self.ledger.discard(machine)
                self._weigh(machine, "weights", self.weights.base)
                self._say(machine, LedgerTold(base, text_of(self.ledger)))
            case DeltaPiece():
                self._take(machine, message, arrived.payloads[0])
            case Bye():
                self.byes.append(message)

    def _weigh(self, machine: str, part: str, vector: Floats) -> None:
        pieces = pieces_of(parcel_of(vector, Fp32()))
        base, total = base_of(self.ledger, self.round), sum(map(len, pieces))
        for index, piece in enumerate(pieces):
            self._say(machine, WeightsPiece("fp32", index, len(pieces), total, part, base), piece)  # type: ignore[arg-type]

    def _take(self, machine: str, message: DeltaPiece, payload: bytes) -> None:
        number, assembly = self._deltas.get(machine, (-1, None))
        if number == message.delta and assembly is not None and assembly.is_whole:
            return  # it came before, as the hub has it
        if message.index == 0 or assembly is None:
            number, assembly = message.delta, Assembly(Chunks(self._layout.elements, CODECS[message.encoding]))
            self._deltas[machine] = number, assembly
        try:
            assembly.take(message, payload)
        except ChunkError as error:  # as the hub does: the machine begins anew
            del self._deltas[machine]
            self._end.drop(machine, "dropped", str(error))
            return
        if any(one.delta == message.delta for _, _, _, (one,) in self._updates):
            return  # its update was lost on the way, and is on its way again
        if assembly.is_whole and self.merges:
            assert number == message.delta
            self._merge(machine, message, assembly.parcel)

    def _merge(self, machine: str, message: DeltaPiece, delta: Parcel) -> None:
        assert self.ledger.accept(machine, [(one.start, one.end) for one in message.ranges])
        update = self.weights.merge({machine: Contribution(message.samples, delta)})
        before, self.round = self.round, self.round + 1
        base = base_of(self.ledger, self.round)
        merged = (Merged(machine, message.delta, message.samples),)
        self._updates.append((before, base, update, merged))
        self._send_update(machine, *self._updates[-1])

    def _send_update(self, machine: str, before: int, base: Base, update: Parcel, merged: tuple[Merged]) -> None:
        pieces = pieces_of(update)
        for index, piece in enumerate(pieces):
            total = sum(map(len, pieces))
            self._say(machine, UpdatePiece("fp32", index, len(pieces), total, before, base, merged), piece)
        if base.round == self.round:
            self._say(machine, LedgerTold(base, text_of(self.ledger)))
            if self.ledger.is_complete:
                self._say(machine, Finished(base))

    def _say(self, machine: str, message: FromHub, *payloads: bytes) -> None:
        while self._end.send(machine, message, payloads) is Sent.FULL and not self._over:
            self._end.receive(0.01)


def never() -> bool:
    return False


def zeros(layout: Layout) -> dict[str, Floats]:
    return {name: np.zeros(shape, np.float32) for name, shape in zip(layout.names, layout.shapes, strict=True)}
