"""What a machine has of the common weights, what it has trained beyond them, and on which samples.

Both threads of a member touch it, and take turns (member.py has the lock). Only the one that trains has the
tensors: whatever changes them or is made of them happens in `between`. The other one brings what came from the hub:
updates by `begin_update`, whole weights by `bring`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowmem_seq.cluster.compression import CODECS, Chunks, Codec, Fp32
from lowmem_seq.cluster.deltas import Parcel
from lowmem_seq.cluster.holdings import Holdings
from lowmem_seq.cluster.layout import Floats, Layout
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.member_alone import Lone
from lowmem_seq.cluster.member_checkpoint import Saved
from lowmem_seq.cluster.messages import Base, Settings
from lowmem_seq.cluster.outer import EXACT
from lowmem_seq.cluster.pieces import Cutter
from lowmem_seq.cluster.ranges import Range
from lowmem_seq.cluster.replica import Replica

NUMBERS_SINCE = 1_600_000_000
"""Deltas are numbered from the seconds since then (2020) on, so that a restarted machine uses higher numbers
than it had before."""
LEDGERS_KEPT = 3


class Delta:
    """What is handed in of a machine's work.

    Args:
        number: by which the hub tells that it was merged.
        base_round: the round of the weights that it goes beyond.
        ranges: what it was trained on.
        cutter: what it is sent as.
    """

    def __init__(self, number: int, base_round: int, ranges: tuple[Range, ...], cutter: Cutter) -> None:
        self.number, self.round, self.ranges, self.cutter = number, base_round, ranges, cutter
        self.samples = sum(end - start for start, end in ranges)
        self.next_piece = 0
        """Of those that go out on the present connection."""
        self.handed_over = False
        """Whether the hub may have all of it: then it may be merged at any time, and nothing can take its place."""


@dataclass(frozen=True)
class Update:
    """An update that came whole."""

    parcel: Parcel
    base: Base
    """What the weights are then."""
    merged: bool
    """Whether this machine's delta is in it."""


class Work:
    """A machine's weights and samples.

    Args:
        machine: its id.
        layout: of the tensors.
        batch: samples of its optimizer steps.
        clock: seconds that only grow.
    """

    def __init__(self, machine: str, layout: Layout, batch: int, clock: Callable[[], float]) -> None:
        self.machine, self.layout, self.batch, self._clock = machine, layout, batch, clock
        self.replica = Replica(layout, Fp32(), np.zeros(layout.elements, np.float32))
        self.holdings = Holdings()
        self.settings: Settings | None = None
        self.base: Base | None = None
        """The name of the replica's base; None: nothing came yet."""
        self.beginning = False
        """Whether it begins anew, and waits for whole weights."""
        self.delta: Delta | None = None
        self.receiving = False
        """Whether the other thread is at an update: the replica is its own meanwhile."""
        self.finish: Base | None = None
        """The last common weights of the run, once the hub said that it is finished."""
        self.idle = False
        """Whether nothing is left to train here: what was trained is handed in at once."""
        self.peers: tuple[str, ...] = ()
        """Ids of all that took part when the hub was heard last."""
        self.lone: Lone | None = None
        self.upload_wanted = False
        self.upload: Delta | None = None
        """The weights on their way to a hub whose own ledger lost; until it answers they stay the base."""
        self._incoming: tuple[Parcel, Base] | None = None
        self._due = math.inf
        self._settled = self._fall_back = False
        self._number = max(0, int(time.time()) - NUMBERS_SINCE)
        self._ledgers: dict[int, str] = {}
        self._corrected: Base | None = None
        self._merged_lately: list[tuple[int, tuple[Range, ...]]] = []
        self._speed_samples = self._speed_seconds = 0.0

    # What was trained

    @property
    def samples_per_second(self) -> float:
        """As measured lately; 0: not known."""
        return self._speed_samples / self._speed_seconds if self._speed_seconds else 0.0

    def note_trained(self, ranges: Iterable[Range], seconds: float) -> None:
        """Note a step."""
        ranges = list(ranges)
        self.holdings.note_trained(ranges)
        kept = math.exp(-seconds / 30)
        self._speed_samples = kept * self._speed_samples + sum(end - start for start, end in ranges)
        self._speed_seconds = kept * self._speed_seconds + seconds

    @property
    def finished(self) -> bool:
        """Whether all samples are accepted, and the last weights are here."""
        if self.lone is not None:
            return self.lone.ledger.is_complete
        return self.finish is not None and self.base == self.finish

    # Between two steps

    def needs_tensors(self) -> bool:
        """Whether `between` has something to do. Asked without the lock: it may come a step late, never wrong."""
        if self.receiving:
            return False
        if self._incoming is not None or self._fall_back or self.upload_wanted:
            return True
        if self.base is None or self.beginning:
            return False
        if self.replica.needs_correction:
            return True
        if self.finished:
            return not self._settled
        if self.upload is not None or (self.delta is not None and self.lone is None):
            return False
        return self.holdings.unmerged.size > 0 and (self.idle or self._clock() >= self._due)

    def between(self, tensors: Mapping[str, Floats]) -> bool:
        """Do what is due; return whether the tensors were changed."""
        if self.receiving:
            return False
        changed = self._correct(tensors)
        if self.finished and not self._settled:
            self.replica.settle(tensors)
            self._settled = changed = True
        elif self.needs_tensors():
            self.hand_in(tensors)
        return changed

    def _correct(self, tensors: Mapping[str, Floats]) -> bool:
        if self._incoming is not None:
            parcel, base = self._incoming
            self.replica.adopt(parcel, tensors)
            self._incoming = None
            self.beginning = False
            self.base = self._corrected = base
            self._due = self._clock() + self._round_seconds
            return True
        if self._fall_back:
            self.replica.settle(tensors)
            self._fall_back, self._corrected = False, self.base
            return True
        if self.replica.needs_correction and not self.beginning:
            self.replica.correct(tensors)
            self._corrected = self.base
            return True
        return False

    def hand_in(self, tensors: Mapping[str, Floats]) -> None:
        """Make a delta of what was trained; a lone machine takes it as merged."""
        if self.base is None or self.beginning:
            return
        if self.lone is not None:
            self._due = self._clock() + self._round_seconds
            self._accept_alone(tensors)
            return
        ranges = tuple(self.holdings.unmerged)
        if not ranges or self.settings is None or self.delta is not None:
            return
        self._due = self._clock() + self._round_seconds
        dense = self.base.round < self.settings.dense_rounds
        codec: Codec = Fp32() if dense else CODECS[self.settings.encoding]
        self.replica.snapshot(tensors, codec)
        self._number += 1
        cutter = Cutter(self.replica.chunks, self.replica.chunk)
        self.delta = Delta(self._number, self.base.round, ranges, cutter)

    # What comes from the hub

    def begin_anew(self) -> None:
        """Drop all that is not in the common weights: those that the hub has now replace them."""
        self.beginning, self._fall_back, self._incoming = True, False, None
        self.delta = self.upload = self.lone = None
        self.upload_wanted = self.idle = False
        self.holdings.clear()

    @property
    def has_incoming(self) -> bool:
        """Whether whole weights are here that the tensors don't have yet."""
        return self._incoming is not None

    @property
    def has_weights_for_tensors(self) -> bool:
        """Whether training can begin once `between` was called."""
        return self._incoming is not None or self._fall_back

    def bring(self, parcel: Parcel, base: Base) -> None:
        """Have whole weights, with which `between` begins anew."""
        if not self.beginning:
            self.begin_anew()
        self._incoming = parcel, base
        self._merged_lately.clear()

    def begin_update(self, parcel: Parcel, base: Base, deltas: Iterable[int]) -> Update | None:
        """Make ready to receive an update; the replica is the caller's until `end_update`.

        Args:
            parcel: all of it.
            base: what the weights are then.
            deltas: this machine's that are in it.

        Returns:
            What to receive. None where it has work in it of which this machine knows nothing any more: it begins
            anew.
        """
        merged = list(deltas)
        if merged and (self.delta is None or merged != [self.delta.number]):
            self.begin_anew()
            return None
        self.receiving = True
        return Update(parcel, base, bool(merged))

    def end_update(self, update: Update) -> None:
        """Note that the replica has received it."""
        self.receiving = False
        self.base = update.base
        if update.merged and self.delta is not None:
            self.holdings.note_merged(self.delta.ranges)
            self._merged_lately.append((update.base.round, self.delta.ranges))
            self.delta = None
        now = self._clock()
        if now < self._due:  # all machines count from the same moment; who was about to hand in still does
            self._due = now + self._round_seconds

    def line_lost(self) -> None:
        """Note that nothing on its way arrives any more."""
        self.upload, self.upload_wanted = None, False
        if self.delta is not None:
            self.delta.next_piece = 0
            if not self.delta.handed_over:
                self.delta = None  # the hub can't have it; another one will hold this work and what follows

    def learn(self, base: Base, ledger: str) -> None:
        """Keep the ledger that belongs to some common weights."""
        self._ledgers[base.round] = ledger
        for old in sorted(self._ledgers)[:-LEDGERS_KEPT]:
            del self._ledgers[old]
        self._forget_merged(base.round)

    # Alone

    @property
    def can_go_alone(self) -> bool:
        """Whether it has weights, and a ledger that says which samples are left."""
        return self.base is not None and self._newest_ledger(self.base) is not None

    def go_alone(self) -> None:
        """Go on without the hub.

        Raises:
            ValueError: the ledger that it told is damaged.
        """
        if self.base is None or self.lone is not None:
            return
        if self.beginning:  # the newest weights will not come: those that came last are still here
            self.beginning, self._fall_back, self._incoming = False, True, None
        told, newest = self._ledger_of(self.base), self._newest_ledger(self.base)
        merged = self._merged_after(-1 if newest is None else newest)
        self.lone = Lone.of_split(self.machine, told, self.base, self.peers, self.holdings, merged)
        self.base = self.lone.name_of(self.base.round)
        self.idle = False
        self._due = self._clock() + self._round_seconds

    def return_untouched(self) -> None:
        """Go on as if the hub had not been away."""
        if self.lone is not None:
            self.lone.give_back(self.holdings)
            self.base, self.lone = self.lone.before, None

    @property
    def shown_base(self) -> Base | None:
        """The base that the hub is told: of a short absence it need not know."""
        if self.lone is not None and self.lone.can_return(self.holdings):
            return self.lone.before
        return self.base

    def take_up(self, base: Base, ledger: str) -> None:
        """Go on with the hub, which took this machine's weights as the common ones."""
        self.base = self._corrected = base
        self.lone = self.upload = self.finish = None
        self._ledgers = {base.round: ledger}
        self._due = self._clock() + self._round_seconds

    def _accept_alone(self, tensors: Mapping[str, Floats]) -> None:
        if self.lone is None or self.base is None or self.upload is not None:
            return
        self.delta = None
        if self.holdings.unmerged.size:
            self.base = self.lone.accept(self.holdings, self.base)
        self.replica.begin_here(tensors)
        self._corrected = self.base
        if self.upload_wanted:
            chunks = Chunks(self.layout.elements, EXACT)
            cutter = Cutter(chunks, lambda index: EXACT.encode(self.replica.base[chunks.span(index)]))
            self.upload, self.upload_wanted = Delta(0, self.base.round, (), cutter), False

    # Checkpoints

    def saved(self) -> Saved:
        """Return what a checkpoint holds: it fits the tensors as they were corrected last."""
        if self.lone is not None:
            told: Any = self.lone.told(self.holdings)
            unmerged = self.holdings.unmerged
        else:
            told = None if self._corrected is None else self._ledger_of(self._corrected)
            unmerged = self.holdings.unmerged.copy()
            for start, end in self._merged_after(-1 if self._corrected is None else self._corrected.round):
                unmerged.include(start, end)
        return Saved(
            format_version=1,
            settings=self.settings,
            base=self._corrected,
            alone=self.lone is not None,
            ledger=told,
            machines=self.peers,
            leases=tuple((one.lease, one.start, one.end, one.reached) for one in self.holdings.held),
            deltas=self._number,
            unmerged=tuple(unmerged),
        )

    def number_after(self, saved: Saved) -> None:
        """Number deltas from here on higher than those before a checkpoint."""
        self._number = max(self._number, saved.deltas)

    def resume_alone(self, saved: Saved | None, tensors: Mapping[str, Floats]) -> None:
        """Go on from a checkpoint without the hub: its weights are the base of a branch of one's own.

        Raises:
            ValueError: it has no ledger, or one that is damaged, or the tensors aren't those of the layout.
        """
        if saved is None or saved.base is None or saved.ledger is None:
            raise ValueError("the checkpoint has no ledger of the cluster")
        if self.settings is None and saved.settings is None:
            raise ValueError("the checkpoint does not have the cluster's settings")
        self.replica.begin_here(tensors)
        self.settings = self.settings or saved.settings
        for lease, start, end, reached in saved.leases:
            self.holdings.give(lease, start, end, reached)
        if saved.alone:
            self.lone = Lone(self.machine, Ledger.from_json(saved.ledger), saved.base, touched=True)
            if saved.unmerged and not self.lone.ledger.accept(self.machine, saved.unmerged):
                raise ValueError("the checkpoint's ledger does not have the work that its weights have")
        else:
            self.lone = Lone.of_split(
                self.machine, saved.ledger, saved.base, saved.machines, self.holdings, saved.unmerged, touched=True
            )
        self.base = self._corrected = self.lone.name_of(saved.base.round + 1)
        self.peers = saved.machines
        self.holdings.note_merged(saved.unmerged)
        self._due = self._clock() + self._round_seconds

    def _merged_after(self, base_round: int) -> list[Range]:
        return [one for number, ranges in self._merged_lately if number > base_round for one in ranges]

    def _forget_merged(self, told_round: int) -> None:
        """Forget what the ledger and the corrected weights both have."""
        both = min(told_round, told_round if self._corrected is None else self._corrected.round)
        self._merged_lately = [one for one in self._merged_lately if one[0] > both]

    def _newest_ledger(self, base: Base) -> int | None:
        return max((number for number in self._ledgers if number <= base.round), default=None)

    def _ledger_of(self, base: Base) -> Any:
        newest = self._newest_ledger(base)
        return None if newest is None else json.loads(self._ledgers[newest])

    @property
    def _round_seconds(self) -> float:
        return self.settings.round_seconds if self.settings is not None else 60.0
