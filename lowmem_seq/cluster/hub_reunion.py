"""Where the hub meets a machine that went on without it: which of the two sides wins, and what is taken over.

Either side may have accepted samples that the other has not: a machine that went on alone, or a hub that began
again from a save while machines still had the rounds after it. The side with more accepted samples wins (split.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from lowmem_seq.cluster import split
from lowmem_seq.cluster.compression import CODECS, Chunks
from lowmem_seq.cluster.deltas import Parcel
from lowmem_seq.cluster.hub_rounds import base_of
from lowmem_seq.cluster.hub_store import ledger_text
from lowmem_seq.cluster.layout import Layout
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.messages import Base, LedgerTold, UploadPiece, UploadWanted
from lowmem_seq.cluster.pieces import Assembly

LARGEST_ROUND = 2**30


@dataclass(frozen=True)
class Verdict:
    """What is to become of a machine that told its ledger."""

    is_foreign: bool = False
    """It is of another run, or none at all."""
    upload: UploadWanted | None = None
    """What to say to it where it wins."""
    discarded: int = 0
    """Samples of its side, where the hub wins."""


@dataclass(frozen=True)
class Taken:
    """The ledger that holds from now on, where a machine won."""

    ledger: Ledger
    discarded: int
    """Samples of the hub's side."""


class Reunions:
    """The machines that came back from other branches, as far as each has come.

    Args:
        clock: of the ledger that is taken over.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: dict[str, tuple[Base, Ledger]] = {}
        self._uploads: dict[str, Assembly] = {}

    def forget(self, machine: str) -> None:
        """Begin anew with a machine."""
        self._told.pop(machine, None)
        self._uploads.pop(machine, None)

    def compare(self, machine: str, told: LedgerTold, ours: Ledger) -> Verdict:
        """Hear a machine's ledger; where ours wins it learns what that side did."""
        self.forget(machine)
        try:
            theirs = Ledger.from_json(json.loads(told.ledger), self._clock)
            if theirs.total < ours.total:
                theirs.extend(ours.total)  # the run was made longer while it was away
            reunion = split.compare(ours, theirs)
            if theirs.total != ours.total or base_of(theirs, told.base.round) != told.base:
                raise ValueError("it is of another length, or of other weights")
            if told.base.round > LARGEST_ROUND:
                raise ValueError(f"no run has {told.base.round:,} rounds")
            if reunion.first_wins:
                split.absorb(ours, theirs)
            else:
                split.absorb(theirs.copy(), ours)  # or it would fail when the weights are here
        except (ValueError, RecursionError):
            return Verdict(is_foreign=True)
        discarded = sum(reunion.discarded.values())
        if reunion.first_wins:
            return Verdict(discarded=discarded)
        if theirs.accepted == ours.accepted and not discarded:
            return Verdict()  # neither has anything that the other lacks
        self._told[machine] = (told.base, theirs)
        return Verdict(upload=UploadWanted(told.base))

    def take(self, machine: str, piece: UploadPiece, payload: bytes, layout: Layout) -> Parcel | None:
        """Take a piece of a winner's weights in; return them once all are there.

        Raises:
            ValueError: they can't be used.
        """
        told = self._told.get(machine)
        if told is None or told[0] != piece.base:
            raise ValueError("they are not those of the ledger that it told")
        if piece.index == 0:
            self._uploads[machine] = Assembly(Chunks(layout.elements, CODECS[piece.encoding]))
        upload = self._uploads.get(machine)
        if upload is None:
            raise ValueError("their first piece did not come")
        upload.take(piece, payload)
        return upload.parcel if upload.is_whole else None

    def merge(self, machine: str, ours: Ledger) -> Taken | None:
        """Return the ledger that goes on from a machine's; None where ours has come further meanwhile."""
        _, theirs = self._told[machine]
        self.forget(machine)
        reunion = split.compare(ours, theirs)
        if reunion.first_wins:
            split.absorb(ours, theirs)
            return None
        split.absorb(theirs, ours)
        return Taken(split.fork(theirs), sum(reunion.discarded.values()))

    @staticmethod
    def text_of(ledger: Ledger) -> str:
        """Return a ledger as it travels."""
        return ledger_text(ledger.to_json())
