"""What a machine says to the hub, and what it makes of what the hub says. No thread, no socket, no waiting.

member.py calls `hear` with what came and `say` for what goes out, both with the lock held. A piece of a large
vector is sent by each call of `say`, so that the lock is free in between.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from lowmem_seq.cluster.compression import CODECS, ChunkError, Chunks
from lowmem_seq.cluster.deltas import Parcel
from lowmem_seq.cluster.ledger import Ledger
from lowmem_seq.cluster.member_alone import led_there, name_as
from lowmem_seq.cluster.member_work import Delta, Update, Work
from lowmem_seq.cluster.messages import (
    SAME_RELEASE_HINT,
    Base,
    Beat,
    Bye,
    DeltaPiece,
    Finished,
    FromClient,
    FromHub,
    GoAway,
    Hello,
    Leased,
    LedgerTold,
    Peer,
    Peers,
    Piece,
    Range,
    Refused,
    State,
    UpdatePiece,
    UploadPiece,
    UploadWanted,
    Want,
    WeightsPiece,
    WeightsWanted,
    Welcome,
)
from lowmem_seq.cluster.pieces import Assembly
from lowmem_seq.cluster.refusals import refused, sent_away
from lowmem_seq.cluster.standing import told_standing
from lowmem_seq.cluster.wire import Sent
from lowmem_seq.errors import ClusterError

Post = Callable[[FromClient, Sequence[bytes]], Sent]

ANSWER_SECONDS = 5.0
"""How long an answer may take before the question is asked again."""
STRANGE_HUB_SECONDS = 60.0
"""After which a hub that is another run's is asked again."""
FULL_SECONDS = 0.02
"""How long to wait where a connection takes nothing more at the moment."""
LONGEST_SECONDS = 0.5
HOLD_FACTOR = 2.7
REFILL_BELOW = 0.45
"""A machine wants work for 2.7 times as long as a side may be silent, and asks when less than 0.45 of that are left
(sizing.py gives nothing above a half): so what it holds always lasts until it goes on alone."""


class Talk:
    """One machine's side of the talk with the hub.

    Args:
        hello: what it says of itself; base and speed are put in when it is said.
        work: its weights and samples.
        tell: called with what happens; it must not wait.
        clock: seconds that only grow.
    """

    def __init__(
        self, hello: Hello, work: Work, tell: Callable[[dict[str, Any]], None], clock: Callable[[], float]
    ) -> None:
        self._hello, self._work, self._tell, self._clock = hello, work, tell, clock
        self.welcome: Welcome | None = None
        """The newest."""
        self.trouble: Exception | None = None
        """Why this machine can't go on."""
        self.peers: tuple[Peer, ...] = ()
        self.state: State = "joining"
        self.average_wanted = False
        self.average: Parcel | None = None
        self.nothing_to_lease = False
        """Whether the hub had nothing more when it was asked last."""
        self.farewell: Bye | None = None
        """What is said before the end."""
        self.shown_base: Base | None = None
        """What hello shows, where the work has no base yet."""
        self._up = self._welcomed = False
        self._heard = self._clock()
        self._outbox: deque[FromClient] = deque()
        self._hello_due = self._beat_due = self._want_due = self._ask_due = self._ledger_due = 0.0
        self._request = 0
        self._shown: Base | None = None
        self._ledger_told = self._asked = self._placed = False
        """Since the newest hello: whether the hub was told the lone ledger, was asked what leads on from the base,
        and knows what that is."""
        self._transfer: tuple[str, Base, Assembly] | None = None
        self._newest_round = 0
        self._standing_told: Base | None = None
        self._update: tuple[UpdatePiece, Assembly] | None = None
        self._arrived: Update | None = None

    # The connection

    def line_up(self) -> None:
        """Say hello: the connection stands."""
        self._up = True
        self._say_hello()

    def line_down(self) -> None:
        """Note that the connection is lost."""
        if self._welcomed:
            self._tell({"event": "member_cut_off"})
        self._up = self._welcomed = False
        self._outbox.clear()
        self._update = None
        self._work.line_lost()

    def begin_again(self) -> None:
        """Say hello anew, if there is a connection: what this machine has is something else than it said."""
        if self._up:
            self._say_hello()

    @property
    def with_hub(self) -> bool:
        """Whether the hub let this machine in, and both are on the same branch."""
        return self._welcomed and self._work.lone is None

    def _say_hello(self) -> None:
        self._welcomed = False
        self._work.line_lost()
        self._update = None
        self._hello_due = self._clock() + ANSWER_SECONDS
        base = self._work.shown_base or self.shown_base
        speed = self._work.samples_per_second or self._hello.samples_per_second
        self._shown = base
        self._ledger_told = self._asked = self._placed = False
        self._outbox.clear()
        self._outbox.append(replace(self._hello, base=base, samples_per_second=speed))

    # What the hub says

    def hear(self, message: FromHub, payloads: Sequence[bytes] = ()) -> None:
        """Take in what the hub says. Then ask `arrived` whether an update is to be received."""
        self._heard = self._clock()
        if not self._welcomed and not isinstance(message, Welcome | Refused | GoAway):
            if self._hello_due == math.inf:
                self._say_hello()  # it was silent for long, though the connection stood
            return
        match message:
            case Welcome():
                self._on_welcome(message)
            case Refused():
                self._on_refused(message)
            case GoAway():
                self._on_go_away(message)
            case Leased():
                self._on_leased(message)
            case WeightsPiece():
                self._on_weights(message, payloads[0])
            case UpdatePiece():
                self._on_update(message, payloads[0])
            case LedgerTold():
                self._on_ledger(message)
            case UploadWanted():
                self._on_upload_wanted()
            case Peers():
                self._note_round(message.round)
                self._note_peers(message.peers)
            case Finished():
                self._work.finish = message.base
                self._note_round(message.base.round)

    def arrived(self) -> Update | None:
        """Return an update that the replica is to receive now, and forget it."""
        update, self._arrived = self._arrived, None
        return update

    def _on_refused(self, message: Refused) -> None:
        """Stay outside; a machine that was in goes on alone: it is another run's hub that listens there now."""
        if self.welcome is not None:
            self._go_alone()
        if self._work.lone is None:
            self.trouble = refused(message)
            return
        self._tell({"event": "member_refused", "cause": refused(message).message})
        self._welcomed, self._hello_due = False, self._clock() + STRANGE_HUB_SECONDS

    def _on_welcome(self, message: Welcome) -> None:
        work = self._work
        self.welcome, self._welcomed = message, True
        work.settings = message.settings
        self._newest_round = message.base.round
        self._beat_due = self._want_due = self._ask_due = self._ledger_due = 0.0
        self._tell({"event": "member_welcome", "round": message.base.round, "accepted": message.base.accepted})
        self._note_peers(message.peers)
        if work.lone is not None and work.lone.before.branch == message.base.branch and self._shown != work.base:
            if work.shown_base == work.base:
                self._say_hello()  # meanwhile it has come further than it said
                return
            work.return_untouched()
        if work.base is None or work.beginning:
            return  # the weights that it needs are asked for anyhow
        if message.base.branch == work.base.branch:
            if work.lone is None and message.base.round < work.base.round:
                self._begin_anew("the hub's weights are older than this machine's")
        elif work.base.cluster != message.base.cluster or not (work.lone or work.can_go_alone):
            self._begin_anew("the hub's weights are of another branch")
        elif work.lone is None:
            work.go_alone()  # until it is decided whose weights stay

    def _on_go_away(self, message: GoAway) -> None:
        match message.reason:
            case "dropped":
                if self._work.lone is None:
                    self._begin_anew(message.text or "the hub could not take this machine's work")
                self._say_hello()
            case "hello_first":
                self._say_hello()
            case "stopping":
                self._tell({"event": "member_hub_stops"})
                self._go_alone()
            case _:
                self.trouble = sent_away(message)

    def _on_leased(self, message: Leased) -> None:
        if self._work.beginning or self._work.lone is not None:
            return
        for lease in message.leases:
            self._work.holdings.give(lease.lease, lease.range.start, lease.range.end)
        self.nothing_to_lease = not message.leases
        self._work.idle = self._work.idle and self.nothing_to_lease
        if message.request == self._request:
            self._want_due = self._clock() + (message.wait_seconds or 0.0)

    def _on_weights(self, message: WeightsPiece, payload: bytes) -> None:
        if message.part == "average":
            wanted = self.average_wanted and self.average is None
        else:
            wanted = self._work.beginning or self._asked
        if not wanted:
            return
        if self._transfer is None or self._transfer[:2] != (message.part, message.base):
            if message.index:
                self._transfer, self._ask_due = None, 0.0
                return
            self._transfer = message.part, message.base, Assembly(self._chunks("fp32"))
            if message.part == "weights" and not self._work.beginning:
                self._begin_anew("the hub knows of no updates that lead on from this machine's weights")
        assembly = self._transfer[2]
        if message.index != assembly.next_index:
            if message.index > assembly.next_index:
                self._transfer, self._ask_due = None, 0.0
            return
        self._put(assembly, message, payload)
        self._ask_due = self._clock() + ANSWER_SECONDS
        if assembly.is_whole:
            self._transfer, self._ask_due = None, 0.0
            if message.part == "average":
                self.average = assembly.parcel
            else:
                self._work.bring(assembly.parcel, message.base)

    def _on_update(self, message: UpdatePiece, payload: bytes) -> None:
        base = self._work.base
        self._note_round(message.base.round)
        if base is None or self._work.beginning or self._work.lone is not None or message.from_round != base.round:
            return
        if message.index == 0:
            self._update = message, Assembly(self._chunks(message.encoding))
        if self._update is None or self._update[0].base != message.base:
            return
        assembly = self._update[1]
        if message.index != assembly.next_index:
            return
        self._put(assembly, message, payload)
        self._ask_due = self._clock() + ANSWER_SECONDS
        if assembly.is_whole:
            self._update = None
            mine = [one.delta for one in message.merged if one.machine == self._work.machine]
            self._arrived = self._work.begin_update(assembly.parcel, message.base, mine)
            if self._arrived is None:
                self._say_adopted("the hub merged work that this machine does not know any more")
            else:
                self._tell(
                    {
                        "event": "member_round",
                        "round": message.base.round,
                        "machines": len(message.merged),
                        "samples": sum(one.samples for one in message.merged),
                        "own_samples": sum(
                            one.samples for one in message.merged if one.machine == self._work.machine
                        ),
                        "accepted": message.base.accepted,
                    }
                )

    def _on_ledger(self, message: LedgerTold) -> None:
        work = self._work
        if work.lone is None:
            work.learn(message.base, message.ledger)
            with contextlib.suppress(ClusterError):  # one that can't be read is told where it is needed
                self._tell_standing(message.base, ledger_of(message.ledger))
            return
        if not self._ledger_told:
            return
        theirs = ledger_of(message.ledger)
        same = work.base is not None and message.base.accepted == work.base.accepted
        if same and led_there(theirs, work.lone.ledger.branch[0]):
            self._rejoin(message.base, message.ledger)
            return
        discarded = work.lone.accepted_alone + work.holdings.unmerged.size
        self._tell({"event": "member_reunion", "winner": "hub", "discarded": discarded})
        self._begin_anew("the other side had come further")
        work.learn(message.base, message.ledger)

    def _on_upload_wanted(self) -> None:
        if self._work.lone is not None and self._work.upload is None:
            self._work.upload_wanted = True

    def _rejoin(self, base: Base, ledger: str) -> None:
        self._work.take_up(base, ledger)
        name_as(self._work.holdings, ledger_of(ledger), self._work.machine)
        self._newest_round = base.round
        self._tell({"event": "member_reunion", "winner": "member", "discarded": 0})

    def _begin_anew(self, cause: str) -> None:
        self._work.begin_anew()
        self._say_adopted(cause)

    def _say_adopted(self, cause: str) -> None:
        self.nothing_to_lease = self._asked = False
        self._update = None
        self._ask_due = 0.0
        self._tell({"event": "member_begins_anew", "cause": cause})

    def _tell_standing(self, base: Base, ledger: Ledger) -> None:
        """Tell who did what, once a round."""
        if base != self._standing_told:
            self._standing_told = base
            names = {one.machine: one.name for one in self.peers} | {self._hello.machine: self._hello.name}
            self._tell(told_standing(base, ledger.standing(), names))

    def _note_round(self, number: int) -> None:
        if number > self._newest_round:
            self._newest_round = number
            self._ask_due = self._clock() + ANSWER_SECONDS / 2  # the update is on its way

    def _note_peers(self, peers: tuple[Peer, ...]) -> None:
        known = {one.machine for one in self.peers}
        here = {one.machine for one in peers}
        if known != here:
            self._tell({"event": "member_peers", "machines": sorted(one.name for one in peers)})
        self.peers = peers
        self._work.peers = tuple(sorted(here))

    def _put(self, assembly: Assembly, message: Piece, payload: bytes) -> None:
        try:
            assembly.take(message, payload)
        except ChunkError as error:
            raise ClusterError(
                f"the hub sent what is no part of this model's weights: {error}",
                SAME_RELEASE_HINT,
            ) from error

    def _chunks(self, encoding: str) -> Chunks:
        return Chunks(self._work.layout.elements, CODECS[encoding])

    # What goes out

    def say(self, post: Post) -> float:
        """Say what is due; return for how many seconds nothing else will be, unless something happens."""
        self._watch_hub()
        if self._work.lone is not None and self._work.base is not None:
            self._tell_standing(self._work.base, self._work.lone.ledger)
        if not self._up:
            self.farewell = None  # nobody hears it
            return LONGEST_SECONDS
        while self._outbox:
            if post(self._outbox[0], ()) is not Sent.QUEUED:
                return FULL_SECONDS
            self._outbox.popleft()
        if self.farewell is not None:
            if post(self.farewell, ()) is Sent.QUEUED:
                self.farewell = None
                self._up = False
            return FULL_SECONDS
        now = self._clock()
        if not self._welcomed:
            if now < self._hello_due:
                return LONGEST_SECONDS
            self._say_hello()
            return 0.0
        for due in (self._beat, self._ask, self._want, self._tell_ledger):
            if not due(post, now):
                return FULL_SECONDS
        piece_sent = self._send_piece(post)
        if piece_sent is not None:
            return 0.0 if piece_sent else FULL_SECONDS
        return max(0.0, min(LONGEST_SECONDS, self._beat_due - now))

    def _watch_hub(self) -> None:
        settings = self._work.settings
        if settings is not None and self._clock() > self._heard + settings.lost_after_seconds:
            self._go_alone()

    def _go_alone(self) -> None:
        work = self._work
        if work.lone is None and work.can_go_alone and not work.receiving and work.finish is None:
            work.go_alone()
            self._welcomed, self._hello_due = False, math.inf
            self._tell({"event": "member_alone", "accepted": work.lone.ledger.accepted if work.lone else 0})

    def _beat(self, post: Post, now: float) -> bool:
        if now < self._beat_due:
            return True
        self._beat_due = now + (self._work.settings.beat_seconds if self._work.settings else 1.0)
        return post(self._beat_now(), ()) is Sent.QUEUED

    def _beat_now(self) -> Beat:
        work = self._work
        base = work.base
        joining = base is None or work.beginning
        return Beat(
            None if base is None or joining else base.round,
            "joining" if joining else self.state,
            work.samples_per_second,
            () if work.lone is not None else work.holdings.progress(),
        )

    def _want(self, post: Post, now: float) -> bool:
        work, settings = self._work, self._work.settings
        if (
            now < self._want_due
            or settings is None
            or work.base is None
            or work.beginning
            or work.lone is not None
            or work.finish is not None
        ):
            return True
        wanted = max(settings.round_seconds, HOLD_FACTOR * settings.lost_after_seconds)
        speed = work.samples_per_second
        enough = speed * wanted * REFILL_BELOW
        if work.holdings.untrained > enough or (not speed and work.holdings.untrained):
            return True
        sent = post(self._beat_now(), ()) is Sent.QUEUED  # or the hub would take for untrained what isn't
        sent = sent and post(Want(self._request + 1, wanted), ()) is Sent.QUEUED
        if sent:
            self._request += 1
            self._want_due = now + ANSWER_SECONDS
        return sent

    def _ask(self, post: Post, now: float) -> bool:
        work = self._work
        if now < self._ask_due:
            return True
        part, base = "weights", work.base
        if self.average_wanted and self.average is None:
            part = "average"
        elif work.beginning:
            if work.has_incoming:
                return True
            base = None
        elif work.lone is not None or base is None or work.receiving or self._is_newest(base):
            return True
        begun = self._transfer if self._transfer is not None and self._transfer[0] == part else None
        index = begun[2].next_index if begun is not None else 0
        self._ask_due = now + ANSWER_SECONDS
        self._placed, self._asked = True, self._asked or base is not None
        return post(WeightsWanted(base, part, index), ()) is Sent.QUEUED  # type: ignore[arg-type]

    def _is_newest(self, base: Base) -> bool:
        return self._placed and self._newest_round <= base.round

    def _tell_ledger(self, post: Post, now: float) -> bool:
        """Tell the hub this machine's own ledger, for the two to be compared."""
        work = self._work
        if work.lone is None or work.base is None or now < self._ledger_due or work.upload is not None:
            return True
        self._ledger_due = now + ANSWER_SECONDS
        self._ledger_told = True
        return post(LedgerTold(work.base, work.lone.text(work.holdings)), ()) is Sent.QUEUED

    def _send_piece(self, post: Post) -> bool | None:
        """Send a piece of what is to go out: whether it was taken; None where there is none."""
        work = self._work
        whole = work.delta if work.lone is None else work.upload
        if whole is None or work.base is None or whole.next_piece >= whole.cutter.count:
            return None
        if work.lone is None and self.welcome is not None and work.base.round < self.welcome.base.round:
            return None  # the updates that were missed come first: one of them may have this delta
        if work.lone is not None and whole.next_piece == 0:
            told = LedgerTold(work.base, work.lone.text(work.holdings))
            if post(told, ()) is not Sent.QUEUED:
                return False
        if post(self._piece(whole, work.base), (whole.cutter.piece(whole.next_piece),)) is not Sent.QUEUED:
            return False
        whole.next_piece += 1
        whole.handed_over = whole.handed_over or whole.next_piece == whole.cutter.count
        return True

    def _piece(self, whole: Delta, base: Base) -> FromClient:
        chunks = whole.cutter.chunks
        index, count, total = whole.next_piece, whole.cutter.count, chunks.total_bytes
        if self._work.lone is not None:
            return UploadPiece("fp32", index, count, total, base)
        return DeltaPiece(
            chunks.codec.name,  # type: ignore[arg-type]
            index,
            count,
            total,
            whole.number,
            whole.round,
            whole.samples,
            tuple(Range(start, end) for start, end in whole.ranges),
        )


def ledger_of(text: str) -> Ledger:
    """Return a ledger that was told.

    Raises:
        ClusterError: it is damaged.
    """
    try:
        return Ledger.from_json(json.loads(text))
    except ValueError as error:
        raise ClusterError(f"the hub told a ledger that can't be: {error}", SAME_RELEASE_HINT) from error
