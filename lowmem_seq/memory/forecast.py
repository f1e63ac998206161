"""How long a planned run will take, and what it needs on the disk, from what the probe measured."""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_seq.config import RunConfig
from lowmem_seq.memory.footprint import OPTIMIZER_COPIES, Facts
from lowmem_seq.memory.plan import Plan
from lowmem_seq.memory.remembered import Knowledge

LEAST_SPREAD = 0.05
"""Share by which speed is taken to vary at the least: what else the machine does is never the same."""
HEADER_BYTES = 10**6
"""What headers, counters and the manifest of a checkpoint take at the most."""
MOST_SAVING_SHARE = 0.01
"""What saving takes of the time where its interval is `auto`."""


@dataclass(frozen=True)
class Forecast:
    """What is to be expected of a run."""

    total_steps: int
    epochs: float
    images_per_second: float
    """While training, evaluations and saves apart."""
    slowest_images_per_second: float
    """Of the measurements of the chosen setting, or so much slower as speed varies at the least."""
    measurement_count: int
    """How many measurements the range comes from."""
    training_seconds: float
    evaluation_seconds: float
    saving_seconds: float
    most_seconds: float
    """All of it at the slowest."""
    checkpoint_count: int
    """Those that lie side by side at the most, with the one that is being written."""
    checkpoint_bytes: int
    disk_bytes: int
    """What they need together, with the final weights."""

    @property
    def seconds(self) -> float:
        """Training, evaluations and saves at the expected speed."""
        return self.training_seconds + self.evaluation_seconds + self.saving_seconds


def make_forecast(config: RunConfig, plan: Plan, known: Knowledge) -> Forecast:
    """Return what is to be expected of a run under a plan."""
    facts = known.facts
    assert facts is not None
    steps = config.total_steps(facts.train_images)
    images = steps * config.recipe.effective_batch
    rates = [point.images_per_second for point in plan.measured if point.setting == plan.chosen]
    rate = plan.predicted_images_per_second
    slowest = min([*rates, (1 - LEAST_SPREAD) * rate])
    training_seconds = images / rate
    evaluation_seconds = _evaluated_images(config, facts, images) / max(known.evaluated_images_per_second, rate)
    saving_seconds = _saves(config, steps, training_seconds, known.save_seconds) * known.save_seconds
    checkpoint_bytes = facts.weights_bytes * (1 + OPTIMIZER_COPIES) + facts.average_bytes + HEADER_BYTES
    count = config.checkpoint.keep + config.checkpoint.keep_best + 1 + _kept_for_good(config, steps)
    return Forecast(
        total_steps=steps,
        epochs=images / facts.train_images,
        images_per_second=rate,
        slowest_images_per_second=slowest,
        measurement_count=len(rates),
        training_seconds=training_seconds,
        evaluation_seconds=evaluation_seconds,
        saving_seconds=saving_seconds,
        most_seconds=(training_seconds + evaluation_seconds) * rate / slowest + saving_seconds,
        checkpoint_count=count,
        checkpoint_bytes=checkpoint_bytes,
        disk_bytes=count * checkpoint_bytes + facts.weights_bytes,
    )


def _evaluated_images(config: RunConfig, facts: Facts, images: int) -> int:
    """Return how many images are evaluated: the validation part every so many epochs, the test once."""
    every = config.recipe.evaluate_every_epochs * facts.train_images
    in_time, before_the_last_step = images // every, (images - config.recipe.effective_batch) // every
    times = in_time + (in_time == before_the_last_step)  # one more at the end, if none is due there
    return times * facts.validation_images + facts.test_images


def _saves(config: RunConfig, steps: int, training_seconds: float, save_seconds: float) -> float:
    """Return how often a run is saved, the end included."""
    interval = config.checkpoint.interval
    if interval.kind == "steps":
        return steps / interval.amount + 1
    if interval.kind == "seconds":
        return training_seconds / interval.amount + 1
    return MOST_SAVING_SHARE * training_seconds / save_seconds + 1 if save_seconds else 1


def _kept_for_good(config: RunConfig, steps: int) -> int:
    every = config.checkpoint.keep_every_steps
    return 0 if every is None else steps // every
