"""What is left of a run of several machines, for one of them that goes on by itself, without dialling anybody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lowmem_seq.cluster.holdings import Holdings
from lowmem_seq.cluster.member_checkpoint import Saved, to_json
from lowmem_seq.cluster.messages import Base
from lowmem_seq.cluster.opening import STANDING, ledger_of
from lowmem_seq.cluster.opening import standing_of as standing_of
from lowmem_seq.cluster.standing import told_standing
from lowmem_seq.files import write_json
from lowmem_seq.training.loop import Training
from lowmem_seq.training.workers import Range

LEASE_SECONDS = 60.0


class Rest:
    """The positions that nobody's work in these weights has had, in their order.

    Args:
        training: the session, at a checkpoint of a cluster.
        machine: this machine's id there.
        saved: where it stood.

    Raises:
        NoCheckpointError: that is damaged.
    """

    validates = True

    def __init__(self, training: Training, machine: str, saved: Saved) -> None:
        self._training, self._machine, self._saved = training, machine, saved
        self._holdings = Holdings()
        total = training.total_steps * training.batch
        self._ledger = ledger_of(saved, machine, total, training.parts.train.size)
        training.set_length(-(-self._ledger.total // training.batch))

    @property
    def is_over(self) -> bool:
        """Whether nothing is left."""
        return self._ledger.is_complete

    @property
    def saved_bytes(self) -> int:
        """The ledger is small."""
        return 0

    @property
    def samples_done(self) -> int:
        """What the ledger has accepted."""
        return self._ledger.accepted

    def before_step(self) -> None:
        """Nobody else does anything; at the end the counters say so."""
        if self.is_over:
            self._training.state.counters.step = self._training.total_steps

    def take(self, samples: int) -> list[Range]:
        """Return the lowest positions that are left."""
        if self._holdings.untaken < samples:
            speed = self._training.plan.predicted_images_per_second
            given = self._ledger.lease(self._machine, samples, speed, LEASE_SECONDS)
            for lease in given:
                self._holdings.give(lease.id, lease.start, lease.end)
            if given:
                self._tell()
        return self._holdings.take(samples)

    def trained(self, ranges: Sequence[Range], seconds: float) -> None:  # noqa: ARG002
        """Count a step's positions as done."""
        self._holdings.note_trained(ranges)
        self._ledger.accept(self._machine, ranges)
        self._holdings.note_merged(ranges)

    def writers(self) -> Mapping[str, Callable[[Path], None]]:
        """What a checkpoint holds: the ledger, as a member that went on alone has it."""
        saved, ledger = self._saved, self._ledger
        told = to_json(
            Saved(
                format_version=1,
                settings=saved.settings,
                base=self._base,
                alone=True,
                ledger=ledger.to_json(),
                machines=saved.machines or (self._machine,),
                leases=(),
                deltas=saved.deltas,
                unmerged=(),
            )
        )
        return {STANDING: lambda path: write_json(path, told)}

    def does(self, what: str) -> None:
        """Nobody is to be told."""

    def end(self, reached: bool) -> None:  # noqa: ARG002
        """Record how far this machine came."""
        self._tell()

    @property
    def _base(self) -> Base:
        """The name of the weights, on a branch of this machine's own."""
        ledger, number = self._ledger, self._saved.base.round + 1 if self._saved.base is not None else 0
        return Base(ledger.history.branches[0].name, ledger.branch[0], number, ledger.accepted)

    def _tell(self) -> None:
        """Record who did what, about once a minute: a report puts it beside what the others did."""
        event = told_standing(self._base, self._ledger.standing(), {})
        self._training.journal.record(event.pop("event"), **event, alone=True)
