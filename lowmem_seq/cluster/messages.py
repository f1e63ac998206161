"""What a client and the hub say to each other: every kind of message, its fields and their limits.

Each side may say only its own kinds. Positions count samples of the run's one global order, from 0 to
`epochs x train images`; a round is numbered by the weights that it starts from. frames.py has the bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

MOST_MACHINES = 32
"""Of one cluster: a header has room for as many peers, whatever their names are."""
Short = Annotated[str, Meta(max_length=64)]
Long = Annotated[str, Meta(max_length=500)]
MachineId = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
"""As token.machine_id makes it."""
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{8,64}\Z")]
"""A hash or a random name, in hex."""
Position = Annotated[int, Meta(ge=0, le=2**53 - 1)]
"""A sample's place in the global order, or a number of samples: whole in every language's numbers."""
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Some = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Rate = Annotated[float, Meta(ge=0, le=1e9)]
MOST_BALLAST_BYTES = 2**18
"""As long as the longest payload."""
LedgerText = Annotated[str, Meta(max_length=60_000)]
"""A ledger as JSON (ledger_file.py). Its quotes are escaped, and count double towards the bytes of a header."""
Seconds = Annotated[float, Meta(ge=0, le=86400)]
Encoding = Literal["int8", "bf16", "fp32"]
Reason = Literal["hello_first", "replaced", "format", "identity", "full", "dropped", "no_pack", "stopping"]
"""hello_first: say hello. replaced: another connection showed the same machine key. format: a message could not be
read. identity: the machine key is another machine's. full: too many machines. dropped: the hub gave this machine
up; say hello, and take the newest common weights. no_pack: what was asked for of the packed images can't be sent.
stopping: the hub ends."""
Which = Literal["weights", "average"]
"""weights: the common weights that training goes on from. average: after `finished`, the host's averaged weights,
with which the run ends; unanswered as long as the host has not made them."""
PackPart = Literal["description", "train.images", "train.labels", "test.images", "test.labels"]
"""description: what the host says of its packed images (pack_told.py). The others: the pack's files as they are."""
State = Literal["joining", "training", "evaluating", "saving", "paused", "waiting"]


SAME_RELEASE_HINT = "install the same version of lowmem-seq on every machine"
"""What helps where two machines don't understand each other."""


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message."""


class Range(Part, frozen=True, array_like=True):
    """Samples [start, end) of the global order; on the wire `[start, end]`."""

    start: Position
    end: Position

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"the range [{self.start}, {self.end}) is empty")


class Base(Part, frozen=True):
    """Which common weights a machine holds."""

    cluster: Digest
    branch: Digest
    """A name that changes where a cluster splits: rounds of two branches don't compare."""
    round: Count
    accepted: Position
    """Samples whose work is in these weights. On reunion the branch with more of them wins."""


class Progress(Part, frozen=True):
    """How far a machine is in one of its leases."""

    lease: Count
    done: Position
    """Samples trained, from the lease's start on."""


class Lease(Part, frozen=True):
    """Samples that one machine, and no other, is to train."""

    lease: Count
    range: Range
    seconds: Seconds
    """For how long, unless a beat renews it."""


class Merged(Part, frozen=True):
    """A delta that is in an update."""

    machine: MachineId
    delta: Count
    samples: Position


class Peer(Part, frozen=True):
    """A machine of the cluster, for the others to show."""

    machine: MachineId
    name: Short
    device: Short
    precision: Short
    effective_batch: Some
    samples_per_second: Rate
    accepted: Position
    """Samples of this machine that are in the common weights."""
    state: State


class Settings(Part, frozen=True):
    """How this cluster works together: the hub's settings, which all follow."""

    round_seconds: Seconds
    """How long a machine trains between two snapshots."""
    beat_seconds: Seconds
    """How often each side says that it lives: a client by `beat`, the hub by `peers`."""
    lost_after_seconds: Seconds
    """A side that was silent for so long counts as lost."""
    encoding: Encoding
    """Of deltas and updates, after the dense rounds."""
    dense_rounds: Count
    """How many first rounds go without compression."""
    outer: Literal["plain", "momentum"]
    outer_rate: Annotated[float, Meta(gt=0, le=10)]
    outer_momentum: Annotated[float, Meta(ge=0, lt=1)]


class Message(Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    """What one side says to the other."""


class Piece(Message, frozen=True):
    """One of the pieces that some encoded bytes travel in, in order; the piece itself is the only payload.

    pieces.py says where the cuts are.
    """

    encoding: Encoding
    index: Count
    """From 0."""
    count: Some
    total_bytes: Annotated[int, Meta(ge=1, le=2**33)]
    """Of all pieces together. A claim: compare it with what the model has before holding room for it."""

    def __post_init__(self) -> None:
        if self.index >= self.count:
            raise ValueError(f"there is no piece {self.index} of {self.count}")
        if self.count > self.total_bytes:
            raise ValueError(f"{self.total_bytes} bytes can't be in {self.count} pieces")


class Ballast(Message, frozen=True):
    """One that may come with a payload, which is there for its length alone."""


class LedgerTold(Message, frozen=True, tag="ledger"):
    """Both sides: which samples are in some common weights, and who did what.

    The hub says it after what brings a machine to its newest weights: with that a machine can go on alone.

    A machine that comes back with weights of another branch than `welcome` names says its own, and trains on
    without sending deltas or asking for leases until the hub answers: by `upload_wanted`, or by its ledger. Where
    the machine's branch is among those of the hub's ledger, its upload became the base; otherwise it takes the
    hub's weights (`weights_wanted` without a base).
    """

    base: Base
    ledger: LedgerText


class Hello(Message, frozen=True, tag="hello"):
    """Client: who it is and what it would train; the first message of each connection."""

    machine: MachineId
    machine_key: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    """What proves the id: see token.machine_id. The hub tells it to nobody."""
    name: Short
    program: Short
    """Version of lowmem-seq."""
    torch: Short
    python: Short
    system: Short
    experiment: Digest
    """Of all settings that decide what is trained."""
    data: Digest | None
    """The dataset's fingerprint; null: it has none, and would fetch the host's pack."""
    layout: Digest | None
    """Of the names, shapes and order of the tensors; null: this is not a machine yet that trains, but one that asks
    whether it would be let in."""
    device: Short
    precision: Short
    effective_batch: Some
    samples_per_second: Rate
    base: Base | None
    """The newest common weights that it holds; null: none."""


class Beat(Message, frozen=True, tag="beat"):
    """Client: that it lives, and how far it is. Renews its leases."""

    round: Count | None
    """Of the common weights that it holds now."""
    state: State
    samples_per_second: Rate
    leases: Annotated[tuple[Progress, ...], Meta(max_length=64)]


class Want(Message, frozen=True, tag="want"):
    """Client: a lease of about so many seconds of its work."""

    request: Count
    """Its own number; `leased` repeats it."""
    seconds: Seconds


class DeltaPiece(Piece, frozen=True, tag="delta"):
    """Client: a piece of what its training changed since the round's base weights."""

    delta: Count
    """Grows with each delta of a machine, so that pieces of two attempts at one round never mix."""
    round: Count
    samples: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    ranges: Annotated[tuple[Range, ...], Meta(min_length=1, max_length=256)]
    """The samples that it was trained on, in the order of training."""


class WeightsWanted(Message, frozen=True, tag="weights_wanted"):
    """Client: send what leads to the newest common weights; unanswered as long as the hub has none."""

    base: Base | None
    """The newest that it holds: updates from there are enough, if the hub still has them. null: it begins anew from
    what comes, and what it had in flight is lost."""
    part: Which
    index: Count
    """The first piece that it still needs, after a transfer that broke off."""


class UploadPiece(Piece, frozen=True, tag="upload"):
    """Client: a piece of the weights that it went on with while the hub was gone, as `upload_wanted` asks."""

    base: Base
    """What they are, as the `ledger` that it said last has it."""


class PackWanted(Message, frozen=True, tag="pack_wanted"):
    """Client: send a piece of the host's packed images. A few may be asked for ahead."""

    data: Digest | None
    """The fingerprint of the pack that is meant; null: whichever the host has."""
    part: PackPart
    index: Count


class Bye(Message, frozen=True, tag="bye"):
    """Client: it leaves now, and its leases are free."""

    reason: Literal["finished", "stopped", "failed"]
    text: Long


class Probe(Ballast, frozen=True, tag="probe"):
    """Client: answer me, to be timed (`lowmem-seq doctor --peer`). Needs no hello, and changes nothing at the hub.

    What it carries tells how fast the line is towards the hub.
    """

    request: Count
    """Its own number; `probed` repeats it."""
    want_bytes: Annotated[int, Meta(ge=0, le=MOST_BALLAST_BYTES)]
    """What the answer shall carry, which tells how fast the line is from the hub."""


class Welcome(Message, frozen=True, tag="welcome"):
    """Hub: come in; this is where the run stands and how it goes."""

    base: Base
    total: Position
    """Samples of the whole run."""
    settings: Settings
    peers: Annotated[tuple[Peer, ...], Meta(max_length=MOST_MACHINES)]


class Refused(Message, frozen=True, tag="refused"):
    """Hub: what you would train is something else."""

    field: Short
    """The field of `hello` that differs."""
    ours: Long
    """The hub's value."""
    theirs: Long
    hint: Long


class Leased(Message, frozen=True, tag="leased"):
    """Hub: the samples to train next."""

    request: Count
    leases: Annotated[tuple[Lease, ...], Meta(max_length=64)]
    wait_seconds: Seconds | None
    """Where there is no lease to give at the moment: ask again then."""


class WeightsPiece(Piece, frozen=True, tag="weights"):
    """Hub: a piece of the common weights."""

    part: Which
    base: Base


class UpdatePiece(Piece, frozen=True, tag="update"):
    """Hub: a piece of what leads from one round's common weights to another's."""

    from_round: Count
    base: Base
    """What the weights are then."""
    merged: Annotated[tuple[Merged, ...], Meta(max_length=MOST_MACHINES)]
    """Whose work is in it: a machine that is missing here sends its delta again, on the new base."""


class PackPiece(Message, frozen=True, tag="pack"):
    """Hub: a piece of a part of the packed images, as the only payload; all but the last are as long as can be."""

    data: Digest
    part: PackPart
    index: Count
    total_bytes: Annotated[int, Meta(ge=1, le=2**50)]
    """Of the part. A claim, as a piece's is."""


class UploadWanted(Message, frozen=True, tag="upload_wanted"):
    """Hub: your ledger wins; send it again as it is when you take the weights that you then send by `upload`."""

    base: Base
    """As the client's `ledger` had it."""


class Peers(Message, frozen=True, tag="peers"):
    """Hub: that it lives, and who else does."""

    round: Count
    accepted: Position
    peers: Annotated[tuple[Peer, ...], Meta(max_length=MOST_MACHINES)]


class Finished(Message, frozen=True, tag="finished"):
    """Hub: every sample is accepted; these are the last common weights."""

    base: Base


class Probed(Ballast, frozen=True, tag="probed"):
    """Hub: the answer to `probe`.

    It carries less than was wanted where probes took their share of the line already (probes.py).
    """

    request: Count
    unix_seconds: Annotated[float, Meta(ge=0, le=2**35)]
    """The hub's clock."""
    program: Short
    torch: Short
    python: Short
    system: Short


class GoAway(Message, frozen=True, tag="go_away"):
    """Hub: this connection is no use any more."""

    reason: Reason
    text: Long


FromClient = Hello | Beat | Want | DeltaPiece | WeightsWanted | LedgerTold | UploadPiece | PackWanted | Bye | Probe
FromHub = (
    Welcome
    | Refused
    | Leased
    | WeightsPiece
    | UpdatePiece
    | LedgerTold
    | PackPiece
    | UploadWanted
    | Peers
    | Finished
    | Probed
    | GoAway
)
