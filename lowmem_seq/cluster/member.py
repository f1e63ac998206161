"""A machine's part in a cluster, as its training loop sees it: samples to train, and weights that the others share.

A thread talks to the hub while the loop trains; numpy only. The loop:

    member = Member(settings, layout, tell)
    joined = member.join(60.0)
    member.adopt(tensors, stop_requested)
    while not member.finished and not stop_requested():
        ranges = member.take(batch, stop_requested)
        if ranges:
            ...  # an optimizer step on these positions
            member.trained(ranges, seconds)
        if member.between_steps(tensors):
            ...  # the weights were changed: copy them back to where they live, if `tensors` are copies
    member.end(tensors, "finished" if member.finished else "stopped")

`take` returns nothing not only at the end: also where something is due that only `between_steps` can do, such as to
hand in the last work of the run while others still train theirs. So call both in turn, whatever `take` returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lowmem_seq.cluster.conversation import LOOK_SECONDS, Conversation, Events
from lowmem_seq.cluster.layout import Floats, Layout
from lowmem_seq.cluster.member_checkpoint import Saved, from_json, to_json
from lowmem_seq.cluster.member_settings import MemberSettings, hello_of
from lowmem_seq.cluster.member_talk import Talk
from lowmem_seq.cluster.member_work import Work
from lowmem_seq.cluster.messages import Base, Bye, Peer, Settings
from lowmem_seq.cluster.ranges import Range
from lowmem_seq.cluster.token import machine_id
from lowmem_seq.errors import ClusterError

State = Literal["training", "evaluating", "saving", "paused"]
"""What the loop may say that it does."""
Reason = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Joined:
    """What the hub said to a machine that may take part."""

    total: int
    """Samples of the whole run."""
    settings: Settings
    base: Base
    """Where the common weights stand: `base.accepted` of `total` samples are in them."""
    peers: tuple[Peer, ...]
    """Those that were there before."""


class Member:
    """A machine of a cluster.

    All methods are for the one thread that trains. It waits for the network only in `join`, `adopt`, `take`,
    `final_average` and `end`.

    Args:
        settings: where the hub is and who this is.
        layout: of the tensors that are exchanged.
        tell: called with what happens, one JSON object each, named by `event`; from the member's own thread.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        settings: MemberSettings,
        layout: Layout,
        tell: Callable[[dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state: State = "training"
        """What the loop is at; the hub hears it."""
        self.stalled_seconds = 0.0
        """How long the training thread has waited in `adopt` and `take`."""
        self.longest_stall_seconds = 0.0
        """The longest of these waits."""
        self._settings, self._tell = settings, tell
        events = Events()
        self._work = Work(machine_id(settings.machine_key), layout, settings.effective_batch, clock)
        self._talk = Talk(hello_of(settings, layout), self._work, events.put, clock)
        self._conversation = Conversation(
            settings, self._talk, self._work, events, self._tell_with_costs, self._say_state
        )
        self._waiting = False
        self._position = 0
        self._saved: Saved | None = None

    def join(
        self, timeout_seconds: float, base: Base | None = None, stop_requested: Callable[[], bool] = lambda: False
    ) -> Joined | None:
        """Dial the hub and be let in; None where a stop is requested before that.

        Args:
            timeout_seconds: how long to try.
            base: the newest common weights that this machine has; None: those of `restore`, if that was called.
            stop_requested: whether to give up.

        Raises:
            ClusterError: nobody answers, the token is another one, or what this machine would train is something
                else than what the hub has; it names what, and how to mend it. After `restore` the run can go on by
                `go_alone`, which dials on; otherwise call `close`.
        """
        self._talk.shown_base = base or (self._saved.base if self._saved is not None else None)
        self._conversation.dial()
        with self._conversation.changed:
            self._conversation.wait(lambda: self._talk.welcome is not None or stop_requested(), timeout_seconds)
            welcome = self._talk.welcome
        if welcome is None and stop_requested():
            return None
        if welcome is None:
            where = f"{self._settings.address}:{self._settings.port}"
            why = self._conversation.line_trouble
            raise ClusterError(
                f"no hub of lowmem-seq let this machine in at {where} within {timeout_seconds:g} s"
                + (f": {why}" if why else ""),
                "start the run on the host first, and see that its firewall lets this port through",
            )
        return Joined(welcome.total, welcome.settings, welcome.base, welcome.peers)

    def adopt(self, tensors: Mapping[str, Floats], stop_requested: Callable[[], bool]) -> None:
        """Wait until the common weights are here, and write them into the tensors.

        After `restore` the tensors must be those of the checkpoint: where it has come further than the hub, they
        stay, and become everybody's. Returns without having written them where a stop is requested.

        Raises:
            ClusterError: the hub refused this machine after all.
        """
        welcome, saved = self._talk.welcome, self._saved
        if welcome is not None and saved is not None and saved.is_ahead_of(welcome.base):
            self.go_alone(tensors)
            return
        with self._conversation.changed:
            self._work.begin_anew()
        self._conversation.wake()
        began = time.monotonic()
        with self._conversation.changed:
            self._conversation.wait(lambda: stop_requested() or self._work.has_weights_for_tensors)
            self._stalled(time.monotonic() - began)
            self._work.between(tensors)
        self._conversation.wake()

    def go_alone(self, tensors: Mapping[str, Floats]) -> Joined:
        """Go on from a checkpoint without the hub, which can't be reached, on a branch of one's own.

        Call it after `restore`, with the weights of that checkpoint. The hub is dialled on, and where it answers,
        the side that has more accepted samples wins.

        Returns:
            What `join` would have; there are no others.

        Raises:
            ClusterError: the checkpoint knows no ledger, so nobody can say which samples are left.
        """
        with self._conversation.changed:
            try:
                self._work.resume_alone(self._saved, tensors)
            except ValueError as error:
                raise ClusterError(
                    f"this machine can't go on without the host: {error}", "start the run on the host first"
                ) from error
            self._talk.begin_again()
            work = self._work
            assert work.lone is not None
            assert work.settings is not None
            assert work.base is not None
            joined = Joined(work.lone.ledger.total, work.settings, work.base, ())
        self._conversation.dial()
        self._conversation.wake()
        return joined

    def take(self, samples: int, stop_requested: Callable[[], bool]) -> list[Range]:
        """Return the next positions [start, end) to train, together at most `samples`; there may be several ranges.

        There are fewer than `samples` at the end of the run, and where the others hold the rest. It waits while it
        has none. None are returned when the run is finished, a stop is requested, or `between_steps` has
        something to do; then call that, and `take` again. What is taken must be trained, in this order, before
        anything that is taken later counts.

        Raises:
            ClusterError: the hub refused this machine after all.
        """
        with self._conversation.changed:
            self._conversation.raise_trouble()
            taken = [] if stop_requested() else self._take(samples)
            if not taken and not self._must_return(stop_requested):
                began = time.monotonic()
                self._waiting = True
                self._say_state()
                self._conversation.wake()
                while not taken and not self._must_return(stop_requested):
                    self._conversation.changed.wait(LOOK_SECONDS)
                    self._conversation.raise_trouble()
                    taken = self._take(samples)
                self._waiting = False
                self._say_state()
                self._stalled(time.monotonic() - began)
        if taken:
            self._position = taken[0][0]
        return taken

    def _stalled(self, seconds: float) -> None:
        self.stalled_seconds += seconds
        self.longest_stall_seconds = max(self.longest_stall_seconds, seconds)

    def _take(self, samples: int) -> list[Range]:
        work, talk = self._work, self._talk
        if work.finished or work.base is None or work.beginning:
            return []
        if work.lone is not None:
            self._lease_alone(samples)
        there = work.holdings.untaken
        if there < 2 * samples:
            self._conversation.wake()
        nothing_more = work.lone is not None or talk.nothing_to_lease
        work.idle = nothing_more and not there
        return work.holdings.take(samples) if there >= samples or nothing_more else []

    def _lease_alone(self, samples: int) -> None:
        work = self._work
        if work.lone is not None and work.settings is not None and work.holdings.untaken < samples:
            work.lone.lease(work.holdings, work.batch, work.samples_per_second, work.settings.round_seconds)

    def _must_return(self, stop_requested: Callable[[], bool]) -> bool:
        return stop_requested() or self._work.finished or self._work.needs_tensors()

    def trained(self, ranges: Sequence[Range], seconds: float) -> None:
        """Note that an optimizer step was made of what `take` returned, and how long it took."""
        with self._conversation.changed:
            first = not self._work.samples_per_second
            self._work.note_trained(ranges, seconds)
        if first:
            self._conversation.wake()  # from now on more than one batch can be leased at a time

    def between_steps(self, tensors: Mapping[str, Floats]) -> bool:
        """Do what is due between two optimizer steps, and return whether the tensors were changed.

        What may be due: to add to them what the others have done, to take what was done here as the next delta, or
        to begin anew at the common weights, where the hub could not take this machine's work. Costs microseconds
        when nothing is.

        Raises:
            ClusterError: the hub refused this machine after all.
            UsageError: the training diverged; it names the tensor.
        """
        if not self.is_due:
            return False
        with self._conversation.changed:
            self._conversation.raise_trouble()
            changed = self._work.between(tensors)
        self._conversation.wake()
        return changed

    def end(self, tensors: Mapping[str, Floats], reason: Reason, wait_seconds: float = 5.0) -> bool:
        """Hand in the last work, write the newest common weights into the tensors, take leave, and close.

        Where the run is finished, the tensors hold the last common weights after it, the same on every machine. A
        checkpoint is to be made after it, with the tensors as they are then.

        Args:
            tensors: the weights.
            reason: why. Where it is `failed` nothing is handed in.
            wait_seconds: how long to wait until the last work is merged; what is not merged then is lost to the
                others.

        Returns:
            Whether the tensors were changed.
        """
        changed = False
        with self._conversation.changed:
            deadline = time.monotonic() + wait_seconds
            while reason != "failed" and self._talk.trouble is None:
                changed |= self._work.between(tensors)
                if self._work.receiving:
                    self._conversation.changed.wait(LOOK_SECONDS)
                    continue
                self._work.hand_in(tensors)
                left = deadline - time.monotonic()
                if self._work.delta is None or self._work.lone is not None or left <= 0 or not self._talk.with_hub:
                    break
                self._conversation.wake()
                self._conversation.changed.wait(min(left, LOOK_SECONDS))
            self._talk.farewell = Bye(reason, "")
        self.close()
        return changed

    def close(self) -> None:
        """Break off without a word, as after an error; `end` does it by itself."""
        self._conversation.close()

    def final_average(
        self, timeout_seconds: float, stop_requested: Callable[[], bool] = lambda: False
    ) -> dict[str, Floats] | None:
        """Return the averaged weights with which the run ends, once it is finished and before `end`.

        None where the hub has been gone for long, has none before the timeout, or a stop is requested.
        """
        settings, seen_at = self._work.settings, time.monotonic()
        patience = settings.lost_after_seconds if settings is not None else 0.0
        with self._conversation.changed:
            self._talk.average_wanted = True
            self._conversation.wake()
            deadline = time.monotonic() + timeout_seconds
            while self._talk.average is None and not stop_requested() and time.monotonic() < deadline:
                seen_at = time.monotonic() if self._talk.with_hub else seen_at
                if time.monotonic() - seen_at > patience:
                    break
                self._conversation.raise_trouble()
                self._conversation.changed.wait(LOOK_SECONDS)
            parcel = self._talk.average
        if parcel is None:
            return None
        flat = np.empty(self._work.layout.elements, np.float32)
        parcel.copy_into(flat)
        return self._work.layout.views(flat)

    def checkpoint(self) -> tuple[dict[str, Floats], dict[str, Any]]:
        """Return what a checkpoint holds beside the weights: live vectors by name (there are none), and JSON.

        It fits the tensors as `between_steps`, or `end`, left them last, trained on by what `trained` was told.
        """
        with self._conversation.changed:
            return {}, to_json(self._work.saved())

    def restore(self, vectors: Mapping[str, Floats], state: Mapping[str, Any]) -> None:
        """Go on from what `checkpoint` returned; before `join`.

        Raises:
            ValueError: it is damaged, or of another format version.
        """
        if vectors:
            raise ValueError(f"other vectors: {', '.join(sorted(vectors))}")
        self._saved = from_json(state)
        self._work.number_after(self._saved)

    @property
    def is_due(self) -> bool:
        """Whether `between_steps` has something to do. Where the tensors are copies, make them only then."""
        return self._talk.trouble is not None or self._work.needs_tensors()

    @property
    def finished(self) -> bool:
        """Whether every sample of the run is accepted, and the last common weights are here."""
        return self._work.finished

    @property
    def was_refused(self) -> bool:
        """Whether the hub said that this machine can't take part."""
        return self._talk.trouble is not None

    @property
    def has_weights(self) -> bool:
        """Whether the tensors hold common weights, or a branch's own."""
        return self._work.base is not None and not self._work.beginning

    @property
    def samples_done(self) -> int:
        """Samples of the run whose work is in the tensors: those of the common weights, and this machine's own."""
        work = self._work
        return (work.base.accepted if work.base is not None else 0) + work.holdings.unmerged.size

    @property
    def position(self) -> int:
        """The first position of the step under way: what the schedule and the epochs follow."""
        return self._position

    @property
    def alone(self) -> bool:
        """Whether the hub is gone, and this machine trains on a branch of its own."""
        return self._work.lone is not None

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The machines that are there, this one among them; none while it is alone."""
        return () if self.alone else self._talk.peers

    @property
    def bytes_sent(self) -> int:
        """Of all messages, before encryption."""
        return self._conversation.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Of all messages, after decryption."""
        return self._conversation.bytes_received

    def costs(self) -> dict[str, Any]:
        """What all has cost up to now, and whether it is alone; each event tells it."""
        return {
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "stalled_seconds": round(self.stalled_seconds, 3),
            "longest_stall_seconds": round(self.longest_stall_seconds, 3),
            "alone": self.alone,
        }

    def _tell_with_costs(self, event: dict[str, Any]) -> None:
        """Tell what happens, and what all has cost up to now."""
        self._tell(event | self.costs())

    def _say_state(self) -> None:
        self._talk.state = "waiting" if self._waiting else self.state
