"""How far a run is, in samples: what the screen, the events and the report tell of a ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lowmem_seq.cluster.messages import Base


@dataclass(frozen=True)
class Share:
    """Samples of one machine, or of all."""

    accepted: int
    """Merged; each position once."""
    in_flight: int
    """On lease now, trained or not."""
    repeated: int
    """Given out although they had been given out before, in leases that were lost."""
    discarded: int
    """Trained and thrown away, also by losing sides of splits."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands."""

    total: int
    """Positions of the whole run."""
    epoch_size: int
    all_machines: Share
    by_machine: Mapping[str, Share]
    """Of all that ever took part."""

    @property
    def remaining(self) -> int:
        """Samples that are not merged."""
        return self.total - self.all_machines.accepted

    @property
    def is_complete(self) -> bool:
        """Whether all is merged."""
        return not self.remaining

    @property
    def progress(self) -> float:
        """Share of the run that is merged."""
        return self.all_machines.accepted / self.total

    @property
    def epoch(self) -> float:
        """How many epochs' worth of samples is merged."""
        return self.all_machines.accepted / self.epoch_size


def told_standing(base: Base, standing: Standing, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the event that tells who did what: one a round, from the hub, and from each machine beside the host.

    Args:
        base: the weights that hold this work.
        standing: of the ledger that belongs to them.
        names: of the machines that are there, by id.
    """
    return {
        "event": "standing",
        "cluster": base.cluster,
        "branch": base.branch,
        "round": base.round,
        "accepted": standing.all_machines.accepted,
        "total": standing.total,
        "machines": {
            machine: {
                "name": names.get(machine),
                "accepted": share.accepted,
                "repeated": share.repeated,
                "discarded": share.discarded,
            }
            for machine, share in standing.by_machine.items()
        },
    }
