"""All that a run's events tell over time, gathered in one pass and in bounded memory.

Curves of training go by the optimizer step: where a session went on from an earlier step than the one before had
reached, what was undone is left out. Curves of the machine go by the run's own time (clock.py), in seconds.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lowmem_seq.report.clock import TAKES_OUT, Clock
from lowmem_seq.report.series import MOST_STRETCHES, Series
from lowmem_seq.report.summary import Middle
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.happenings import Kind, tell

BY_STEP = {
    "train": ("train_loss", "learning_rate"),
    "validation": ("val_loss", "val_accuracy"),
    "test": ("test_loss", "test_accuracy"),
}
"""Figures of an event that are curves over the steps."""
BY_TIME = {"train": ("images_per_second",), "memory": ("tree_bytes", "peak_tree_bytes", "cap_bytes")}
"""Figures of an event that are curves over the run's own time."""
KEPT = ("planned", "session_started", "test")
"""A session that goes on with a run takes its test back: the weights are other ones from there on."""
CHANGES = ("setting_changed", "micro_batch_changed")
"""The second: as releases before wrote it."""
OF_ITS_LENGTH = frozenset({"recipe.epochs", "steps"})
"""Settings that say how long a run is."""
MOST_HAPPENINGS = 300
"""The newest stay, and as many marks."""
LARGEST_NUMBER = 10.0**15
"""Steps, seconds and bytes beyond are none."""


class Happening(NamedTuple):
    """Something that is told in words."""

    at: float | None
    """In seconds since 1970."""
    kind: Kind
    text: str
    is_warning: bool


class Mark(NamedTuple):
    """A change of setting."""

    seconds: float
    """Of the run's own time."""
    kind: Kind
    text: str


class NearestToCap(NamedTuple):
    """When a run was nearest to the cap that it had at that time."""

    share: float
    """That it held of the cap."""
    cap_bytes: float
    was_the_only_cap: bool
    """Whether the run never had another one."""


class Standing(NamedTuple):
    """How far a run was at some moment."""

    seconds: float = 0.0
    """Of the run's own time."""
    training_seconds: float = 0.0
    steps_done: float = 0.0
    """Those that were done again included."""


class History:
    """What was seen so far; `take` it event by event, or have `listening` do so while another one reads.

    Args:
        most_stretches: how finely the curves are kept (series.py).
    """

    def __init__(self, most_stretches: int = MOST_STRETCHES) -> None:
        self.clock = Clock()
        self.by_step = {name: Series(most_stretches) for names in BY_STEP.values() for name in names}
        self.by_time = {name: Series(most_stretches) for names in BY_TIME.values() for name in names}
        self.happenings: deque[Happening] = deque(maxlen=MOST_HAPPENINGS)
        self.counts: Counter[Kind] = Counter()
        """Of all happenings, by their kind."""
        self.has_another_length = False
        """Whether it was given one on the way."""
        self.marks: deque[Mark] = deque(maxlen=MOST_HAPPENINGS)
        self.repeated_steps = 0
        """Steps that were done again, as a session ended after its last save."""
        self.effective_batch = 0.0
        """Images in a step."""
        self.epochs_per_step: float | None = None
        self.last: dict[str, Event] = {}
        """The last event of each kind in KEPT."""
        self.nearest_to_cap: NearestToCap | None = None
        self.rates, self.rates_of_plan = Middle(), Middle()
        """Images a second, of all sessions and since the plan in force was made; curves keep the odd ones alone."""
        self.at_plan = Standing()
        """When that plan was made."""
        self.event_count = 0
        self.odd_count = 0
        """Events that are not as this release knows them."""
        self._step = 0.0

    def listening(self, events: Iterable[Event]) -> Iterator[Event]:
        """Yield events as they come, each one taken in before."""
        for event in events:
            self.take(event)
            yield event

    def take(self, event: Event) -> None:
        """Take an event in; one that is not as expected is counted, and does no harm."""
        self.event_count += 1
        try:
            at = self.clock.pass_to(event)
            self._take_figures(event, at)
            self._take_happening(event, at)
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
            self.odd_count += 1

    @property
    def standing(self) -> Standing:
        """How far the run is now."""
        spent = self.clock.spent["training"]
        return Standing(self.clock.alive_seconds, spent, self._step + self.repeated_steps)

    def _take_figures(self, event: Event, at: float | None) -> None:
        kind = event["event"]
        if kind in KEPT:
            self.last[kind] = event
        if kind == "config_changed":
            self.has_another_length |= not OF_ITS_LENGTH.isdisjoint(event["changes"])
        if kind == "planned":
            self.at_plan, self.rates_of_plan = self.standing, Middle()
        if kind == "session_started":
            self._go_on_after(number_of(event["step"]))
            self.effective_batch = number_of(event.get("effective_batch", 0.0))
            train_images = number_of(event.get("train_images", 0.0))
            self.epochs_per_step = self.effective_batch / train_images if train_images else None
        if kind in BY_STEP:
            step = number_of(event["step"])
            self._step = max(self._step, step)
            for name in BY_STEP[kind]:
                if event.get(name) is not None:
                    self.by_step[name].add(step, number_of(event[name]), at)
        self._take_machine(event, at)
        if kind in TAKES_OUT:
            self.clock.take_out(event, number_of(event.get("seconds", 0.0)))
        if "stalled_seconds" in event:
            self.clock.take_stalled(number_of(event["stalled_seconds"]))

    def _take_machine(self, event: Event, at: float | None) -> None:
        names = [name for name in BY_TIME.get(event["event"], ()) if event.get(name) is not None]
        figures = {name: number_of(event[name]) for name in names}
        for name, number in figures.items():
            self.by_time[name].add(self.clock.alive_seconds, number, at)
        if "images_per_second" in figures:
            for middle in (self.rates, self.rates_of_plan):
                middle.add(figures["images_per_second"])
        if figures.get("cap_bytes"):
            held = max(figures.get(name, 0.0) for name in ("tree_bytes", "peak_tree_bytes"))
            self._hold_against_cap(held, figures["cap_bytes"])

    def _hold_against_cap(self, held: float, cap_bytes: float) -> None:
        before, now = self.nearest_to_cap, NearestToCap(held / cap_bytes, cap_bytes, True)
        if before is not None:
            is_the_only = before.was_the_only_cap and before.cap_bytes == cap_bytes
            now = max(before, now)._replace(was_the_only_cap=is_the_only)
        self.nearest_to_cap = now

    def _go_on_after(self, step: float) -> None:
        self.last.pop("test", None)
        self.repeated_steps += int(max(0.0, self._step - step))
        self._step = step
        for series in self.by_step.values():
            series.forget_after(step)

    def _take_happening(self, event: Event, at: float | None) -> None:
        told = tell(event)
        if told is None or told.kind == "figure":
            return
        self.happenings.append(Happening(at, *told))
        self.counts[told.kind] += 1
        if event["event"] in CHANGES:
            self.marks.append(Mark(self.clock.alive_seconds, told.kind, told.text))


def number_of(value: object) -> float:
    """Return a number of an event, if it can be drawn.

    Raises:
        TypeError: it is none.
        ValueError: it is not finite, or larger than anything here.
    """
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    number = float(value)
    if not math.isfinite(number) or abs(number) > LARGEST_NUMBER:
        raise ValueError(f"{number} is no figure")
    return number
