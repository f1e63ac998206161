"""How long a run has still to train, told from its events.

It is the active time that remains at the present speed: the steps that are left, the evaluations that are left (the
validation part so many times more, the test part once), and the saves. Pauses, sleep and the time that a restart
takes are not in it. An evaluation is counted in steps, by what the last ones took: what slows training down slows
them down as well. A save waits for the disk, and is counted in seconds.
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import NamedTuple

from lowmem_seq.config import RunConfig
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.save_interval import seconds_between_saves

SPAN_SECONDS = 5.0
"""Steps are counted together until they took so long: few spans tell as much as many."""
LONGEST_SECONDS = 900.0
"""Of training, that the present speed is told from at the most, to even out what else the machine does."""
RECENT_SECONDS = 180.0
"""Of it, that show whether the speed has changed: then they alone count, well within five minutes."""
CHECK_SECONDS = 30.0
"""Of training, after which it is seen again whether it has: days of events are read in a second."""
FEWEST_SPANS = 3
"""That are recent, however long each of them takes."""
CHANGED = 0.07
"""Share by which the middle one of the recent spans differs where the speed has changed. Single long steps
leave it where it is; they count, for there will be more of them."""
LARGEST_FACTOR = 3.0
"""A span counts as at most so many times the middle one: the machine stood still for a moment."""
RECENT_COUNT = 5
"""Evaluations and saves whose middle one is what the next will take."""
EVALUATED_IMAGE = 0.45
"""What an evaluated image takes of a trained one, until the first evaluation has shown it."""
FINAL_WEIGHTS = 1 / 3
"""What writing the final weights takes of a save, which has the optimizer's two copies as well."""
DECIDES_ABOUT_SPEED = ("device", "precision", "threads", "workers", "micro_batch", "recomputed_layers", "lstm_path")


class _Span(NamedTuple):
    """Steps that were done one after the other."""

    steps: int
    seconds: float


class TimeLeft:
    """Takes in a run's events, from its first session on or from a later one, and tells what remains.

    Args:
        config: of the run: how often it is evaluated, and saved.
    """

    def __init__(self, config: RunConfig) -> None:
        self._every_epochs = config.recipe.evaluate_every_epochs
        self._saves = config.checkpoint.interval
        self._started: Event | None = None
        self._planned_rate: float | None = None
        self._step = self._counted_step = self._validated_step = 0
        self._validates, self._tested = True, False
        self._spans: list[_Span] = []
        self._unchecked_seconds = 0.0
        self._steps_an_image: deque[float] = deque(maxlen=RECENT_COUNT)
        self._save_seconds: deque[float] = deque(maxlen=RECENT_COUNT)

    def take(self, event: Event) -> None:
        """Take in the next event; `progress`, which a trainer tells its screen alone, is as good."""
        kind = event["event"]
        if kind == "planned":
            self._planned_rate = event.get("predicted_images_per_second")
        elif kind == "session_started":
            self._begin(event)
        elif kind == "progress":
            self._step = int(event["step"])
        elif kind == "train":
            self._take_span(event)
        elif kind in ("validation", "test"):
            self._take_evaluation(event)
        elif kind == "checkpoint":
            self._save_seconds.append(float(event.get("seconds", 0.0)))
        elif kind in ("session_opened", "member_welcome"):  # among several machines the host validates for all
            self._validates = kind == "session_opened"

    def seconds(self) -> float | None:
        """Return the active time that remains, an estimate; None before there is anything to tell it from."""
        step_seconds = self._step_seconds()
        if self._started is None or step_seconds is None:
            return None
        if self._tested:
            return 0.0
        steps = max(0, self._count("total_steps") - self._step)
        computing = step_seconds * (steps + self._evaluations_in_steps())
        saving = self._saves_left(computing) * _middle(self._save_seconds, 0.0)
        return float(computing + saving)

    # What the events tell.

    def _begin(self, started: Event) -> None:
        before, self._started = self._started, started
        self._step = self._counted_step = int(started["step"])
        self._validated_step = min(self._validated_step or self._step, self._step)
        self._tested = False
        if before is not None and any(before.get(key) != started.get(key) for key in DECIDES_ABOUT_SPEED):
            self._spans.clear()

    def _take_span(self, event: Event) -> None:
        """Take in the steps since the last `train` event, and what they took without evaluations and saves."""
        self._step = int(event["step"])
        steps, self._counted_step = self._step - self._counted_step, self._step
        if self._started is None or steps <= 0:
            return
        if "seconds" in event:
            seconds = float(event["seconds"])
        else:  # of a release before; where several machines work on a run, it knew of its own images only
            seconds = steps * self._batch / float(event["images_per_second"])
        self._unchecked_seconds += seconds
        if self._spans and self._spans[-1].seconds < SPAN_SECONDS:
            last = self._spans.pop()
            steps, seconds = last.steps + steps, last.seconds + seconds
        self._spans.append(_Span(steps, seconds))
        if self._unchecked_seconds >= CHECK_SECONDS:
            self._unchecked_seconds = 0.0
            self._spans = _of_the_present_speed(self._spans)

    def _take_evaluation(self, event: Event) -> None:
        if event["event"] == "test":
            self._tested = True
            return
        self._step = self._validated_step = int(event["step"])
        step_seconds, images = self._step_seconds(), self._count("validation_images")
        if step_seconds and images and "seconds" in event:
            self._steps_an_image.append(float(event["seconds"]) / step_seconds / images)

    # What follows from them.

    @property
    def _batch(self) -> int:
        return self._count("effective_batch")

    def _count(self, key: str) -> int:
        """Return what the session's start tells to be so many, or 0 where it doesn't."""
        return 0 if self._started is None else int(self._started.get(key) or 0)

    def _step_seconds(self) -> float | None:
        """Return what a step takes at present; before the first is known, what the plan says."""
        if not self._spans:
            return self._batch / self._planned_rate if self._batch and self._planned_rate else None
        longest = LARGEST_FACTOR * _middle_step(self._spans)
        total_seconds = sum(min(span.seconds, longest * span.steps) for span in self._spans)
        return total_seconds / sum(span.steps for span in self._spans)

    def _evaluations_in_steps(self) -> float:
        images = self._validations_left() * self._count("validation_images") + self._count("test_images")
        return images * _middle(self._steps_an_image, EVALUATED_IMAGE / max(1, self._batch))

    def _validations_left(self) -> int:
        """Return how often the validation part is still looked at: see `validation_is_due` of training/loop.py."""
        total, train_images = self._count("total_steps"), self._count("train_images")
        if not self._validates or not train_images or self._validated_step >= total:
            return 0

        def due(step: int) -> int:
            return int(step * self._batch / train_images) // self._every_epochs

        one_at_the_end = due(total) == due(total - 1)  # none falls on the last step by itself
        return due(total) - due(self._validated_step) + one_at_the_end

    def _saves_left(self, computing_seconds: float) -> float:
        """Return how often the run is still saved, the end and the final weights included."""
        at_the_end = 1 + FINAL_WEIGHTS
        if self._saves.kind == "steps":
            every, last = int(self._saves.amount), self._count("total_steps") - 1
            return max(0, last // every - self._step // every) + at_the_end
        between = self._saves.amount
        if self._saves.kind == "auto":
            between = seconds_between_saves(_middle(self._save_seconds, 0.0))
        return computing_seconds / between + at_the_end


def _of_the_present_speed(spans: list[_Span]) -> list[_Span]:
    """Return the spans that tell the present speed: the recent ones, and those before if they were as fast."""
    first_recent = max(0, min(_first_within(spans, RECENT_SECONDS), len(spans) - FEWEST_SPANS))
    before, recent = spans[:first_recent], spans[first_recent:]
    if before and abs(_middle_step(recent) / _middle_step(before) - 1) > CHANGED:
        return recent
    return spans[min(_first_within(spans, LONGEST_SECONDS), first_recent) :]


def _first_within(spans: list[_Span], seconds: float) -> int:
    """Return the index of the first span of those last ones that took so long together."""
    for index in range(len(spans) - 1, -1, -1):
        seconds -= spans[index].seconds
        if seconds <= 0:
            return index
    return 0


def _middle_step(spans: list[_Span]) -> float:
    return statistics.median(span.seconds / span.steps for span in spans)


def _middle(values: deque[float], otherwise: float) -> float:
    return statistics.median(values) if values else otherwise
