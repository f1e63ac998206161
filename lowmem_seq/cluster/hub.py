"""The hub as a process of its own: `python -m lowmem_seq.cluster.hub RUN_DIR`.

The host's supervisor starts it, tells it by RUN_DIR/cluster/hub.json what to serve, and hears JSON lines from it
(channel.py). It alone keeps the ledger of samples and the common weights. It listens at once, so that a wrong token
or another version is told within seconds; work begins once it has weights: its own from disk, or else those that
the host's trainer wrote before it said hello.
"""

from __future__ import annotations

import faulthandler
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lowmem_seq.channel import Channel
from lowmem_seq.checkpoint.header import read_shapes
from lowmem_seq.cluster import split
from lowmem_seq.cluster.hub_desk import Desk
from lowmem_seq.cluster.hub_end import Arrived, HubEnd
from lowmem_seq.cluster.hub_mail import Mail, Sender, Whole
from lowmem_seq.cluster.hub_packs import Packs
from lowmem_seq.cluster.hub_rounds import Rounds, codec_of, outer_step_of
from lowmem_seq.cluster.hub_store import HubStore, Saved, Saver, read_into
from lowmem_seq.cluster.layout import Floats, Layout
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.messages import Base, Reason
from lowmem_seq.cluster.outer import SharedWeights
from lowmem_seq.cluster.serving import CLUSTER_FOLDER, RESTORE_HINT, START_FILE, Serving, read_serving, read_start
from lowmem_seq.cluster.standing import told_standing
from lowmem_seq.cluster.token import token_from_environment
from lowmem_seq.errors import ClusterError, DiskError, LowmemSeqError, NoCheckpointError

IDLE_SECONDS, BUSY_SECONDS = 0.2, 0.01
"""How long to listen at most, without and with vectors on their way: nothing tells that a reader has room again."""
MOST_HEARD_AT_ONCE = 64
LAST_DELTAS_SECONDS = 5.0
"""For which a hub that is stopped waits for deltas on their way."""
LAST_WEIGHTS_SECONDS = 30.0
"""For which a hub whose run is finished waits for machines that fetch what it gave."""
LAST_WORDS_SECONDS = 2.0


class End(Protocol):
    """What the hub needs of its end of all connections: HubEnd has it."""

    bytes_sent: Counter[str]
    bytes_received: Counter[str]

    @property
    def send(self) -> Sender:
        """Sends a message, or doesn't."""

    def receive(self, timeout_seconds: float) -> Arrived | None:
        """Return the next message."""

    def drop(self, machine: str, reason: Reason = "dropped", text: str = "") -> None:
        """Forget a machine."""

    def wake(self) -> None:
        """Have `receive` return at once."""


class Hub:
    """Serves one run until it is stopped.

    Args:
        run_folder: the run's.
        serving: what is served.
        end: where machines are heard.
        say: tells the supervisor of an event.
        clock: seconds that only grow.

    Raises:
        NoCheckpointError: none of its saved rounds verifies.
        UsageError: they belong to another experiment.
        ClusterError: the run is shorter now than what was trained.
    """

    def __init__(
        self,
        run_folder: Path,
        serving: Serving,
        end: End,
        say: Callable[[dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._serving, self._end, self._say, self._clock = run_folder, serving, end, say, clock
        store = HubStore(run_folder, {"experiment_sha256": serving.experiment, "data_fingerprint": serving.data})
        self._saver = Saver(store, clock, end.wake)
        saved = store.load(lambda event, message: say({"event": event, "message": message}))
        begun = read_start(run_folder) if saved is None else saved
        self._first_round = 0 if begun is None else begun.round
        self._standing_told: Base | None = None
        ledger = (
            self._go_on_from(begun.ledger)
            if begun is not None
            else Ledger(serving.total, serving.epoch_size, clock)
        )
        self._mail = Mail(end.send)
        self._packs = Packs(serving, end.send, say, clock)
        self.desk = Desk(
            serving, ledger, self._mail, self._packs, self._drop, self._saver.wait, say, clock, self._first_round
        )
        if saved is not None:
            self._begin(saved.layout, saved.read_into)
        self._average_before = self._average_stamp()
        """The run's weights of an earlier end, if it was made longer since."""
        if self.desk.is_finished:
            self._average_before = None

    def step(self, timeout_seconds: float = IDLE_SECONDS) -> None:
        """Hear what has arrived, waiting for it as long as this, and do what is due."""
        busy = self._mail.pump(self.desk.rounds)
        busy = self._packs.pump() or busy
        arrived = self._end.receive(min(timeout_seconds, BUSY_SECONDS) if busy else timeout_seconds)
        for _ in range(MOST_HEARD_AT_ONCE):
            if arrived is None:
                break
            self.desk.hear(arrived)
            arrived = self._end.receive(0)
        if arrived is not None:
            self.desk.hear(arrived)
        if self.desk.rounds is None:
            self._look_for_start()
        self.desk.tick()
        if not self._saver.busy and self.desk.round_is_due():
            self.desk.close_round()
        if self.desk.rounds is not None and self.desk.base != self._standing_told:
            self._tell_standing()
        self._save()
        if self.desk.is_finished and self._mail.average is None:
            self._look_for_average()
        self._mail.pump(self.desk.rounds)

    def stop(self) -> None:
        """End: merge what is on its way, save, and tell all machines.

        Raises:
            DiskError: the last state can't be saved.
        """
        self.desk.is_ending = True
        began = self._clock()
        patience = LAST_WEIGHTS_SECONDS if self.desk.is_finished else LAST_DELTAS_SECONDS
        while not self._is_quiet() and self._clock() - began < patience:
            self.step(BUSY_SECONDS)
        rounds = self.desk.rounds
        if rounds is not None:
            self._saver.wait()
            if rounds.brought and not self.desk.is_finished:
                self.desk.close_round()
            began = self._clock()
            while self._mail.pump(rounds) and self._clock() - began < LAST_WORDS_SECONDS:
                self._end.receive(BUSY_SECONDS)
        for name in list(self.desk.roster.machines):
            self._end.drop(name, "stopping", "the host ends")
        if rounds is not None:
            self._tell_standing()
            self._saver.begin(self._state(rounds))
            self._saver.wait()
            failure = self._saver.take_failure()
            if failure is not None:
                raise DiskError(
                    f"the common weights could not be saved: {failure}.",
                    "make room on the disk; what was saved before stands",
                )

    def close(self) -> None:
        """Wait for a save that is under way."""
        self._saver.wait()

    def _go_on_from(self, told: Any) -> Ledger:
        """Return the ledger of a saved round, on a branch of its own: what was leased after the save is unknown."""
        try:
            ledger = Ledger.from_json(told, self._clock)
        except ValueError as error:
            raise NoCheckpointError(
                f"the ledger of round {self._first_round} can't be used: {error}", RESTORE_HINT
            ) from error
        if self._serving.total > ledger.total:
            ledger.extend(self._serving.total)
        if (self._serving.total, self._serving.epoch_size) != (ledger.total, ledger.epoch_size):
            raise ClusterError(
                f"the run has {self._serving.total:,} samples in epochs of {self._serving.epoch_size:,}, and was "
                f"saved with {ledger.total:,} in epochs of {ledger.epoch_size:,}",
                "restore the run's config.yaml; a run with other settings is a new one: lowmem-seq train",
            )
        ledger = split.fork(ledger)
        for machine in {lease.machine for lease in ledger.leases}:
            ledger.lose(machine)
        return ledger

    def _begin(self, layout: Layout, read_into: Callable[[Mapping[str, Floats]], None]) -> None:
        """Take up the work with the state that is read."""
        settings, round_ = self._serving.settings, self._first_round
        base = np.empty(layout.elements, np.float32)
        weights = SharedWeights(layout, codec_of(settings, round_), outer_step_of(settings), base)
        read_into(weights.state())
        self.desk.begin(Rounds(weights, self.desk.ledger, round_, settings, self._clock))
        self._say({"event": "cluster_ready", "round": round_, "accepted": self.desk.ledger.accepted})

    def _tell_standing(self) -> None:
        """Tell who did what, and what each connection has carried since this hub began."""
        self._standing_told = self.desk.base
        names = {machine: one.hello.name for machine, one in self.desk.roster.machines.items()}
        told = told_standing(self.desk.base, self.desk.ledger.standing(), names)
        for machine, share in told["machines"].items():
            share["bytes_received"] = self._end.bytes_received[machine]
            share["bytes_sent"] = self._end.bytes_sent[machine]
        self._say(told)

    def _look_for_start(self) -> None:
        """Begin, if the host's trainer has written the first weights and said hello with their layout."""
        host = self.desk.roster.machines.get(self._serving.host_machine)
        path = self._folder / CLUSTER_FOLDER / START_FILE
        if host is None or not path.is_file():
            return
        layout = Layout.of_shapes({name: shape for name, (_, shape) in read_shapes(path).items()})
        if layout.fingerprint() != host.hello.layout:
            return  # left by an earlier try, and about to be replaced
        self._begin(layout, lambda state: read_into(layout.views(state["base"]), path))

    def _average_stamp(self) -> int | None:
        path = self._folder / "model.safetensors"
        return path.stat().st_mtime_ns if path.is_file() else None

    def _look_for_average(self) -> None:
        """Have what the run gives sent to whoever asks, once the host's trainer has written it."""
        rounds, stamp = self.desk.rounds, self._average_stamp()
        if rounds is None or stamp is None or stamp == self._average_before:
            return
        self._average_before = stamp
        layout = rounds.weights.layout
        try:
            values = np.empty(layout.elements, np.float32)
            read_into(layout.views(values), self._folder / "model.safetensors")
        except LowmemSeqError as error:
            self._say({"event": "average_unusable", "message": str(error)})
            return
        self._mail.average = Whole("average", self.desk.base, values)

    def _state(self, rounds: Rounds) -> Saved:
        return Saved(rounds.round, rounds.weights.layout, rounds.weights.state(), self.desk.ledger.to_json())

    def _save(self) -> None:
        failure = self._saver.take_failure()
        if failure is not None:
            self._say({"event": "hub_not_saved", "message": str(failure)})
        rounds = self.desk.rounds
        if rounds is not None and self._saver.is_due(rounds.round, soon=self.desk.has_news):
            self._saver.begin(self._state(rounds))
            self.desk.has_news = False

    def _is_quiet(self) -> bool:
        """Whether nothing more is to be waited for at the end."""
        rounds, present = self.desk.rounds, self.desk.roster.present()
        if self.desk.is_finished:
            return not present
        nothing_comes = rounds is None or not (rounds.brought or rounds.coming)
        return nothing_comes and self._serving.host_machine not in present and not self._mail.is_busy

    def _drop(self, machine: str, why: str) -> None:
        self._end.drop(machine, "dropped", why[:500])


def main() -> int:
    """Serve the run whose folder is named on the command line; return the exit code."""
    faulthandler.enable()
    channel = Channel()
    try:
        folder = Path(sys.argv[1])
        serving = read_serving(folder)
        with HubEnd(token_from_environment(), serving.port) as end:
            hub = Hub(folder, serving, end, channel.say)
            channel.say({"event": "cluster_open", "port": end.port})
            try:
                while not channel.stop_requested:
                    hub.step()
                hub.stop()
            finally:
                hub.close()
    except (LowmemSeqError, OSError) as error:
        return channel.say_failure(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
