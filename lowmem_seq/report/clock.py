"""Where the time of a run went, by its events: starting, training, evaluating, saving, waiting.

A run's own time stands still from the end of a session to the next `session_opened`: nobody was there. What is
between two events counts for what went on then; evaluations, saves and sleep say how much of it they took.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from lowmem_seq.runs.events import Event, time_of

SPENT = ("training", "evaluation", "saving", "waiting", "starting")
"""What the time goes to; `waiting` is for a disk, a plug, an hour, another machine, or the end of a sleep."""
MOST_SPANS = 300
"""The newest stay."""
TAKES_OUT = {"validation": "evaluation", "test": "evaluation", "checkpoint": "saving", "slept": "waiting"}
"""Events that say in `seconds` what they took of the time of training, and what that went to."""
ENDS_OF_PAUSES = ("unpaused", "session_opened", "planned", "session_started")


class Span(NamedTuple):
    """A stretch of clock time, in seconds since 1970."""

    what: str
    """`starting`, `training` or `paused`."""
    begin: float
    end: float


class Clock:
    """Counts the time of a run from event to event."""

    def __init__(self) -> None:
        self.alive_seconds = 0.0
        """The run's own time."""
        self.spent = dict.fromkeys(SPENT, 0.0)
        """Seconds of it by what they went to."""
        self.session_starts: deque[float] = deque(maxlen=MOST_SPANS)
        """When sessions were opened after the first one, in the run's own time."""
        self.heard_at: float | None = None
        """When it was last heard of, in seconds since 1970."""
        self._spans: deque[Span] = deque(maxlen=MOST_SPANS)
        self._span_began: float | None = None
        self._phase: str | None = None
        self._is_paused = False
        self._paused_seconds = 0.0
        self._stalled_seconds = 0.0

    @property
    def spans(self) -> list[Span]:
        """What went on, the oldest first; the last one until the last event."""
        return [*self._spans, *self._span(self._what, self.heard_at)]

    def pass_to(self, event: Event) -> float | None:
        """Count the time up to an event; return when it was, in seconds since 1970, if it says so."""
        kind, at, before = event["event"], time_of(event), self.heard_at
        if at is not None:
            self.heard_at = at
            if before is not None and kind != "session_opened":
                self._count(max(0.0, at - before))  # nothing, where the clock was set back
        if kind == "session_opened" and self.alive_seconds:
            self.session_starts.append(self.alive_seconds)
        self._turn(event, before if kind == "session_opened" else at)
        return at

    def take_out(self, event: Event, seconds: float) -> None:
        """Say of some seconds of training that they went to what an event, one of TAKES_OUT, tells of."""
        kind = event["event"]
        if kind == "checkpoint":  # it may have waited for the disk
            seconds, self._paused_seconds = max(0.0, seconds - self._paused_seconds), 0.0
        moved = max(0.0, min(seconds, self.spent["training"]))
        self.spent["training"] -= moved
        self.spent[TAKES_OUT[kind]] += moved

    def take_stalled(self, seconds: float) -> None:
        """Hear how long a trainer has waited for other machines, counted from its start."""
        waited = max(0.0, min(seconds - self._stalled_seconds, self.spent["training"]))
        self._stalled_seconds = seconds
        self.spent["training"] -= waited
        self.spent["waiting"] += waited

    @property
    def _what(self) -> str | None:
        return "paused" if self._is_paused else self._phase

    def _count(self, seconds: float) -> None:
        self.alive_seconds += seconds
        if self._is_paused:
            self._paused_seconds += seconds
            self.spent["waiting"] += seconds
        elif self._phase is not None:
            self.spent[self._phase] += seconds

    def _turn(self, event: Event, ended_at: float | None) -> None:
        """Begin another span where an event begins something else."""
        kind, before = event["event"], self._what
        self._is_paused = kind == "paused" or (self._is_paused and kind not in ENDS_OF_PAUSES)
        if kind in ("session_opened", "trainer_restarted"):
            self._phase = "starting"
        elif kind == "session_started":
            self._phase, self._stalled_seconds = "training", 0.0
        elif kind == "session_ended":
            self._phase = "starting" if event.get("state") == "crashed" else None
        elif kind == "unpaused" and self._phase is None:  # the trainer had ended for the pause
            self._phase = "starting"
        if self._what != before or kind == "session_opened":
            self._spans.extend(self._span(before, ended_at))
            self._span_began = time_of(event)

    def _span(self, what: str | None, end: float | None) -> list[Span]:
        """Return the span under way as one that ends then; none where it is not known what or when."""
        if what is None or self._span_began is None or end is None:
            return []
        return [Span(what, self._span_began, max(self._span_began, end))]
