"""What the hub answers: to each message of each machine, and to time that goes by.

It knows no sockets: what is to be sent goes into the mail, and whoever calls `tick` often enough drives it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from lowmem_seq.cluster.hub_end import Arrived
from lowmem_seq.cluster.hub_mail import Mail
from lowmem_seq.cluster.hub_packs import Packs
from lowmem_seq.cluster.hub_reunion import Reunions
from lowmem_seq.cluster.hub_roster import Machine, Roster
from lowmem_seq.cluster.hub_rounds import Rounds, base_of
from lowmem_seq.cluster.identity import Identity, no_room
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.messages import (
    Base,
    Beat,
    Bye,
    DeltaPiece,
    Hello,
    Lease,
    Leased,
    LedgerTold,
    PackWanted,
    Peers,
    UploadPiece,
    Want,
    WeightsWanted,
    Welcome,
)
from lowmem_seq.cluster.serving import Serving

ASK_AGAIN_SECONDS = 0.5
"""After which a machine asks again that got no lease."""
PEERS_TOLD_SECONDS = 5.0
"""Between two `peers` events, unless somebody comes or goes."""
SHORTEST_WORK_SECONDS = 0.1

Say = Callable[[dict[str, Any]], None]
Drop = Callable[[str, str], None]
"""Hears a machine's id and why it is dropped."""


class Desk:
    """One cluster's affairs.

    Args:
        serving: what the hub was told.
        ledger: where the run stands.
        mail: what goes out.
        packs: gives the images to machines that have none.
        drop: gives a machine up.
        settle: returns when nobody reads the weights any more, because they are about to be replaced.
        say: tells the supervisor of an event.
        clock: seconds that only grow.
        first_round: that the first weights are of.
    """

    def __init__(
        self,
        serving: Serving,
        ledger: Ledger,
        mail: Mail,
        packs: Packs,
        drop: Drop,
        settle: Callable[[], None],
        say: Say,
        clock: Callable[[], float],
        first_round: int = 0,
    ) -> None:
        self.serving, self.settings, self.ledger = serving, serving.settings, ledger
        self.mail, self._packs = mail, packs
        self._drop, self._settle, self._say, self._clock = drop, settle, say, clock
        self.roster = Roster(clock, self.settings.lost_after_seconds)
        self.identity = Identity.of(serving, ledger.history.branches[0].name)
        self.rounds: Rounds | None = None
        self._first_round = first_round
        self.reunions = Reunions(clock)
        self.is_ending = False
        """Whether no more leases are given, and a round is closed with whatever is there."""
        self.has_news = False
        """Whether the state is to be saved soon."""
        self._mentioned_at = self._told_at = -1e9
        self._ticked_at = clock()

    @property
    def base(self) -> Base:
        """What the common weights are now."""
        return base_of(self.ledger, self.rounds.round if self.rounds else self._first_round)

    @property
    def is_finished(self) -> bool:
        """Whether every sample is accepted."""
        return self.ledger.is_complete

    def begin(self, rounds: Rounds) -> None:
        """Take up the work: now there are weights, and it is known which tensors they are."""
        self.rounds = rounds
        self.identity = replace(self.identity, layout=rounds.weights.layout.fingerprint())
        for name, machine in list(self.roster.machines.items()):
            if self._refuses(machine.hello):
                self._remove(name, "refused")
        self._tell_finish()

    def hear(self, arrived: Arrived) -> None:
        """Answer a message."""
        name, message = arrived.machine, arrived.message
        if isinstance(message, Hello):
            self._greet(message)
            return
        if isinstance(message, PackWanted):
            self._packs.ask(name, message)
            return
        machine = self.roster.machines.get(name)
        if machine is None or machine.dropped:  # refused, or given up and not here again
            return
        machine.heard_at = self._clock()
        if isinstance(message, Beat):
            self.roster.beat(name, message, self.ledger)
        elif isinstance(message, Bye):
            self._remove(name, message.reason)
        elif isinstance(message, Want):
            self.mail.say(name, Leased(message.request, *self._lease(name, machine, message.seconds)))
        elif isinstance(message, WeightsWanted):
            self._note_wish(name, machine, message)
        elif isinstance(message, DeltaPiece):
            self._take_delta(name, machine, message, arrived.payloads[0])
        elif isinstance(message, LedgerTold):
            self._compare(name, machine, message)
        elif isinstance(message, UploadPiece):
            self._take_upload(name, machine, message, arrived.payloads[0])
        is_there = self.roster.machines.get(name) is machine and not machine.dropped
        if is_there and not machine.present and self.roster.is_well(name):
            self._welcome_back(name, machine)

    def tick(self) -> None:
        """Do what is due by now, but closing rounds. What has arrived must have been heard before."""
        now = self._clock()
        if now - self._ticked_at > self.settings.lost_after_seconds / 2:
            self.roster.excuse(now - self._ticked_at)  # the hub stood still, or its laptop slept
        self._ticked_at = now
        for name in list(self.roster.present()):
            if not self.roster.is_well(name):
                self._lose(name)
        for name in list(self.mail.lagging):
            self.drop(name, "too many rounds went by")
        if now - self._mentioned_at >= self.settings.beat_seconds:
            self._mentioned_at = now
            self.mail.mention(Peers(self.base.round, self.ledger.accepted, self.roster.peers(self.ledger)))
        if now - self._told_at >= PEERS_TOLD_SECONDS:
            self.tell_peers()

    def round_is_due(self) -> bool:
        """Whether the round is to be closed now."""
        rounds = self.rounds
        if rounds is None:
            return False
        return rounds.is_due(self._expected()) or (self.is_ending and bool(rounds.brought) and not rounds.coming)

    def close_round(self) -> None:
        """Merge what is there, and have it sent."""
        assert self.rounds is not None
        self.mail.before_merge()
        closed = self.rounds.close()
        for name in closed.refused:
            self.drop(name, "some of its samples were given to others meanwhile")
        if closed.update is None:
            return
        self._say(
            {
                "event": "round",
                "round": self.rounds.round,
                "machines": [one.machine for one in closed.update.merged],
                "samples": sum(one.samples for one in closed.update.merged),
                "accepted": self.ledger.accepted,
                "bytes_received": closed.bytes_received,
                "bytes_sent": self.mail.take_bytes_sent(),
                "seconds": round(closed.seconds, 3),
                "waited_seconds": round(closed.waited_seconds, 3),
            }
        )
        self._tell_finish()

    def drop(self, name: str, why: str) -> None:
        """Give a machine up: what it had not brought in is lost, and it has to begin anew."""
        self.mail.lagging.discard(name)
        self._discard(name)
        self._packs.shut_out(name)
        self.mail.close(name)
        machine = self.roster.machines.get(name)
        if machine is not None:
            machine.dropped, machine.settled = True, False
            self._leave(name, machine, f"dropped: {why}")
        self._drop(name, why)

    def tell_peers(self) -> None:
        """Tell the supervisor who is there."""
        self._told_at = self._clock()
        peers = [msgspec.to_builtins(peer) for peer in self.roster.peers(self.ledger)]
        self._say(
            {
                "event": "peers",
                "peers": peers,
                "round": self.base.round,
                "accepted": self.ledger.accepted,
                "total": self.ledger.total,
            }
        )

    def _greet(self, hello: Hello) -> None:
        name = hello.machine
        if self._refuses(hello):
            self._remove(name, "refused")
            return
        if hello.layout is None:
            self._welcome(hello, None)
            return
        before = self.roster.machines.get(name)
        was_present = before is not None and before.present
        machine = self.roster.greet(hello)
        if self.rounds is not None:
            self.rounds.forget(name)  # the machine sends again what no update has
        self.reunions.forget(name)
        if hello.base is None and before is not None:
            self._discard(name)
        base, ours = hello.base, self.base
        machine.settled = (
            not machine.dropped and base is not None and base.branch == ours.branch and base.round <= ours.round
        )
        machine.dropped, machine.returned = False, machine.settled
        self._welcome(hello, base.round if machine.settled and base is not None else None)
        if machine.settled:
            self.roster.reclaim(name, self.ledger)
        if not was_present:
            self._say_joined(name, hello.name, "hello")
            self.tell_peers()

    def _welcome(self, hello: Hello, at: int | None) -> None:
        """Let a machine in, which holds the weights of that round."""
        peers = self.roster.peers(self.ledger)
        self._packs.let_in(hello.machine, hello.name)
        self.mail.open(hello.machine, at)
        self.mail.say(hello.machine, Welcome(self.base, self.ledger.total, self.settings, peers))

    def _refuses(self, hello: Hello) -> bool:
        refused = self.identity.refusal(hello) or no_room(self.ledger, hello)
        if refused is None:
            return False
        self._packs.shut_out(hello.machine)
        self.mail.open(hello.machine, None)
        self.mail.say(hello.machine, refused)
        self._say(
            {
                "event": "refused",
                "machine": hello.machine,
                "name": hello.name,
                "field": refused.field,
                "ours": refused.ours,
                "theirs": refused.theirs,
                "hint": refused.hint,
            }
        )
        return True

    def _lease(self, name: str, machine: Machine, seconds: float) -> tuple[tuple[Lease, ...], float | None]:
        """Return leases, or none and when to ask again."""
        if self.rounds is None or self.is_ending or not machine.can_train:
            return (), ASK_AGAIN_SECONDS
        told = self.roster.lease(name, self.ledger, max(seconds, SHORTEST_WORK_SECONDS))
        return told, None if told else ASK_AGAIN_SECONDS

    def _note_wish(self, name: str, machine: Machine, wanted: WeightsWanted) -> None:
        if wanted.part == "average":
            self.mail.want_average(name, wanted.index)
        elif wanted.base is not None and wanted.base.branch == self.base.branch and machine.settled:
            self.mail.place(name, wanted.base.round)
        elif self.mail.want_weights(name, wanted.index):
            self._discard(name)  # it begins anew
            machine.settled = True

    def _take_delta(self, name: str, machine: Machine, piece: DeltaPiece, payload: bytes) -> None:
        if self.rounds is None or not machine.can_train or self.is_finished:
            return
        try:
            self.rounds.take(name, piece, payload)
        except ValueError as error:
            self.drop(name, f"its delta can't be used: {error}")

    def _compare(self, name: str, machine: Machine, told: LedgerTold) -> None:
        """Hear the ledger of a machine that comes back from another branch."""
        if self.rounds is None or machine.settled:
            return
        verdict = self.reunions.compare(name, told, self.ledger)
        if verdict.is_foreign:
            self.drop(name, "its ledger is of another run, or damaged")
        elif verdict.upload is not None:
            self.mail.say(name, verdict.upload)
        else:
            self._tell_reunion(name, "hub", verdict.discarded)
            self.mail.say(name, LedgerTold(self.base, self.reunions.text_of(self.ledger)))

    def _take_upload(self, name: str, machine: Machine, piece: UploadPiece, payload: bytes) -> None:
        """Hear weights that win; once they are whole they are the base, and all others begin anew."""
        rounds = self.rounds
        if rounds is None or machine.settled:
            return
        try:
            parcel = self.reunions.take(name, piece, payload, rounds.weights.layout)
        except ValueError as error:
            self.drop(name, f"its weights can't be used: {error}")
            return
        if parcel is None:
            return
        taken = self.reunions.merge(name, self.ledger)
        if taken is None:  # the hub went on meanwhile, and wins now
            self.mail.say(name, LedgerTold(self.base, self.reunions.text_of(self.ledger)))
            return
        round_ = max(rounds.round, piece.base.round) + 1
        self._settle()
        rounds.begin_at(parcel, taken.ledger, round_)
        self.ledger, self.has_news = taken.ledger, True
        self.mail.forget_weights()
        for other in list(self.roster.machines):
            if other != name:
                self.drop(other, f"{machine.hello.name} went on with more samples than this hub has")
        for lease in self.ledger.leases:
            if lease.machine != name:
                self.ledger.lose(lease.machine)
        machine.settled, machine.leases, machine.renamed = True, {}, {}
        for lease in self.ledger.leases_of(name):
            self.roster.give(name, lease)
        self.mail.arrived(name, round_)
        self._tell_reunion(name, name, taken.discarded)
        self._tell_finish()

    def _tell_finish(self) -> None:
        if self.is_finished:
            self.has_news = True
            self._say({"event": "finished", "round": self.base.round, "accepted": self.ledger.accepted})

    def _tell_reunion(self, name: str, winner: str, discarded: int) -> None:
        self._say({"event": "reunion", "machine": name, "winner": winner, "discarded": discarded})

    def _expected(self) -> set[str]:
        """The machines that will bring a delta: they have trained something, or are about to."""
        return {
            name
            for name, one in self.roster.present().items()
            if one.settled and one.state in ("training", "waiting") and self.ledger.leases_of(name)
        }

    def _welcome_back(self, name: str, machine: Machine) -> None:
        machine.present = True
        self.roster.reclaim(name, self.ledger)
        self._say_joined(name, machine.hello.name, "heard again")
        self.tell_peers()

    def _say_joined(self, machine: str, name: str, cause: str) -> None:
        where = {"round": self.base.round, "accepted": self.base.accepted}
        self._say({"event": "peer_joined", "machine": machine, "name": name, "cause": cause, **where})

    def _lose(self, name: str) -> None:
        machine = self.roster.machines[name]
        silent = self._clock() - machine.heard_at >= self.settings.lost_after_seconds
        self.ledger.lose(name)
        self._leave(name, machine, "silent" if silent else "it gets no further")

    def _discard(self, name: str) -> None:
        """Throw away what a machine has not brought in."""
        if self.rounds is not None:
            self.rounds.forget(name)
        self.ledger.discard(name)
        machine = self.roster.machines.get(name)
        if machine is not None:
            machine.leases, machine.renamed = {}, {}

    def _remove(self, name: str, cause: str) -> None:
        """Forget a machine that leaves; a delta that came whole still counts."""
        machine = self.roster.machines.get(name)
        if cause != "refused":
            self.mail.close(name)
        if machine is None:
            return
        self.ledger.lose(name)
        self._leave(name, machine, cause)
        del self.roster.machines[name]
        if self.roster.present():
            self._mentioned_at = -1e9  # the others hear at once

    def _leave(self, name: str, machine: Machine, cause: str) -> None:
        if machine.present:
            machine.present = False
            self._mentioned_at = -1e9
            self._say({"event": "peer_lost", "machine": name, "name": machine.hello.name, "cause": cause})
            self.tell_peers()
