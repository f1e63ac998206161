"""Who of a world is still there: each rank beats in the store that all share, and hears the others.

A frozen process still answers TCP, and a step may rightly take minutes (a save that waits for a full disk), so the
time that an exchange takes tells nothing; that a rank has not beaten for a while does. A rank that leaves early
writes why into the store, as long as it can.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from lowmem_seq.errors import ClusterError

SECONDS_BETWEEN_BEATS = 1.0
START_AGAIN = "launch it again (torchrun --max-restarts 3 does so by itself): it goes on from the newest checkpoint"


class RankLost(ClusterError):  # noqa: N818 (what happened, as the other errors of a cluster)
    """Another rank has ended or is silent; the last complete step is whole."""


class Store(Protocol):
    """What a world shares: a small table of texts and counts (torch's TCPStore)."""

    def set(self, key: str, value: str, /) -> None:
        """Write a text down."""

    def get(self, key: str, /) -> bytes:
        """Return the text of a key that is there."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a count, 0 before, and return it."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all of these keys are there."""


class Pulse:
    """Beats for one rank, and hears the others, on a thread of its own.

    Args:
        store: a connection that nobody else uses: a store that is frozen itself answers nobody.
        number: this rank's.
        names: of all ranks, for people.
        lost_after_seconds: a rank that did not beat for so long is lost.
        clock: gives the seconds.
        lost: called once, by the pulse's thread, if a rank is lost; None: somebody asks by `require_all`.
    """

    def __init__(
        self,
        store: Store,
        number: int,
        names: Sequence[str],
        lost_after_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        lost: Callable[[RankLost], None] | None = None,
    ) -> None:
        self._store, self._number, self._names = store, number, names
        self._lost_after_seconds, self._clock, self._lost = lost_after_seconds, clock, lost
        self._counts = [0] * len(names)
        self._heard_at = [clock()] * len(names)
        self._answered_at = clock()
        self._left: dict[int, str] = {}
        self._store_is_gone = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        """Beat from here on."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._ended.set()

    @property
    def is_beating(self) -> bool:
        """Whether it has begun, and neither ended nor lost the store."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.beat()
            except RuntimeError:  # what torch raises of a store that is gone
                self._store_is_gone = True
            if self._lost is not None:
                self._tell_loss(self._lost)
            if self._store_is_gone:
                return
            self._ended.wait(SECONDS_BETWEEN_BEATS)

    def _tell_loss(self, lost: Callable[[RankLost], None]) -> None:
        try:
            self.require_all()
        except RankLost as error:
            if not self._ended.is_set():
                self._ended.set()
                lost(error)

    def beat(self) -> None:
        """Tell the others that this rank is there, and see who else is.

        Raises:
            RuntimeError: the store is gone.
        """
        self._store.add(f"beat/{self._number}", 1)
        for other in range(len(self._names)):
            count = self._store.add(f"beat/{other}", 0)
            if count != self._counts[other]:
                self._counts[other], self._heard_at[other] = count, self._clock()
            if other != self._number and other not in self._left and self._store.check([left_key(other)]):
                self._left[other] = self._store.get(left_key(other)).decode("utf-8", "replace")
        self._answered_at = self._clock()

    def require_all(self) -> None:
        """See that every rank is there.

        Raises:
            RankLost: one is not, or the store does not answer.
        """
        for other, cause in list(self._left.items()):
            raise RankLost(f"{self._names[other]} has ended: {cause}", START_AGAIN)
        now = self._clock()
        if self._store_is_gone or now - self._answered_at > self._lost_after_seconds:
            raise RankLost(
                f"{self._names[0]} or the launcher on its machine is gone: the store of all ranks is silent.",
                START_AGAIN,
            )
        for other, heard_at in enumerate(self._heard_at):
            if other != self._number and now - heard_at > self._lost_after_seconds:
                raise RankLost(
                    f"{self._names[other]} was not heard of for {now - heard_at:.0f} s (cluster.lost_after is "
                    f"{self._lost_after_seconds:.0f} s).",
                    f"see whether its machine sleeps or the network is cut; then {START_AGAIN}",
                )

    def quietest(self) -> str:
        """Return the other rank that was heard of longest ago, for people."""
        others = [number for number in range(len(self._names)) if number != self._number]
        return self._names[min(others, key=lambda number: self._heard_at[number])]


def left_key(number: int) -> str:
    """Return where a rank writes why it leaves."""
    return f"left/{number}"


def tell_leaving(store: Store, number: int, cause: str) -> None:
    """Write down why this rank leaves before the end, if the store still answers."""
    with contextlib.suppress(RuntimeError):
        store.set(left_key(number), cause)
