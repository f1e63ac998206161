"""The ranks of a world find each other, and see that they would train the same, before anything is exchanged.

What a launch asked for and what came are compared here: a rank that does not come, or trains something else, is an
error that names it, on all of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from lowmem_seq.cluster.pulse import Store, left_key
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.errors import ClusterError, StoppedError

LOOK_SECONDS = 0.1
SECONDS_TO_READ = 5.0
"""How long the rank that holds the store waits for the others to read what differs."""
COMPARED = {
    "program": "install the same version of lowmem-seq for every rank",
    "torch": "install the same version of torch for every rank",
    "experiment": "start every rank with the same preset and settings",
    "total_steps": "start every rank with the same --steps or --epochs",
    "data": "every rank needs the same images: copy them, or let --data name the same source",
}
"""What must be alike, and what to do where it isn't."""


@dataclass(frozen=True)
class Hello:
    """What a rank says of itself."""

    machine: str
    """Its machine's name, for people and to tell who shares one."""
    program: str
    torch: str
    experiment: str
    total_steps: int
    data: str
    device: str
    precision: str
    images_per_second: float
    """As its plan knows it."""

    def name(self, number: int) -> str:
        """Return the rank for people."""
        return f"rank {number} ({self.machine})"


def call_roll(
    rank: Rank, hello: Hello, store: Store, within_seconds: float, stop_requested: Callable[[], bool]
) -> list[Hello]:
    """Say hello, and return what all ranks said, in their order.

    Raises:
        ClusterError: one did not come in time, has ended, or would train something else.
        StoppedError: a stop was asked for.
    """
    store.set(_key(rank.number), json.dumps(asdict(hello)))
    until = time.monotonic() + within_seconds
    while missing := [number for number in range(rank.of) if not store.check([_key(number)])]:
        for number in missing:
            if store.check([left_key(number)]):
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
                "see what it says itself; where it still packs images or measures, allow for that: "
                "--set cluster.form_within=10min",
            )
        time.sleep(LOOK_SECONDS)
    hellos = [Hello(**json.loads(store.get(_key(number)))) for number in range(rank.of)]
    _wait_until_all_have_read(rank, store)
    require_alike(hellos)
    return hellos


def _wait_until_all_have_read(rank: Rank, store: Store) -> None:
    """Let a store that ends with rank 0 stand until the others know as well."""
    store.add("read", 1)
    until = time.monotonic() + SECONDS_TO_READ
    while rank.is_first and store.add("read", 0) < rank.of and time.monotonic() < until:
        time.sleep(LOOK_SECONDS / 10)


def require_alike(hellos: list[Hello]) -> None:
    """See that all ranks would train the same.

    Raises:
        ClusterError: one wouldn't; the first thing that differs is named.
    """
    first = hellos[0]
    for field, hint in COMPARED.items():
        for number, other in enumerate(hellos):
            ours, theirs = getattr(first, field), getattr(other, field)
            if ours != theirs:
                raise ClusterError(
                    f"{other.name(number)} has another {field.replace('_', ' ')} than {first.name(0)}: "
                    f"{_short(theirs)}, and not {_short(ours)}.",
                    hint,
                )


def _key(number: int) -> str:
    return f"hello/{number}"


def _short(value: object) -> str:
    return str(value)[:12]
