"""What a checkpoint holds of a machine's part in a cluster, beside the weights: JSON of one format version.

There are no vectors in it. A machine that goes on takes the common weights anew, or, where the hub can't be
reached, its own ones as the base of a branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lowmem_seq.cluster.messages import MOST_MACHINES, Base, Count, MachineId, Position, Settings

FORMAT_VERSION = 1
Pair = tuple[Position, Position]


class Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a machine stood in the cluster."""

    format_version: Literal[1]
    settings: Settings | None
    """Of the cluster; null: the hub did not tell them yet."""
    base: Base | None
    """The common weights that its own go beyond; null: it had none yet."""
    alone: bool
    """Whether it had gone on alone; then the ledger is its own."""
    ledger: dict[str, Any] | None
    """Of that base."""
    machines: Annotated[tuple[MachineId, ...], Meta(max_length=MOST_MACHINES)]
    """All that took part."""
    leases: tuple[tuple[Position, Position, Position, Position], ...]
    """What it held: id, start, end, and the first position that was not trained."""
    deltas: Count
    """The number of its newest delta."""
    unmerged: tuple[Pair, ...]
    """What it had trained beyond that base."""

    def is_ahead_of(self, hub: Base) -> bool:
        """Whether it holds work that the hub has not, and may know of."""
        base = self.base
        if base is None or self.ledger is None or base.cluster != hub.cluster or base.branch == hub.branch:
            return False
        return base.accepted > hub.accepted


def to_json(saved: Saved) -> dict[str, Any]:
    """Return it as the checkpoint has it."""
    value: dict[str, Any] = msgspec.to_builtins(saved)
    return value


def from_json(value: Mapping[str, Any]) -> Saved:
    """Return what a checkpoint has.

    Raises:
        ValueError: another format version, or a part that is missing, unknown or of another kind.
    """
    version = value.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"the cluster's part has format version {version!r}; this release reads {FORMAT_VERSION}")
    try:
        return msgspec.convert(dict(value), Saved)
    except msgspec.ValidationError as error:
        raise ValueError(f"the cluster's part is damaged: {error}") from error
