"""What a session tells of itself: events for the run folder, and the same for the screen."""

from __future__ import annotations

from typing import Any

from lowmem_seq.channel import Channel
from lowmem_seq.runs.clocks import awake_seconds
from lowmem_seq.runs.events import EventLog
from lowmem_seq.training.state import Counters
from lowmem_seq.training.tracking import Tracking

SECONDS_A_PROGRESS_MESSAGE = 0.5


class Journal:
    """Records events, and keeps the clocks that their rates and times come from.

    Images/s are of training alone: the time of evaluations and saves is taken out by `pause_ended`.
    """

    def __init__(self, events: EventLog, channel: Channel, batch: int, train_images: int) -> None:
        self._events, self._channel = events, channel
        self._batch, self._train_images = batch, train_images
        self._began = self._shown_at = self._rate_since = awake_seconds()
        self._rate_step = self._rate_images = 0
        self._wall_before = 0.0
        self._tracking: Tracking | None = None

    def take_up(self, counters: Counters) -> None:
        """Count on from a checkpoint."""
        self._wall_before = counters.wall_seconds
        self._rate_step, self._rate_images = counters.step, counters.images

    def figures_are_due(self, step: int, every: int, total: int) -> bool:
        """Whether a line of figures is due after `step` of `total` steps, once in `every` steps."""
        return step > self._rate_step and (step // every > self._rate_step // every or step >= total)

    def wall_seconds(self) -> float:
        """Time in the trainer, over all sessions."""
        return self._wall_before + awake_seconds() - self._began

    def epoch(self, step: int) -> float:
        """Epochs of training images that `step` steps have seen."""
        return step * self._batch / self._train_images

    def record(self, event: str, **details: Any) -> None:
        """Append an event to the run folder, and tell the screen, and a tracker where there is one."""
        entry = self._events.append(event, **details)
        self._channel.say(entry)
        if self._tracking is not None:
            self._tracking.take(entry)

    def track(self, tracking: Tracking, step: int) -> None:
        """Have a tracker told of what is recorded from here on, after `step` steps."""
        self._tracking = tracking
        tracking.start(step)

    def end_tracking(self) -> None:
        """Let the tracker write its last, if there is one."""
        if self._tracking is not None:
            self._tracking.end()

    def record_training(self, counters: Counters, rate: float) -> None:
        """Record the mean training loss since the last record, and start a new mean."""
        now = awake_seconds()
        images, seconds = counters.images - self._rate_images, now - self._rate_since
        self.record(
            "train",
            step=counters.step,
            epoch=self.epoch(counters.step),
            images_seen=counters.step * self._batch,
            train_loss=counters.mean_loss,
            learning_rate=rate,
            images_per_second=images / max(1e-9, seconds),
            seconds=seconds,
            wall_seconds=self.wall_seconds(),
        )
        counters.loss_sum, counters.loss_images = 0.0, 0
        self._rate_since, self._rate_step, self._rate_images = now, counters.step, counters.images

    def show_progress(self, counters: Counters) -> None:
        """Tell the screen where the run stands, twice a second at the most; nothing is recorded."""
        now = awake_seconds()
        if now - self._shown_at >= SECONDS_A_PROGRESS_MESSAGE:
            self._shown_at = now
            self._channel.say(
                {
                    "event": "progress",
                    "step": counters.step,
                    "epoch": self.epoch(counters.step),
                    "train_loss": counters.mean_loss,
                }
            )

    def show_evaluation(self, images: int) -> None:
        """Tell the screen that an evaluation has begun."""
        self._channel.say({"event": "evaluating", "images": images})

    def pause_ended(self, seconds: float) -> None:
        """Take the time of an evaluation or a save out of the rate of training."""
        self._rate_since += seconds
