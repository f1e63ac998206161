"""Run folders read for a report, each in one pass over its events, and those of one shared run put together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lowmem_seq.errors import LowmemSeqError
from lowmem_seq.report.history import History
from lowmem_seq.report.part import Part
from lowmem_seq.report.part_on_disk import fill_in
from lowmem_seq.report.summary import UNKNOWN, Summary, summarise
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.folder import RunFolder


@dataclass(frozen=True, eq=False)
class Reading:
    """What a run folder tells."""

    run: RunFolder
    summary: Summary
    """Its figures; of a folder that can't be read `state` says why."""
    history: History
    """What its events tell over time; empty where figures alone were asked for."""
    part: Part
    """Its machine's part, where several machines train the run."""

    @property
    def is_readable(self) -> bool:
        """Whether its figures are known."""
        return not str(self.summary["state"]).startswith("unreadable")

    @property
    def odd_count(self) -> int:
        """Events that are not as this release knows them."""
        return max(self.history.odd_count, self.part.odd_count)


def read_run(run: RunFolder, most_stretches: int | None = None) -> Reading:
    """Return what a run folder tells, also one that is broken: then its events are read as far as possible.

    Args:
        run: the folder.
        most_stretches: how finely curves are kept (series.py); None where no curves are wanted.
    """
    try:
        run.refuse_links()  # a read would wait for ever at a pipe, or read a device without end
    except (LowmemSeqError, OSError) as error:
        return Reading(run, _unreadable(run, error), History(), Part())
    history, part = _listeners(most_stretches)
    try:
        summary = summarise(run, _heard(run.events, most_stretches, history, part))
    except (LowmemSeqError, OSError) as error:
        summary = _unreadable(run, error)
        history, part = _listeners(most_stretches)
        with contextlib.suppress(OSError):
            for _ in _heard(run.events, most_stretches, history, part):
                pass
    fill_in(part, run)
    return Reading(run, summary, history, part)


def _listeners(most_stretches: int | None) -> tuple[History, Part]:
    return (History() if most_stretches is None else History(most_stretches)), Part()


def _heard(events: Iterable[Event], most_stretches: int | None, history: History, part: Part) -> Iterable[Event]:
    heard = part.listening(events)
    return heard if most_stretches is None else history.listening(heard)


def _unreadable(run: RunFolder, error: LowmemSeqError | OSError) -> Summary:
    fault = error.message if isinstance(error, LowmemSeqError) else f"it can't be read: {error}"
    return dict(UNKNOWN, run=str(run.path), state=f"unreadable: {fault}")


def gather(readings: Sequence[Reading]) -> list[list[Reading]]:
    """Return the runs among some folders, in order: those that belong to one cluster are one run."""
    runs: dict[object, list[Reading]] = {}
    for reading in readings:
        own = reading.part.cluster if reading.part.cluster is not None else id(reading)
        runs.setdefault(own, []).append(reading)
    return list(runs.values())
