"""A session's part in a cluster, as the supervisor sees it: the hub as a child that is started, heard and stopped.

A machine that joins asks the hub first whether it would be taken, before minutes go into data and plans. The hub
holds no torch; what it says is recorded in the run folder of the machine that hosts.
"""

from __future__ import annotations

import time
from types import TracebackType

from lowmem_seq.cluster.membership import Membership
from lowmem_seq.errors import ClusterError
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.child import Child, Message
from lowmem_seq.supervisor.screen import Screen
from lowmem_seq.supervisor.signals import StopSignals

SECONDS_TO_OPEN = 30.0
SECONDS_TO_END = 90.0
"""How long a hub may take to merge what is on its way, send the weights that the run ends with, and save."""
MOST_DEATHS = 5
"""Hubs that may die one after the other, each within SECONDS_OF_A_SHORT_LIFE."""
SECONDS_OF_A_SHORT_LIFE = 60.0
UNRECORDED = frozenset({"peers", "answered"})
"""Of what a hub says, what the run's events don't hold: figures of the moment."""


class Cluster:
    """This machine's part, from the start of a session to its end.

    Args:
        run: what is trained.
        membership: this machine's part.
        screen: shows what the hub says.
        stops: end what is under way.
    """

    def __init__(self, run: RunFolder, membership: Membership, screen: Screen, stops: StopSignals) -> None:
        self._run, self._membership, self._screen, self._stops = run, membership, screen, stops
        self._hub: Child | None = None
        self._is_open = False
        self._began = 0.0
        self._short_lives = 0

    def knock(self) -> None:
        """Ask the hub whether it would take this machine, as far as is known what that would train.

        Raises:
            KeyboardInterrupt: a stop was asked for.
            ClusterError: there is no hub, or it would not.
        """
        if self._membership.hosts:
            return
        self._screen.show({"event": "dialling", "address": f"{self._membership.address}:{self._membership.port}"})
        self._run_to_its_end("lowmem_seq.cluster.knock", "connection")

    def _run_to_its_end(self, module: str, what: str) -> None:
        child = Child(module, str(self._run.path), log=self._run.log_file)
        with self._stops.ending(child, at=1):
            for message in child.messages(1.0):
                if message is not None:
                    self._take_in(message)
            code = child.wait()
        self._stops.raise_if_any()
        if code != 0:
            raise child.failure(code, what)

    def open(self) -> None:
        """Now that the data is there: have the hub listen, or ask it again.

        Raises:
            KeyboardInterrupt: a stop was asked for.
            LowmemSeqError: the hub can't listen, or would not take this machine.
        """
        if not self._membership.hosts:
            self.knock()
            return
        self._run_to_its_end("lowmem_seq.cluster.opening", "opening of the cluster")
        self._begin()
        until = time.monotonic() + SECONDS_TO_OPEN
        while not self._is_open:
            self.hear()
            self._stops.wait(0.05)
            self._stops.raise_if_any()
            if time.monotonic() > until:
                raise ClusterError(
                    f"the hub did not open port {self._membership.port} within {SECONDS_TO_OPEN:.0f} s.",
                    f"its words are in {self._run.log_file}",
                )

    def wait(self) -> None:
        """Nobody is waited for: each machine begins when it is ready."""

    def _begin(self) -> None:
        self._began = time.monotonic()
        self._hub = Child("lowmem_seq.cluster.hub", str(self._run.path), log=self._run.log_file)

    def hear(self) -> None:
        """Take in what the hub said since the last time; start it again if it died, but not for ever.

        Raises:
            LowmemSeqError: it can't open.
        """
        if self._hub is None:
            return
        messages, has_ended = self._hub.said()
        for message in messages:
            self._take_in(message)
        if not has_ended:
            return
        hub, self._hub = self._hub, None
        code = hub.wait()
        is_short = time.monotonic() - self._began < SECONDS_OF_A_SHORT_LIFE
        self._short_lives = self._short_lives + 1 if is_short else 1
        if not self._is_open:
            raise hub.failure(code, "hub")
        if (code != 0 and not hub.died(code)) or self._short_lives > MOST_DEATHS:  # each machine goes on alone
            event = self._run.events.append("hub_failed", cause=f"the hub {hub.describe_end(code)}")
            self._screen.show(event)
            return
        event = self._run.events.append("hub_restarted", cause=f"the hub {hub.describe_end(code)}")
        self._screen.show(event)
        self._begin()

    def stop(self) -> None:
        """Have the hub take in what is on its way, save and end; one that takes too long is ended.

        So it is on a second signal.
        """
        stops = self._stops
        if self._hub is None:
            return
        hub, self._hub = self._hub, None
        hub.tell("stop")
        until = time.monotonic() + SECONDS_TO_END
        for message in hub.messages(0.1):
            if message is not None:
                self._take_in(message)
            if time.monotonic() > until or stops.count > 1:
                hub.kill()
        code = hub.wait()
        if code != 0:
            self._run.events.append("hub_failed", cause=f"the hub {hub.describe_end(code)}")

    def _take_in(self, message: Message) -> None:
        event = message.get("event")
        self._is_open = self._is_open or event == "cluster_open"
        if event not in UNRECORDED and event != "error":
            details = {key: value for key, value in message.items() if key not in ("event", "time")}
            self._run.events.append(str(event), **details)
        self._screen.show(message)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
