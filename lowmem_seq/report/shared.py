"""One run that several machines trained, put together from the folders that are there: who did what at what cost.

The ledger of samples is everybody's, so any folder tells who did how many; the newest of them counts, as in the
cluster. What only a machine's own folder tells is not known without it, and said to be so.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowmem_seq.report.names import labels
from lowmem_seq.report.part import Part
from lowmem_seq.report.part_figures import Samples, Told
from lowmem_seq.report.reading import Reading, gather
from lowmem_seq.report.summary import Summary

UNKNOWN_MACHINE: dict[str, Any] = {
    "machine": None,
    "name": None,
    "run": None,
    "host": None,
    "state": None,
    "samples_accepted": None,
    "share": None,
    "images_per_second": None,
    "rounds": None,
    "bytes_sent": None,
    "bytes_received": None,
    "bytes_per_sample": None,
    "stalled_seconds": None,
    "longest_stall_seconds": None,
    "times_alone": None,
    "alone_seconds": None,
    "peers_lost": None,
    "samples_repeated": None,
    "samples_discarded": None,
    "peak_tree_bytes": None,
    "cap_bytes": None,
    "device": None,
    "precision": None,
    "sessions": None,
    "restarts": None,
    "clock_ahead_seconds": None,
}
"""What is told of a machine, by the keys of the JSON."""
OF_A_SUMMARY = ("images_per_second", "peak_tree_bytes", "cap_bytes", "device", "precision", "sessions", "restarts")
ALIVE = ("running", "paused")


@dataclass(frozen=True)
class Machine:
    """One of the machines of a shared run."""

    label: str
    """What it is called, which no other one of the run is."""
    figures: dict[str, Any]
    """By the keys of UNKNOWN_MACHINE; what is not known is None."""
    reading: Reading | None
    """Of its folder; None where that is not there."""


@dataclass(frozen=True)
class Side:
    """A machine that went on without the others, and has not met them again."""

    label: str
    accepted: int
    """Samples in its weights."""
    since_split: int | None
    """Of these, since it went on alone; None where nobody told."""


class SharedRun:
    """A run of several machines.

    Args:
        readings: of its folders, one or more.
    """

    def __init__(self, readings: Sequence[Reading]) -> None:
        self.readings = _one_a_machine(readings)
        self.copies = [one for one in readings if one not in self.readings]  # each is equal to itself alone
        """Folders of a machine of which another one, heard of later, is there."""
        self.lead = max(self.readings, key=_rank)
        """The folder that tells of the run as a whole: of the side with more samples, the host's."""
        self.told = max((one.part.told for one in self.readings if one.part.told), key=_progress, default=None)
        """Who did what."""
        self.machines = _machines(self.readings, self.lead, self.told)
        self.sides = [side for machine in self.machines if (side := self._side_of(machine)) is not None]
        """Those that parted from the others, and have not met them again; not the one that has come furthest."""

    @property
    def missing(self) -> list[Machine]:
        """The machines whose folder is not there."""
        return [machine for machine in self.machines if machine.reading is None]

    @property
    def images_per_second(self) -> float | None:
        """Of all machines together, as the host's rounds tell: the median."""
        known = [value for one in self.readings if (value := one.part.images_per_second.value) is not None]
        return known[0] if len(known) == 1 else None

    def summary(self) -> Summary:
        """Return the figures of the run, as of a run of one machine, with those of its machines."""
        summaries = [one.summary for one in self.readings]
        merged = dict(self.lead.summary, machines=[machine.figures for machine in self.machines])
        if len(self.machines) > 1:
            merged["images_per_second"] = self.images_per_second
        merged["state"] = next(
            (state for state in (*ALIVE, "finished") if any(one["state"] == state for one in summaries)),
            merged["state"],
        )
        for name in ("sessions", "restarts"):
            merged[name] = sum(one[name] for one in summaries)
        for name in ("device", "precision"):
            merged[name] = " and ".join(dict.fromkeys(one[name] for one in summaries if one[name])) or None
        for name in ("micro_batch", "accumulation"):
            if len({one[name] for one in summaries}) > 1:
                merged[name] = None
        nearest = max(summaries, key=_share_of_the_cap)
        merged |= {name: nearest[name] for name in ("tree_bytes", "peak_tree_bytes", "cap_bytes")}
        return merged

    def _side_of(self, machine: Machine) -> Side | None:
        told = None if machine.reading is None else machine.reading.part.told
        if machine.reading is None or self.told is None or told is None or told.branch == self.told.branch:
            return None
        part = machine.reading.part
        if part.is_alone and not self._has_met_again(part):
            return Side(machine.label, told.accepted, _since(part.accepted_at_split, told))
        if part.hosts and self.told.is_alone:  # it is the host's side that has come less far
            splits = [one.part.accepted_at_split for one in self.readings if one.part.told is self.told]
            return Side(machine.label, told.accepted, _since(splits[0], told))
        return None

    def _has_met_again(self, part: Part) -> bool:
        """Whether a host tells that it met a machine after that one's folder, a copy maybe, was written last."""
        met = [one.part.reunions.get(part.machine or "", 0.0) for one in self.readings]
        return max(met) > (part.heard_at or 0.0)


def _one_a_machine(readings: Sequence[Reading]) -> list[Reading]:
    """Return the readings without copies: of one machine's folders that which was heard of last."""
    kept: dict[object, Reading] = {}
    for reading in readings:
        machine = reading.part.machine if reading.part.machine is not None else id(reading)
        before = kept.get(machine)
        if before is None or (reading.part.heard_at or 0.0) > (before.part.heard_at or 0.0):
            kept[machine] = reading
    return [one for one in readings if any(one is other for other in kept.values())]


def _rank(reading: Reading) -> tuple[bool, int, bool, float]:
    part = reading.part
    accepted = part.told.accepted if part.told is not None else -1
    return reading.is_readable, accepted, bool(part.hosts), part.heard_at or 0.0


def _progress(told: Told) -> tuple[int, bool, int]:
    return told.accepted, not told.is_alone, told.round


def _since(accepted_at_split: int | None, told: Told) -> int | None:
    return None if accepted_at_split is None else max(0, told.accepted - accepted_at_split)


def _share_of_the_cap(summary: Summary) -> float:
    return float((summary["peak_tree_bytes"] or 0) / (summary["cap_bytes"] or 10**18))


def _machines(readings: Sequence[Reading], lead: Reading, told: Told | None) -> list[Machine]:
    """Return the machines: that of the lead first, the others that are there, and those that are only heard of."""
    there = [lead, *(one for one in readings if one is not lead)]
    by_machine = {} if told is None else told.by_machine
    heard_of = sorted(
        by_machine.keys() - {one.part.machine for one in there}, key=lambda one: -by_machine[one].accepted
    )
    names = {machine: name for one in reversed(there) for machine, name in one.part.names.items()}
    ids = [*(one.part.machine for one in there), *heard_of]
    told_names = [*(one.part.name for one in there), *(None for _ in heard_of)]
    own_names = [
        name or (names.get(one) if one is not None else None) for one, name in zip(ids, told_names, strict=True)
    ]
    shown = labels(list(zip(ids, own_names, strict=True)))
    return [
        Machine(label, _figures(machine, name, reading, readings, told), reading)
        for label, machine, name, reading in zip(
            shown, ids, own_names, [*there, *(None for _ in heard_of)], strict=True
        )
    ]


def _figures(
    machine: str | None, name: str | None, reading: Reading | None, readings: Sequence[Reading], told: Told | None
) -> dict[str, Any]:
    figures = dict(UNKNOWN_MACHINE, machine=machine, name=name)
    figures |= _samples(told, machine)
    parts = [one.part for one in readings]
    figures |= _traffic(machine, None if reading is None else reading.part, parts)
    figures["rounds"] = _rounds(machine, None if reading is None else reading.part, parts)
    if reading is not None:
        figures |= _of_its_folder(reading, parts)
    moved = [figures["bytes_sent"], figures["bytes_received"]]
    if figures["samples_accepted"] and None not in moved:
        figures["bytes_per_sample"] = sum(moved) / figures["samples_accepted"]
    return figures


def _samples(told: Told | None, machine: str | None) -> dict[str, Any]:
    if told is None or machine is None:
        return {}
    own = told.by_machine.get(machine, Samples(0, 0, 0))
    return {
        "samples_accepted": own.accepted,
        "samples_repeated": own.repeated,
        "samples_discarded": own.discarded,
        "share": own.accepted / told.accepted if told.accepted else None,
    }


def _traffic(machine: str | None, own: Part | None, parts: Sequence[Part]) -> dict[str, int | None]:
    """Return the bytes that a machine sent and received: as it counted, or as the host did at the other end.

    What a host exchanged with its own trainer crossed no line.
    """
    lines = [part.lines[machine] for part in parts if machine in part.lines and part.machine != machine]
    served = [] if own is None else [line for other, line in own.lines.items() if other != machine]
    counted = [] if own is None or own.traffic.sent is None else [own.traffic]
    ends = counted or lines
    nothing = [0] if own is not None and own.lines else []  # a host that nobody joined knows that, too
    sent = [*nothing, *(one.sent for one in ends), *(line.received for line in served)]
    received = [*nothing, *(one.received for one in ends), *(line.sent for line in served)]
    return {"bytes_sent": _sum(sent), "bytes_received": _sum(received)}


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _rounds(machine: str | None, own: Part | None, parts: Sequence[Part]) -> int | None:
    """Return in how many rounds a machine's work is: as it counted, or the hosts, for each may lack some."""
    hubs = [part.hub_rounds for part in parts if part.hub_rounds]
    counts = [own.own_rounds] if own is not None and own.is_told else []
    counts += [sum(hub.get(machine, 0) for hub in hubs)] if hubs and machine is not None else []
    return max(counts, default=None)


def _of_its_folder(reading: Reading, parts: Sequence[Part]) -> dict[str, Any]:
    part, summary = reading.part, reading.summary
    return {
        **{name: summary[name] for name in OF_A_SUMMARY},
        "run": str(reading.run.path),
        "host": part.hosts,
        "state": str(summary["state"]).partition(": ")[0],
        "stalled_seconds": part.stalled.total,
        "longest_stall_seconds": part.longest_stall_seconds,
        "times_alone": part.spells.count if part.is_told else None,
        "alone_seconds": part.spells.seconds(part.heard_at) if part.is_told else None,
        "peers_lost": part.peers_lost if part.is_told else None,
        "clock_ahead_seconds": clock_ahead_seconds(part, parts),
    }


def clock_ahead_seconds(part: Part, parts: Sequence[Part]) -> float | None:
    """Return by how much a machine's clock is ahead of its host's; None where nothing tells.

    A host notes when it lets a machine in, and that machine when it hears so; between the two lie milliseconds.
    """
    ahead = [
        at - host.joined[part.machine, number, accepted]
        for host in parts
        for (number, accepted), at in part.welcomed.items()
        if host is not part and part.machine is not None and (part.machine, number, accepted) in host.joined
    ]
    return statistics.median(ahead) if ahead else None


@dataclass(frozen=True, eq=False)
class Reported:
    """A run as a report tells of it."""

    lead: Reading
    """Of its folder; of several, the one that tells of the run as a whole."""
    shared: SharedRun | None
    """Its machines; None: it was never among several."""

    @property
    def readings(self) -> list[Reading]:
        """Of all its folders."""
        return [self.lead] if self.shared is None else self.shared.readings

    @property
    def summary(self) -> Summary:
        """Its figures."""
        return self.lead.summary if self.shared is None else self.shared.summary()


def reported(readings: Sequence[Reading]) -> list[Reported]:
    """Return the runs that some folders hold, in their order; those of one cluster are one run."""
    runs = []
    for gathered in gather(readings):
        shared = SharedRun(gathered) if gathered[0].part.cluster is not None else None
        runs.append(Reported(gathered[0] if shared is None else shared.lead, shared))
    return runs
