"""A run's events as a machine would write them whose speed is known at every moment, and so the time that is left.

The simulated trainer does what training/loop.py does, in its order: it evaluates where an epoch ends, saves by its
interval, loses what was not saved when it is killed. Its clock counts active time: what a pause, a sleep or a
restart takes passes on the calendar alone.
"""

from __future__ import annotations

import copy
import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from lowmem_seq.config import RunConfig, lay, load_preset, validate
from lowmem_seq.runs.events import Event

START_UNIX_SECONDS = 1_800_000_000.0
STEPS_A_TRAIN_EVENT = 20
BATCHES = 20
"""That an evaluation is made of, each of which takes its own time."""
HICCUP = 10.0
"""How many times as long a step takes in which the machine did something else."""
IMAGE_OF_AN_EVALUATION = 0.45
"""What an image costs that is only looked at, in images that are trained on."""


@dataclass(frozen=True)
class Story:
    """A run, the machine that it is on, and what happens to it. Times are of active seconds from the start."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    """Of the run, laid over the preset `small`."""
    epochs: int = 36
    train_images: int = 45_000
    validation_images: int = 5_000
    test_images: int = 10_000
    step_seconds: float = 0.25
    save_seconds: float = 0.4
    steps_a_train_event: int = STEPS_A_TRAIN_EVENT
    noise: float = 0.1
    """Deviation of the logarithm of a step's time."""
    hiccups: float = 0.0
    """Share of the steps in which the machine did something else."""
    factors: tuple[tuple[float, float], ...] = ()
    """From when on steps and evaluations take how many times as long: throttling."""
    kills: tuple[float, ...] = ()
    """When the trainer is killed; another one goes on from the newest checkpoint."""
    pauses: tuple[tuple[float, float], ...] = ()
    """When nothing is computed, and for how many seconds of the calendar: sleep, or a full disk."""

    @property
    def config(self) -> RunConfig:
        """The run's settings."""
        settings = load_preset("small")
        lay(settings, "recipe.epochs", self.epochs)
        for key, value in self.settings:
            lay(settings, key, value)
        return validate(settings)

    def calm(self, factor: float) -> Story:
        """Return the same run where each step takes what this one's take on average, with one factor to the end."""
        on_average = math.exp(self.noise**2 / 2) * (1 + self.hiccups * (HICCUP - 1))
        return replace(self, noise=0.0, hiccups=0.0, factors=((0.0, factor * on_average),), kills=(), pauses=())


@dataclass
class Trainer:
    """How far a simulated run is."""

    story: Story
    draws: random.Random = field(default_factory=lambda: random.Random(0))
    step: int = 0
    validated_step: int = 0
    saved_step: int = 0
    saved_at: float = 0.0
    active_seconds: float = 0.0
    other_seconds: float = 0.0
    """That passed on the calendar alone."""
    span_began_step: int = 0
    span_seconds: float = 0.0
    kills: int = 0
    pauses: int = 0

    def __post_init__(self) -> None:
        config = self.story.config
        self.batch, self.every_epochs = config.recipe.effective_batch, config.recipe.evaluate_every_epochs
        self.interval = config.checkpoint.interval
        self.total_steps = config.total_steps(self.story.train_images)

    @property
    def factor(self) -> float:
        """How many times as long things take at present."""
        return next((factor for at, factor in reversed(self.story.factors) if at <= self.active_seconds), 1.0)

    def seconds_left(self) -> float:
        """Return the active time from here to the end if the present speed lasts: it is spent, on a copy."""
        other = copy.copy(self)
        other.story = self.story.calm(self.factor)
        for _ in other.go():
            pass
        return other.active_seconds - self.active_seconds

    def start(self) -> Event:
        """Return the event of a session that begins where the run stands."""
        story = self.story
        return self._event(
            "session_started",
            step=self.step,
            total_steps=self.total_steps,
            epochs=float(story.epochs),
            parameters=7_600_000,
            train_images=story.train_images,
            validation_images=story.validation_images,
            test_images=story.test_images,
            classes=["a", "b"],
            effective_batch=self.batch,
        )

    def go(self) -> Iterator[Event]:
        """Train to the end; yield the events after the first `session_started`, each at its time."""
        story = self.story
        while True:
            if self._validation_is_due():
                yield self._evaluated("validation", story.validation_images, val_loss=1.0, val_accuracy=0.5)
                self.validated_step = self.step
            if self.step >= self.total_steps:
                break
            if self._save_is_due():
                yield self._saved()
            if self.kills < len(story.kills) and self.active_seconds >= story.kills[self.kills]:
                yield from self._killed()
            if self.pauses < len(story.pauses) and self.active_seconds >= story.pauses[self.pauses][0]:
                yield from self._paused()
            self._train_step()
            if self.step % story.steps_a_train_event == 0 or self.step >= self.total_steps:
                yield self._figures()
        yield self._saved()
        self.active_seconds += story.save_seconds / 3  # the final weights
        yield self._evaluated("test", story.test_images, test_loss=1.0, test_accuracy=0.5)
        yield self._event("session_ended", state="finished", step=self.step, wall_seconds=self.active_seconds)

    def _event(self, kind: str, **details: Any) -> Event:
        at = START_UNIX_SECONDS + self.active_seconds + self.other_seconds
        return {"time_unix_seconds": round(at, 3), "event": kind, **details}

    def _epoch(self, step: int) -> float:
        return step * self.batch / self.story.train_images

    def _validation_is_due(self) -> bool:
        if self.step <= self.validated_step:
            return False
        before, now = (int(self._epoch(step)) // self.every_epochs for step in (self.validated_step, self.step))
        return now > before or self.step >= self.total_steps

    def _evaluated(self, kind: str, images: int, **figures: float) -> Event:
        cost = IMAGE_OF_AN_EVALUATION * self.story.step_seconds / self.batch
        seconds = images * cost * self.factor * statistics.fmean(self._noise() for _ in range(BATCHES))
        self.active_seconds += seconds
        return self._event(kind, step=self.step, epoch=self._epoch(self.step), seconds=seconds, **figures)

    def _save_is_due(self) -> bool:
        if self.interval.kind == "steps":
            return self.step > self.saved_step and self.step % int(self.interval.amount) == 0
        return self.active_seconds - self.saved_at >= self.interval.amount

    def _saved(self) -> Event:
        seconds = self.story.save_seconds
        self.active_seconds += seconds
        self.saved_step, self.saved_at = self.step, self.active_seconds
        return self._event("checkpoint", step=self.step, path=f"step-{self.step:08d}", seconds=seconds)

    def _killed(self) -> Iterator[Event]:
        self.kills += 1
        cause = "the trainer was ended by SIGKILL"
        yield self._event("session_ended", state="crashed", cause=cause)
        yield self._event("trainer_restarted", cause=cause, deaths_in_a_row=1, max_restarts=10, wait_seconds=1.0)
        self.other_seconds += 6.0
        self.step = self.span_began_step = self.saved_step
        self.validated_step, self.span_seconds = min(self.validated_step, self.step), 0.0
        yield self.start()

    def _paused(self) -> Iterator[Event]:
        seconds = self.story.pauses[self.pauses][1]
        self.pauses += 1
        yield self._event("paused", what="the checkpoint", cause="No space left on device")
        self.other_seconds += seconds
        yield self._event("unpaused", what="the checkpoint", seconds=seconds)

    def _train_step(self) -> None:
        story = self.story
        seconds = story.step_seconds * self.factor * self._noise()
        if story.hiccups and self.draws.random() < story.hiccups:
            seconds *= HICCUP
        self.step += 1
        self.active_seconds += seconds
        self.span_seconds += seconds

    def _noise(self) -> float:
        return math.exp(self.draws.gauss(0.0, self.story.noise)) if self.story.noise else 1.0

    def _figures(self) -> Event:
        steps, self.span_began_step = self.step - self.span_began_step, self.step
        seconds, self.span_seconds = self.span_seconds, 0.0
        return self._event(
            "train",
            step=self.step,
            epoch=self._epoch(self.step),
            images_seen=self.step * self.batch,
            train_loss=2.0 * math.exp(-3 * self.step / self.total_steps),
            learning_rate=0.001,
            images_per_second=steps * self.batch / seconds,
            seconds=seconds,
            wall_seconds=self.active_seconds,
        )


STORIES = (
    Story("undisturbed"),
    Story("ten minutes, saved every 20 steps", (("checkpoint.every", "20steps"),), epochs=6, train_images=50_000),
    Story("a busy machine: every hundredth step takes ten times as long", noise=0.2, hiccups=0.01),
    Story(
        "killed three times, and paused for eight hours",
        kills=(400.0, 900.0, 1900.0),
        pauses=((1300.0, 8 * 3600.0),),
    ),
    Story(
        "throttled to a third, then to half, then as at first", factors=((700.0, 3.0), (2600.0, 2.0), (4500.0, 1.0))
    ),
    Story(
        "throttled to a half, killed and paused meanwhile",
        noise=0.2,
        hiccups=0.005,
        factors=((1000.0, 2.0), (3000.0, 1.0)),
        kills=(1500.0, 3100.0),
        pauses=((1700.0, 1800.0), (2900.0, 30_000.0)),
    ),
    Story(
        "224x224: half a minute a step, evaluated every fifth epoch, throttled to two thirds",
        (("data.image_size", 224), ("recipe.evaluate_every_epochs", 5)),
        train_images=1800,
        validation_images=200,
        test_images=400,
        epochs=90,
        step_seconds=30.0,
        save_seconds=5.0,
        noise=0.05,
        steps_a_train_event=2,
        factors=((15_000.0, 1.5),),
        kills=(20_000.0,),
    ),
)
"""What the time left is tried on."""
