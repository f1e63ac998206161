"""A rank's part in a world before there is one: the supervisors of all ranks meet, and wait for each other.

Who does not come, or would train something else, is told within a minute, before minutes go into data and plans.
Then each beats until its trainer starts, so that one that is lost meanwhile ends the others, and one that is only
slow is waited for, however long it takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

from lowmem_seq.cluster.pulse import START_AGAIN, Pulse, RankLost, Store, left_key, tell_leaving
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.cluster.roll_call import Hello, call_roll, hello_of, require_alike, wait_for_readers, what_to_do
from lowmem_seq.cluster.table import NoTable, Section, Table, TableGone, TableLine, TableServer
from lowmem_seq.config import RunConfig
from lowmem_seq.errors import ClusterError, LowmemSeqError
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.screen import Screen
from lowmem_seq.supervisor.signals import StopSignals
from lowmem_seq.units import format_network

LOOK_SECONDS = 0.2
SECONDS_TO_TELL = 3.0
"""How long rank 0, which holds the table, stays so that the others can read why it leaves."""
SECONDS_TO_MEASURE = 15.0
"""How long each machine may take to measure the network, one after the other."""
FAST_BYTES_PER_SECOND = 5e9 / 8
"""A network on which each step's gradients may travel: Ethernet of 10 Gbit/s, not of 2.5, and no Wi-Fi."""
PREPARES, MEASURES, IS_READY = "prepares its images", "measures memory and speed", "is ready"


class Meeting:
    """This rank among the others, from the start of a session to that of its trainer.

    Args:
        run: where this rank keeps what is its own.
        rank: its place.
        config: its settings.
        screen: shows who is there, and who is waited for.
        stops: end what is under way, also if another rank is lost.
    """

    def __init__(self, run: RunFolder, rank: Rank, config: RunConfig, screen: Screen, stops: StopSignals) -> None:
        self._run, self._rank, self._config, self._screen, self._stops = run, rank, config, screen, stops
        self._store: Store | None = None
        self._server: TableServer | None = None
        self._line: TableLine | None = None
        self._pulse: Pulse | None = None
        self._hellos: list[Hello] = []
        self._mutex = threading.Lock()
        self._is_over = False

    def knock(self) -> None:
        """Meet the others, and see that all would train the same, as far as is known.

        Raises:
            KeyboardInterrupt: a stop was asked for.
            ClusterError: one did not come, would train something else, or the network is too slow.
        """
        rank, settings = self._rank, self._config.cluster
        place = f"{rank.address}:{rank.port}"
        self._screen.show({"event": "forming", "address": place, "ranks": rank.of})
        until = time.monotonic() + settings.form_within_seconds
        self._store = self._open(settings.form_within_seconds)
        self._hellos = self._ask(lambda store: self._call_roll(store, until - time.monotonic()))
        names = [one.name(number) for number, one in enumerate(self._hellos)]
        self._pulse = Pulse(self._store, rank.number, names, settings.lost_after_seconds, lost=self._lose)
        self._pulse.start()
        self._do(PREPARES)
        slowest = self._ask(self._measure_network)
        event = self._run.events.append(
            "ranks_met",
            rank=rank.number,
            machines=[one.machine for one in self._hellos],
            network_bytes_per_second=slowest,
        )
        self._screen.show(event)
        if rank.needs_fast_network and slowest is not None:
            require_fast(slowest)

    def _call_roll(self, store: Store, within_seconds: float) -> list[Hello]:
        hello = replace(hello_of(self._config), data=self._known_fingerprint())
        return call_roll(self._rank, hello, store, max(1.0, within_seconds), lambda: self._stops.count > 0)

    def open(self) -> None:
        """Now that the images are known: see that all have the same ones.

        Raises:
            ClusterError: another rank has others, as far as it has told yet; a later one will see it.
        """
        fingerprint = self._known_fingerprint()
        assert fingerprint is not None

        def compare(store: Store) -> None:
            store.set(_data_key(self._rank.number), fingerprint)
            require_alike([self._with_images(store, number) for number in range(self._rank.of)])

        self._ask(compare)
        self._do(MEASURES)

    def wait(self) -> None:
        """Now that the plan is there: wait until all are as far, and leave the rest to the trainers.

        Raises:
            KeyboardInterrupt: a stop was asked for.
            RankLost: one is lost meanwhile.
        """
        self._do(IS_READY)
        shown: list[str] = []
        while slow := self._ask(self._who_is_not_ready):
            if slow != shown:
                self._screen.show({"event": "waiting_for_ranks", "ranks": slow})
                shown = slow
            self._stops.wait(LOOK_SECONDS)
            self._stops.raise_if_any()
        with self._mutex:
            self._is_over = True  # who ends from here on is missed by the trainers
        self._ask(lambda store: wait_for_readers(self._rank, store, "ready"))
        self._close()

    def _ask(self, ask: Callable[[Store], Any]) -> Any:
        """Return what the table says.

        Raises:
            KeyboardInterrupt: a stop was asked for.
            RankLost: it is gone.
        """
        assert self._store is not None
        try:
            return ask(self._store)
        except TableGone as error:
            self._stops.raise_if_any()
            raise RankLost(f"rank 0 at {self._rank.address} is gone ({error}).", START_AGAIN) from error
        except LowmemSeqError:
            self._stops.raise_if_any()
            raise

    def _open(self, seconds: float) -> Store:
        """Return the table that all share: rank 0 makes it, the others dial.

        Raises:
            KeyboardInterrupt: a stop was asked for.
            ClusterError: rank 0 can't listen, or nobody answers there, or somebody else.
        """
        rank, place = self._rank, f"{self._rank.address}:{self._rank.meeting_port}"
        if rank.is_first:
            try:
                self._server = TableServer(Table(), rank.address, rank.meeting_port)
            except OSError as error:
                raise ClusterError(
                    f"rank 0 can't listen at {place}: {error.strerror or error}.",
                    "give the launcher another port, this is the one after it: --master_port of torchrun, "
                    "--main_process_port of accelerate",
                ) from error
            return self._section(self._server.table)
        until = time.monotonic() + seconds
        while True:
            tried = self._dial(min(seconds, self._config.cluster.lost_after_seconds))
            if isinstance(tried, TableLine):
                self._line = tried
                return self._section(tried)
            self._stops.wait(LOOK_SECONDS)
            self._stops.raise_if_any()
            if isinstance(tried, NoTable):
                raise ClusterError(
                    f"what answers at {place} is not rank 0 of engine mode.",
                    "start every machine with the same --mode, or give the launcher another port",
                ) from tried
            if time.monotonic() > until:
                raise ClusterError(
                    f"rank 0 did not answer at {place} within {seconds:.0f} s: {tried}.",
                    what_to_do(rank),
                ) from tried

    def _dial(self, patience_seconds: float) -> TableLine | TableGone:
        """Return a line to the table, or why there is none."""
        try:
            return TableLine(self._rank.address, self._rank.meeting_port, patience_seconds)
        except TableGone as error:
            return error

    def _section(self, store: Store) -> Store:
        """Return what of a table is this attempt's: of the one before, a launcher may not have ended all."""
        return Section(store, f"{self._rank.attempt}/")

    def _known_fingerprint(self) -> str | None:
        record = self._run.read_json(self._run.data_file)
        return None if record is None else str(record["fingerprint"])

    def _with_images(self, store: Store, number: int) -> Hello:
        key = _data_key(number)
        return replace(self._hellos[number], data=store.get(key).decode() if store.check([key]) else None)

    def _do(self, what: str) -> None:
        self._ask(lambda store: store.set(_doing_key(self._rank.number), what))

    def _who_is_not_ready(self, store: Store) -> list[str]:
        """Return the ranks that are waited for, and what each does, for people."""
        told: list[str] = []
        for number, one in enumerate(self._hellos):
            key = _doing_key(number)
            doing = store.get(key).decode() if store.check([key]) else PREPARES
            if doing != IS_READY:
                told.append(f"{one.name(number)} {doing}")
        return told

    def _measure_network(self, store: Store) -> float | None:
        """Return the bytes a second of the slowest line from another machine to rank 0; None: there is none.

        The machines take turns, each by its first rank: at once they would share rank 0's line.
        """
        rank = self._rank
        machines = [
            number for number in range(1, rank.of) if number % rank.local_of == 0 and rank.local_of < rank.of
        ]
        rates: list[float] = []
        for number in machines:
            if number == rank.number and self._line is not None:
                store.set(_speed_key(number), repr(self._line.bytes_per_second()))
            until = time.monotonic() + SECONDS_TO_MEASURE
            while not store.check([_speed_key(number)]):
                self._stops.wait(LOOK_SECONDS / 10)
                self._stops.raise_if_any()
                if time.monotonic() > until:
                    raise ClusterError(
                        f"{self._hellos[number].name(number)} could not measure its network within "
                        f"{SECONDS_TO_MEASURE:.0f} s.",
                        "is it the edge of a Wi-Fi? Laptop mode bears that: --mode laptop",
                    )
            rates.append(float(store.get(_speed_key(number))))
        return min(rates, default=None)

    def _lose(self, loss: RankLost) -> None:
        with self._mutex:
            if not self._is_over:
                self._stops.end_by(loss)

    def _close(self) -> None:
        with self._mutex:
            self._is_over = True
        if self._pulse is not None:
            self._pulse.stop()
        if self._line is not None:
            self._line.close()
        if self._server is not None:
            self._server.close()

    def __enter__(self) -> Meeting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Where this rank leaves before all were ready, tell the others why."""
        if self._store is not None and not self._is_over:
            stopped = isinstance(error, KeyboardInterrupt)
            tell_leaving(self._store, self._rank.number, "it was asked to stop" if stopped else str(error))
            if self._server is not None:
                self._wait_for_leavers(self._store)
        self._close()

    def _wait_for_leavers(self, store: Store) -> None:
        """Let the table stand until the others have read why, and have left themselves."""
        others = [left_key(number) for number in range(self._rank.of) if number != self._rank.number]
        until = time.monotonic() + SECONDS_TO_TELL
        while not store.check(others) and time.monotonic() < until:
            time.sleep(LOOK_SECONDS / 4)


def require_fast(bytes_per_second: float) -> None:
    """See that a network is fast enough for engine mode to be taken by itself.

    Raises:
        ClusterError: it isn't.
    """
    if bytes_per_second < FAST_BYTES_PER_SECOND:
        raise ClusterError(
            f"the network between the machines carries {format_network(bytes_per_second)}, and --mode auto takes "
            f"engine mode for several machines only from {format_network(FAST_BYTES_PER_SECOND)} on.",
            "set LOWMEM_SEQ_TOKEN on every machine for laptop mode, which such a network does for (lowmem-seq "
            "token makes one); or --mode engine",
        )


def _data_key(number: int) -> str:
    return f"data/{number}"


def _doing_key(number: int) -> str:
    return f"doing/{number}"


def _speed_key(number: int) -> str:
    return f"speed/{number}"
