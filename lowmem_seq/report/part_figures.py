"""The figures that a machine's part in a shared run is made of: what was counted, for how long, and by whom."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from lowmem_seq.cluster.ledger_file import LARGEST_COUNT
from lowmem_seq.report.clock import Span

MOST_SPELLS = 300
"""The newest stay."""


class Samples(NamedTuple):
    """What a machine did of a run, as the ledger counts it."""

    accepted: int
    repeated: int
    discarded: int


@dataclass(frozen=True)
class Told:
    """Who did what, as somebody knew it at some moment."""

    branch: str
    """Of the run: sides of a split have other ones."""
    round: int
    accepted: int
    """Samples of all machines."""
    total: int
    is_alone: bool
    """Whether a machine that had lost the others tells this of its own side."""
    by_machine: dict[str, Samples]


def read_told(value: dict[str, Any], most_machines: int) -> Told:
    """Return what a `standing` event tells.

    Raises:
        KeyError, TypeError, ValueError: it is not as expected.
    """
    shares = value["machines"]
    if len(shares) > most_machines or not isinstance(value["branch"], str):
        raise ValueError(f"{len(shares):,} machines on branch {value['branch']!r}")
    by_machine = {
        machine: Samples(*(_count(share[name]) for name in Samples._fields)) for machine, share in shares.items()
    }
    return Told(
        value["branch"],
        _count(value["round"]),
        _count(value["accepted"]),
        _count(value["total"]),
        bool(value.get("alone", False)),
        by_machine,
    )


def _count(value: object) -> int:
    """Return how many of something there are.

    Raises:
        ValueError: it is no such number.
    """
    if type(value) is not int or not 0 <= value <= LARGEST_COUNT:
        raise ValueError(f"{value!r} is no number of samples")
    return value


class Tally:
    """A figure that each process counts from 0 on, summed over all of them."""

    def __init__(self) -> None:
        self._before = 0.0
        self._now: float | None = None

    def see(self, value: float) -> None:
        """Hear how far the present process has counted; where that is less than before, another one began."""
        if self._now is not None and value < self._now:
            self.restart()
        self._now = value

    def restart(self) -> None:
        """Have another process begin."""
        if self._now is not None:
            self._before, self._now = self._before + self._now, 0.0

    @property
    def total(self) -> float | None:
        """The sum; None where nothing was counted."""
        return None if self._now is None else self._before + self._now


class Traffic:
    """Bytes of one machine's line."""

    def __init__(self) -> None:
        self._sent, self._received = Tally(), Tally()

    def see(self, sent: float, received: float) -> None:
        """Hear how far the present process has counted."""
        self._sent.see(sent)
        self._received.see(received)

    def restart(self) -> None:
        """Have another process begin."""
        self._sent.restart()
        self._received.restart()

    @property
    def sent(self) -> int | None:
        """By the machine; None where nobody counted."""
        return None if self._sent.total is None else round(self._sent.total)

    @property
    def received(self) -> int | None:
        """By the machine; None where nobody counted."""
        return None if self._received.total is None else round(self._received.total)


class Spells:
    """Stretches of clock time in which a machine was alone."""

    def __init__(self) -> None:
        self.count = 0
        """How often it was left alone; a restart in between does not count."""
        self._ended: deque[Span] = deque(maxlen=MOST_SPELLS)
        self._seconds = 0.0
        self._began: float | None = None
        self._is_alone = self._goes_on = False

    def begin(self, at: float | None) -> None:
        """Note that it is alone from here on, unless it is already."""
        if not self._is_alone:
            self._is_alone, self._began = True, at
            self.count += not self._goes_on
            self._goes_on = True

    def end(self, at: float | None) -> None:
        """Note that it is among others again."""
        self.break_off(at)
        self._goes_on = False

    def break_off(self, at: float | None) -> None:
        """Note that its trainer ended; another one may go on alone."""
        ended = self._span(at)
        self._ended.extend(ended)
        self._seconds += sum(span.end - span.begin for span in ended)
        self._is_alone, self._began = False, None

    def spans(self, until: float | None) -> list[Span]:
        """Return them, the oldest first; one under way lasts until then."""
        return [*self._ended, *self._span(until)]

    def seconds(self, until: float | None) -> float:
        """Return how long they were together."""
        return self._seconds + sum(span.end - span.begin for span in self._span(until))

    def _span(self, end: float | None) -> list[Span]:
        if not self._is_alone or self._began is None or end is None:
            return []
        return [Span("alone", self._began, max(self._began, end))]
