"""A ledger as JSON, in the words of the file: what is read is checked here for its shape and size.

It goes into checkpoints and over the wire, so it may be damaged or absurd. Whether its parts fit together is seen
by the ledger that is made of them (ledger.py).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lowmem_seq.cluster.alone import Alone
from lowmem_seq.cluster.history import MOST_BRANCHES, MOST_MACHINES, Branch, Counts, History, Strand, Tally
from lowmem_seq.cluster.positions import Lease, Positions
from lowmem_seq.cluster.ranges import Range, Ranges

FORMAT_VERSION = 1
LARGEST_POSITION = 10**15
"""A thousand times what any run has."""
LARGEST_COUNT = 10**18
"""Repeated and discarded samples may be more than there are positions."""
MOST_RANGES = 2**17
MACHINE_PATTERN = r"\A[!-~]{1,64}\Z"
"""A machine's id: up to 64 printable ASCII characters without spaces."""

Position = Annotated[int, Meta(ge=0, le=LARGEST_POSITION)]
Count = Annotated[int, Meta(ge=0, le=LARGEST_COUNT)]
Machine = Annotated[str, Meta(pattern=MACHINE_PATTERN)]
Name = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
RangesTold = Annotated[list[tuple[Position, Position]], Meta(max_length=MOST_RANGES)]
TallyTold = Annotated[dict[Machine, tuple[Count, Count, Count]], Meta(max_length=MOST_MACHINES)]
"""Accepted, repeated and discarded samples by machine."""


class LeaseTold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A lease. Times are left out: they are of a clock that ends with its process."""

    id: Count
    machine: Machine
    start: Position
    end: Position
    reached: Position


class BranchTold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A branch on the way here."""

    name: Name
    generation: Count
    begun: TallyTold


class StrandTold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A branch of a losing side."""

    name: Name
    begun: TallyTold
    reached: TallyTold


class AloneTold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who goes on alone, and among whom the order is shared."""

    machine: Machine
    machines: Annotated[list[Machine], Meta(min_length=1, max_length=MOST_MACHINES)]


class LedgerTold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A ledger; what is neither accepted nor leased is free."""

    format_version: Literal[1]
    total: Annotated[int, Meta(ge=1, le=LARGEST_POSITION)]
    epoch_size: Annotated[int, Meta(ge=1, le=LARGEST_POSITION)]
    accepted: RangesTold
    given_before: RangesTold
    lost: Annotated[dict[Machine, RangesTold], Meta(max_length=MOST_MACHINES)]
    leases: Annotated[list[LeaseTold], Meta(max_length=MOST_RANGES)]
    next_lease: Count
    counts: TallyTold
    branches: Annotated[list[BranchTold], Meta(min_length=1, max_length=MOST_BRANCHES)]
    given_up: Annotated[list[StrandTold], Meta(max_length=MOST_BRANCHES)]
    alone: AloneTold | None


def read_told(value: Any) -> LedgerTold:
    """Return the ledger that a JSON value tells.

    Raises:
        ValueError: another format version, a part that is missing, unknown or of another kind, or an absurd size.
    """
    version = value.get("format_version") if isinstance(value, dict) else None
    if version is not None and version != FORMAT_VERSION:
        raise ValueError(f"the ledger has format version {version!r}; this release reads {FORMAT_VERSION}")
    try:
        return msgspec.convert(value, LedgerTold)
    except msgspec.ValidationError as error:
        raise ValueError(f"it is no ledger: {error}") from error


def told_of(epoch_size: int, positions: Positions, history: History, alone: Alone | None) -> dict[str, Any]:
    """Return the JSON value that tells a ledger of these parts."""
    leases = sorted(positions.leases.values(), key=lambda lease: lease.start)
    ledger = LedgerTold(
        format_version=1,
        total=positions.total,
        epoch_size=epoch_size,
        accepted=list(positions.accepted),
        given_before=list(positions.given_before),
        lost={machine: list(ranges) for machine, ranges in sorted(positions.lost.items())},
        leases=[LeaseTold(one.id, one.machine, one.start, one.end, one.reached) for one in leases],
        next_lease=positions.next_lease,
        counts=_tally_told(history.counts),
        branches=[BranchTold(one.name, one.generation, _tally_told(one.begun)) for one in history.branches],
        given_up=[
            StrandTold(name, _tally_told(one.begun), _tally_told(one.reached))
            for name, one in history.given_up.items()
        ],
        alone=AloneTold(alone.machine, list(alone.machines)) if alone else None,
    )
    value: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(ledger))
    return value


def parts_of(told: LedgerTold, since: float, until: float) -> tuple[Positions, History, Alone | None]:
    """Return the parts of a ledger that was told, its leases with these times.

    Raises:
        ValueError: something is told twice, or not in the one way in which it is written.
    """
    try:
        return _parts_of(told, since, until)
    except ValueError as error:
        raise ValueError(f"the ledger is damaged: {error}") from error


def _parts_of(told: LedgerTold, since: float, until: float) -> tuple[Positions, History, Alone | None]:
    positions = Positions(told.total)
    for start, end in _ranges_of(told.accepted):
        positions.free.remove(start, end)
        positions.accepted.add(start, end)
    for one in told.leases:
        positions.free.remove(one.start, one.end)
        positions.leases[one.id] = Lease(one.id, one.machine, one.start, one.end, one.reached, since, until)
    positions.next_lease = told.next_lease
    positions.given_before = _ranges_of(told.given_before)
    positions.lost = {machine: _ranges_of(pairs) for machine, pairs in told.lost.items()}
    history = History(
        tuple(Branch(one.name, one.generation, _tally_of(one.begun)) for one in told.branches),
        _tally_of(told.counts),
        {one.name: Strand(_tally_of(one.begun), _tally_of(one.reached)) for one in told.given_up},
    )
    if len(history.given_up) < len(told.given_up):
        raise ValueError("two branches that were given up have one name")
    alone = Alone(told.alone.machine, tuple(told.alone.machines)) if told.alone else None
    if alone and (alone.machine not in alone.machines or list(alone.machines) != sorted(set(alone.machines))):
        raise ValueError("who goes on alone is not one of those who took part")
    return positions, history, alone


def require_machine(machine: str) -> None:
    """See that this is a machine's id.

    Raises:
        ValueError: it isn't.
    """
    if not re.match(MACHINE_PATTERN, machine):
        raise ValueError(f"{machine!r} is no machine's id")


def _ranges_of(pairs: list[Range]) -> Ranges:
    ranges = Ranges(pairs)
    if list(ranges) != pairs:
        raise ValueError("ranges are not sorted, or not merged")
    return ranges


def _tally_of(told: TallyTold) -> Tally:
    return {machine: Counts(*counts) for machine, counts in told.items()}


def _tally_told(tally: Tally) -> TallyTold:
    return {
        machine: (counts.accepted, counts.repeated, counts.discarded) for machine, counts in sorted(tally.items())
    }
