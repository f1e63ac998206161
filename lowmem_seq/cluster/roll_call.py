"""The ranks of a world find each other, and see that they would train the same, before anything is exchanged.

What a launch asked for and what came are compared here: a rank that does not come, or trains something else, is an
error that names it, on all of them. The roll is called twice: by the supervisors, before minutes go into data and
plans, with what is known by then; and by the trainers, with everything.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

from lowmem_seq import __version__
from lowmem_seq.cluster.membership import machine_name
from lowmem_seq.cluster.pulse import Store, left_key
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.config import RunConfig
from lowmem_seq.errors import ClusterError, StoppedError

LOOK_SECONDS = 0.1
SECONDS_TO_READ = 5.0
"""How long the rank that holds the store waits for the others to read what differs."""
COMPARED = {
    "program": "install the same version of lowmem-seq for every rank",
    "torch": "install the same version of torch for every rank",
    "experiment": "start every rank with the same preset and settings",
    "length": "start every rank with the same --steps or --epochs",
    "data": "every rank needs the same images: copy them, or let --data name the same source",
    "device": "start no more processes on a machine than it has GPUs, or --device cpu for every rank; machines "
    "that differ train together in laptop mode: --mode laptop",
}
"""What must be alike, and what to do where it isn't. A GPU and a CPU round the same update differently."""


@dataclass(frozen=True)
class Hello:
    """What a rank says of itself."""

    machine: str
    """Its machine's name, for people and to tell who shares one."""
    program: str
    torch: str
    experiment: str
    length: str
    """The steps or epochs that were asked for."""
    data: str | None = None
    """The images' fingerprint; None, here and below: not known yet."""
    device: str | None = None
    precision: str | None = None
    images_per_second: float = 0.0
    """As its plan knows it; 0: not known yet."""

    def name(self, number: int) -> str:
        """Return the rank for people."""
        return f"rank {number} ({self.machine})"


def hello_of(config: RunConfig) -> Hello:
    """Return what a rank says of itself before it knows its images or its plan."""
    steps, epochs = config.steps, config.recipe.epochs
    return Hello(
        machine=machine_name(),
        program=__version__,
        torch=version("torch").partition("+")[0],
        experiment=config.experiment_hash(),
        length=f"{epochs} epochs" if steps is None else f"{steps} steps",
    )


def call_roll(
    rank: Rank, hello: Hello, store: Store, within_seconds: float, stop_requested: Callable[[], bool]
) -> list[Hello]:
    """Say hello, and return what all ranks said, in their order.

    Raises:
        ClusterError: one did not come in time, came twice, has ended, or would train something else.
        StoppedError: a stop was asked for.
    """
    if store.add(f"came/{rank.number}", 1) > 1:
        raise ClusterError(
            f"two processes say that they are {rank}.",
            "give each machine a number of its own: --machine_rank of accelerate, --node_rank of torchrun",
        )
    store.set(_key(rank.number), json.dumps(asdict(hello)))
    until = time.monotonic() + within_seconds
    while missing := [number for number in range(rank.of) if not store.check([_key(number)])]:
        for number in range(rank.of):
            if number != rank.number and store.check([left_key(number)]):
                why = store.get(left_key(number)).decode()
                raise ClusterError(
                    f"rank {number} has ended: {why}", "launch all of them again when that is mended"
                )
        if stop_requested():
            raise StoppedError("stopped before the ranks had found each other.", "launch all of them again")
        if time.monotonic() > until:
            named = ", ".join(str(number) for number in missing)
            raise ClusterError(
                f"{rank.of} processes were asked for, and rank {named} did not come within {within_seconds:.0f} s.",
                what_to_do(rank),
            )
        time.sleep(LOOK_SECONDS)
    hellos = [Hello(**json.loads(store.get(_key(number)))) for number in range(rank.of)]
    wait_for_readers(rank, store, "roll")
    require_alike(hellos)
    return hellos


def what_to_do(rank: Rank) -> str:
    """Return the hint for a rank to which another one does not come."""
    return (
        "see what it says itself, and whether a firewall is in the way; to start them by hand one after the other, "
        "allow for that: --set cluster.form_within=5min"
    ) + (
        "; machines that differ train together in laptop mode: set LOWMEM_SEQ_TOKEN on each of them"
        if rank.needs_fast_network
        else ""
    )


def wait_for_readers(rank: Rank, store: Store, what: str) -> None:
    """Let a store that ends with rank 0 stand until the others know as well."""
    store.add(f"read/{what}", 1)
    until = time.monotonic() + SECONDS_TO_READ
    while rank.is_first and store.add(f"read/{what}", 0) < rank.of and time.monotonic() < until:
        time.sleep(LOOK_SECONDS / 10)


def require_alike(hellos: Sequence[Hello]) -> None:
    """See that all ranks would train the same, as far as is known.

    Raises:
        ClusterError: one wouldn't; the first thing that differs is named.
    """
    first = hellos[0]
    for field, hint in COMPARED.items():
        for number, other in enumerate(hellos):
            ours, theirs = getattr(first, field), getattr(other, field)
            if ours != theirs and None not in (ours, theirs):
                raise ClusterError(
                    f"{other.name(number)} has another {field} than {first.name(0)}: "
                    f"{_short(theirs)}, and not {_short(ours)}.",
                    hint,
                )


def _key(number: int) -> str:
    return f"hello/{number}"


def _short(value: object) -> str:
    return str(value)[:12]
