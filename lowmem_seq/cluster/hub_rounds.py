"""The rounds at the hub: deltas come in piece by piece, and are merged into the next common weights.

A round is closed when every machine that is expected has brought a delta, or half of a round's duration after the
first one came, whoever is missing then: its delta may come for the next round, as it is, since it is what its
machine's own weights have gone beyond the base. Just before a merge the ledger is asked about each delta; one that
it refuses is thrown away, and its machine has to begin anew.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

from lowmem_seq.cluster.compression import CODECS, ChunkError, Chunks, Codec
from lowmem_seq.cluster.deltas import Parcel
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.messages import Base, DeltaPiece, Merged, Settings
from lowmem_seq.cluster.outer import Contribution, OuterStep, SharedWeights
from lowmem_seq.cluster.pieces import Assembly

GRACE = 0.5
"""Share of a round's duration for which the others are waited for."""
KEPT_BYTES = 2**26
"""Of updates, for machines that lag; or as much as the weights take, if that is more, and always the newest one."""


@dataclass(frozen=True)
class Update:
    """What leads from one round's common weights to the next."""

    from_round: int
    base: Base
    merged: tuple[Merged, ...]
    parcel: Parcel


@dataclass(frozen=True)
class Closed:
    """What came of a round."""

    update: Update | None
    """None: nothing was left to merge."""
    refused: tuple[str, ...]
    """Machines whose deltas the ledger refused."""
    bytes_received: int
    seconds: float
    """Since the round before was closed."""
    waited_seconds: float
    """From the first whole delta on."""


@dataclass(frozen=True)
class _Delta:
    number: int
    ranges: tuple[tuple[int, int], ...]
    contribution: Contribution
    assembly: Assembly


class Rounds:
    """The common weights and the ledger, and what makes the next of them.

    Args:
        weights: as of this round.
        ledger: the hub's.
        round_: how many rounds were closed.
        settings: of the cluster.
        clock: seconds that only grow.
    """

    def __init__(
        self, weights: SharedWeights, ledger: Ledger, round_: int, settings: Settings, clock: Callable[[], float]
    ) -> None:
        self.weights, self.ledger, self.round = weights, ledger, round_
        self._settings, self._clock = settings, clock
        self._kept: dict[int, Update] = {}
        self._deltas: dict[str, _Delta] = {}
        self._first_at: float | None = None
        self._closed_at = clock()
        self._received = 0

    @property
    def base(self) -> Base:
        """What the common weights are now."""
        return base_of(self.ledger, self.round)

    @property
    def brought(self) -> set[str]:
        """The machines whose delta is there as a whole."""
        return {machine for machine, delta in self._deltas.items() if delta.assembly.is_whole}

    @property
    def coming(self) -> set[str]:
        """The machines of whose delta a part is there."""
        return self._deltas.keys() - self.brought

    def update_from(self, round_: int) -> Update | None:
        """Return what leads on from a round, if it is still there."""
        return self._kept.get(round_)

    def take(self, machine: str, piece: DeltaPiece, payload: bytes) -> None:
        """Take a piece of a delta in. A delta with a higher number takes the place of one that was not merged.

        Raises:
            ValueError: it can't be used; the delta is thrown away.
        """
        self._received += len(payload)
        delta = self._deltas.get(machine)
        if delta is not None and delta.assembly.is_whole and piece.delta == delta.number:
            return  # it came before
        if delta is None or piece.delta > delta.number:
            ranges = tuple((one.start, one.end) for one in piece.ranges)
            if sum(end - start for start, end in ranges) != piece.samples:
                self.forget(machine)
                raise ValueError(f"it is said to hold {piece.samples:,} samples, and its ranges have others")
            chunks = Chunks(self.weights.layout.elements, CODECS[piece.encoding])
            assembly = Assembly(chunks)
            contribution = Contribution(piece.samples, assembly.parcel)
            delta = self._deltas[machine] = _Delta(piece.delta, ranges, contribution, assembly)
        try:
            if piece.delta != delta.number:
                raise ChunkError(f"delta {piece.delta} came after delta {delta.number}")
            delta.assembly.take(piece, payload)
            fault = self.weights.find_fault(delta.contribution)
            if fault is not None:
                raise ValueError(fault)
        except ValueError:
            self.forget(machine)
            raise
        if delta.assembly.is_whole and self._first_at is None:
            self._first_at = self._clock()

    def forget(self, machine: str) -> None:
        """Throw away what has come of a machine's delta."""
        self._deltas.pop(machine, None)
        if not self.brought:
            self._first_at = None

    def begin_at(self, weights: Parcel, ledger: Ledger, round_: int) -> None:
        """Go on from other weights, with their ledger; deltas and updates up to now are no use any more."""
        self.weights.begin_at(weights)
        self.ledger, self.round = ledger, round_
        self._deltas.clear()
        self._kept.clear()
        self._first_at = None

    def is_due(self, expected: Set[str]) -> bool:
        """Whether the round is to be closed now.

        Args:
            expected: the machines that will bring a delta.
        """
        if self._first_at is None:
            return False
        grace = GRACE * self._settings.round_seconds
        return expected <= self.brought or self._clock() - self._first_at >= grace

    def close(self) -> Closed:
        """Merge what is there as a whole; the ledger decides about each delta."""
        now = self._clock()
        taken: dict[str, _Delta] = {}
        refused = []
        for machine in sorted(self.brought):
            delta = self._deltas.pop(machine)
            if self._accept(machine, delta):
                taken[machine] = delta
            else:
                refused.append(machine)
        update = self._merge(taken) if taken else None
        closed = Closed(
            update,
            tuple(refused),
            self._received,
            now - self._closed_at,
            0.0 if self._first_at is None else now - self._first_at,
        )
        self._first_at, self._closed_at, self._received = None, now, 0
        return closed

    def _accept(self, machine: str, delta: _Delta) -> bool:
        try:
            return self.ledger.accept(machine, delta.ranges)
        except ValueError:  # ranges that overlap, or lie outside of the run
            return False

    def _merge(self, taken: dict[str, _Delta]) -> Update:
        self.weights.send_as(codec_of(self._settings, self.round))
        parcel = self.weights.merge({machine: delta.contribution for machine, delta in taken.items()})
        merged = tuple(
            Merged(machine, delta.number, delta.contribution.samples) for machine, delta in taken.items()
        )
        update = Update(self.round, base_of(self.ledger, self.round + 1), merged, parcel)
        self._kept[self.round] = update
        self.round += 1
        room = max(KEPT_BYTES, self.weights.base.nbytes)
        while len(self._kept) > 1 and sum(one.parcel.held_bytes for one in self._kept.values()) > room:
            del self._kept[min(self._kept)]
        return update


def base_of(ledger: Ledger, round_: int) -> Base:
    """Return the name of the common weights that hold what a ledger has accepted."""
    return Base(ledger.history.branches[0].name, ledger.branch[0], round_, ledger.accepted)


def codec_of(settings: Settings, round_: int) -> Codec:
    """Return how the update that leads on from a round is sent: the first ones without loss."""
    return CODECS["fp32" if round_ < settings.dense_rounds else settings.encoding]


def outer_step_of(settings: Settings) -> OuterStep:
    """Return what the settings make of the average of all deltas."""
    momentum = settings.outer_momentum if settings.outer == "momentum" else 0.0
    return OuterStep(settings.outer_rate, momentum)
