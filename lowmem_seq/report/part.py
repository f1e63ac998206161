"""What a run folder tells of its machine's part in a run of several machines, taken in event by event.

All folders of such a run record the random name of its cluster, and each the id of its machine. Who did how many
samples every folder tells, for the ledger of samples is everybody's; how long a machine waited, and what it held in
memory, its own folder tells alone. What is kept is bounded, whatever the events say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from lowmem_seq.report.history import number_of
from lowmem_seq.report.part_figures import Samples, Spells, Tally, Told, Traffic, read_told
from lowmem_seq.report.summary import Middle
from lowmem_seq.runs.events import Event, time_of

Key = TypeVar("Key")

LEAVES = ("finished", "stopped", "refused")
"""Causes for which a machine leaves a hub that are no loss."""
LONGEST_NAME = 64
MOST_MACHINES = 256
"""As many as a cluster's ledger knows (cluster/history.py)."""
MOST_MEETINGS = 200
"""The newest stay."""
MOST_ROWS = 512
"""Where there are more, every second of them goes."""
ENDS_OF_A_TRAINER = frozenset({"session_opened", "session_ended", "trainer_restarted"})
OF_A_CLUSTER = frozenset(
    (
        *("cluster_open", "peer_joined", "peer_lost", "peers_present", "reunion", "round", "standing"),
        *("member_alone", "member_begins", "member_begins_anew", "member_cut_off", "member_ends"),
        *("member_hub_stops", "member_refused", "member_reunion", "member_round", "member_welcome"),
    )
)


@dataclass(frozen=True)
class Row:
    """Samples accepted by machine, at a moment."""

    at: float
    """In seconds since 1970."""
    by_machine: dict[str, Samples]


class Part:
    """A machine's part in a shared run, as its folder tells it; of a run that was never shared nothing is known."""

    def __init__(self) -> None:
        self.cluster: str | None = None
        """The random name of the run's cluster; None: it was never among several machines."""
        self.machine: str | None = None
        """This machine's id."""
        self.name: str | None = None
        self.names: dict[str, str] = {}
        """Of the machines that it heard of, by id."""
        self.told: Told | None = None
        """Who did what, as this folder knows it last."""
        self.rows: list[Row] = []
        self.accepted_at_split: int | None = None
        """Samples of all when it last went on alone."""
        self.is_alone = False
        """Whether it went on alone, and has not met the others again."""
        self.is_told = False
        """Whether the events tell of others at all; else they may be lost, and counts of nothing mean nothing."""
        self.hosts: bool | None = None
        """Whether the hub ran here in the last session among others."""
        self.traffic = Traffic()
        """What this machine's own end has carried, where another machine hosted."""
        self.lines: dict[str, Traffic] = {}
        """What a hub here has carried for each machine, as seen from that one."""
        self.stalled = Tally()
        self.longest_stall_seconds: float | None = None
        self.own_rounds = 0
        self.hub_rounds: dict[str, int] = {}
        """Rounds that a hub here merged work of a machine in."""
        self.losses: dict[str, int] = {}
        """How often a hub here lost a machine."""
        self.hosts_lost = 0
        """How often the host was silent or gone, without having said that it ends."""
        self.lines_cut = 0
        self.spells = Spells()
        """When it trained without another machine."""
        self.joined: dict[tuple[str, int, int], float] = {}
        """When a hub here let a machine in, by id, round and samples accepted."""
        self.welcomed: dict[tuple[int, int], float] = {}
        """When this machine heard a welcome, by round and samples accepted."""
        self.reunions: dict[str, float] = {}
        """When a hub here last met a machine again that had gone on alone, by id."""
        self.images_per_second = Middle()
        """Of all machines, by the rounds of a hub here."""
        self.heard_at: float | None = None
        self.odd_count = 0
        """Events that are not as this release knows them."""
        self._hosts = self._hub_said_goodbye = self._is_among_others = False
        self._others: int | None = None

    def listening(self, events: Iterable[Event]) -> Iterator[Event]:
        """Yield events as they come, each one taken in before."""
        for event in events:
            self.take(event)
            yield event

    def take(self, event: Event) -> None:
        """Take an event in; one that is not as expected is counted, and does no harm."""
        at = time_of(event)
        try:
            self._take(event, at)
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
            self.odd_count += 1
        if at is not None:
            self.heard_at = at

    @property
    def peers_lost(self) -> int:
        """How often it lost another machine that had not taken leave."""
        return self.hosts_lost + sum(count for machine, count in self.losses.items() if machine != self.machine)

    # What the events say

    def _take(self, event: Event, at: float | None) -> None:
        kind = event["event"]
        if kind in ENDS_OF_A_TRAINER:
            self._end_trainer()
        if kind == "session_opened":
            self._hosts = False
        elif kind == "session_started" and self.cluster is not None and not (self._is_among_others or self._hosts):
            self.spells.begin(at)  # resumed by itself, and not told to look for the others
        if kind in OF_A_CLUSTER:
            self._is_among_others = self.is_told = True
            self._take_what_happened(event, at)
            if "stalled_seconds" in event:
                self._take_costs(event)
            self._look_whether_alone(at)

    def _take_what_happened(self, event: Event, at: float | None) -> None:
        match event["event"]:
            case "member_begins":
                self._begin(event)
            case "standing":
                self._stand(event, at)
            case "cluster_open":
                self._open()
            case "round":
                self._merge(event)
            case "member_round":
                self.own_rounds += number_of(event["own_samples"]) > 0
                self.is_alone = False
            case "peer_joined":
                self._let_in(event, at)
            case "peer_lost":
                if event["cause"] not in LEAVES:
                    _add_one(self.losses, _text(event["machine"]))
            case "peers_present":
                self._others = int(event["others"])
            case "reunion":
                if at is not None:
                    _keep(self.reunions, _text(event["machine"]), at)
            case "member_welcome":
                self._be_welcomed(event, at)
            case "member_cut_off":
                self.lines_cut += 1
            case "member_hub_stops":
                self._hub_said_goodbye = True
            case "member_alone":
                self.hosts_lost += not (self._hub_said_goodbye or self._hosts)
                self.is_alone, self._hub_said_goodbye = True, False
            case "member_reunion" | "member_begins_anew":
                self.is_alone = False

    def _end_trainer(self) -> None:
        self.traffic.restart()
        self.stalled.restart()
        self.spells.break_off(self.heard_at)
        self._is_among_others, self._others = False, None

    def _take_costs(self, event: Event) -> None:
        self.stalled.see(number_of(event["stalled_seconds"]))
        if "longest_stall_seconds" in event:
            longest = number_of(event["longest_stall_seconds"])
            self.longest_stall_seconds = max(longest, self.longest_stall_seconds or 0.0)
        if not self._hosts:  # or it is between two processes of one machine
            self.traffic.see(sent=number_of(event["bytes_sent"]), received=number_of(event["bytes_received"]))
        if "alone" in event:
            self.is_alone = bool(event["alone"])

    def _look_whether_alone(self, at: float | None) -> None:
        if self.is_alone or self._others == 0:
            self.spells.begin(at)
        elif self._others is not None or not self._hosts:
            self.spells.end(at)

    def _begin(self, event: Event) -> None:
        self._belong_to(_text(event["cluster"]))
        self.machine, self.name = _text(event["machine"]), _text(event["name"])
        self._hosts = self.hosts = bool(event["hosts"])
        self._learn_name(self.machine, self.name)

    def _belong_to(self, cluster: str) -> None:
        if cluster != self.cluster:  # it had done nothing in the one before, or it could not be in this one
            self.cluster, self.told = cluster, None
            self.rows.clear()

    def _stand(self, event: Event, at: float | None) -> None:
        told = read_told(event, MOST_MACHINES)
        self._belong_to(_text(event["cluster"]))
        if told.is_alone and (self.told is None or self.told.branch != told.branch):
            self.accepted_at_split = told.accepted
        self.told, self.is_alone = told, told.is_alone
        for machine, share in event["machines"].items():
            if share.get("name") is not None:
                self._learn_name(machine, _text(share["name"]))
            if "bytes_sent" in share:
                line = _line_of(self.lines, machine)
                line.see(sent=number_of(share["bytes_received"]), received=number_of(share["bytes_sent"]))
        if at is not None:
            self.rows.append(Row(at, told.by_machine))
            if len(self.rows) > MOST_ROWS:
                del self.rows[1:-1:2]

    def _open(self) -> None:
        self._hosts = self.hosts = True
        for line in self.lines.values():
            line.restart()

    def _merge(self, event: Event) -> None:
        for machine in event["machines"]:
            _add_one(self.hub_rounds, _text(machine))
        seconds = number_of(event["seconds"])
        if seconds > 0:
            self.images_per_second.add(number_of(event["samples"]) / seconds)

    def _let_in(self, event: Event, at: float | None) -> None:
        machine = _text(event["machine"])
        self._learn_name(machine, _text(event["name"]))
        if at is not None and "round" in event:
            _keep(self.joined, (machine, int(event["round"]), int(event["accepted"])), at)

    def _be_welcomed(self, event: Event, at: float | None) -> None:
        self._hub_said_goodbye, self.hosts = False, self._hosts
        if at is not None:
            _keep(self.welcomed, (int(event["round"]), int(event["accepted"])), at)

    def _learn_name(self, machine: str, name: str) -> None:
        if machine in self.names or len(self.names) < MOST_MACHINES:
            self.names[machine] = name


def _text(value: object) -> str:
    """Return a name of an event.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is no name")
    return value[:LONGEST_NAME]


def _line_of(lines: dict[str, Traffic], machine: str) -> Traffic:
    """Return what belongs to a machine; of more machines than any run has it is not kept."""
    if machine not in lines and len(lines) >= MOST_MACHINES:
        return Traffic()
    return lines.setdefault(machine, Traffic())


def _add_one(counts: dict[str, int], machine: str) -> None:
    if machine in counts or len(counts) < MOST_MACHINES:
        counts[machine] = counts.get(machine, 0) + 1


def _keep(times: dict[Key, float], key: Key, at: float) -> None:
    """Note a time, and forget the oldest of too many."""
    times[key] = at
    if len(times) > MOST_MEETINGS:
        del times[next(iter(times))]
