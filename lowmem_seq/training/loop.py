"""The recipe: how a run gets from one optimizer step to the next.

A step is a function of the config, the seed, the data, the weights and optimizer state before it, its number, and
the plan; nothing else is carried. So a run that was stopped anywhere goes on as if it had not been.
"""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from msgspec import structs
from torch import Tensor

from lowmem_seq.channel import Channel
from lowmem_seq.checkpoint.codec import write_tensors
from lowmem_seq.config import AugmentationConfig, RunConfig
from lowmem_seq.data.batches import TrainingBatches, evaluation_batches
from lowmem_seq.data.catalogue import CATALOGUE
from lowmem_seq.data.pack import Pack
from lowmem_seq.data.parts import Part, Parts
from lowmem_seq.errors import UsageError
from lowmem_seq.files import needing, placing
from lowmem_seq.memory.governor import Governor
from lowmem_seq.memory.plan import Plan
from lowmem_seq.memory.space import SMALL_IMAGE
from lowmem_seq.models import parameter_count
from lowmem_seq.runs.clocks import awake_seconds
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.runs.trackers import NO_TRACKER
from lowmem_seq.training.evaluation import Evaluation, Observer, count
from lowmem_seq.training.initial import InitialWeights
from lowmem_seq.training.journal import Journal
from lowmem_seq.training.noise import draw_noise
from lowmem_seq.training.predictions import writing_predictions
from lowmem_seq.training.ranks import OneProcess, Ranks
from lowmem_seq.training.saver import Saver
from lowmem_seq.training.schedule import learning_rate
from lowmem_seq.training.setting import SettingInForce
from lowmem_seq.training.source import Source, WholeOrder
from lowmem_seq.training.state import TrainingState, final_metadata, weights_sha256
from lowmem_seq.training.tracking import Tracking
from lowmem_seq.training.workers import Range, Worker, Workers

STEPS_A_TRAIN_EVENT, OF_LARGE_IMAGES = 20, 2
"""Optimizer steps from one line of figures to the next: at 224x224 a step takes half a minute on a laptop."""


class Training:
    """One session of one run: what the steps work on, and where they report to."""

    def __init__(
        self,
        run: RunFolder,
        config: RunConfig,
        plan: Plan,
        pack: Pack,
        parts: Parts,
        state: TrainingState,
        accelerator: Accelerator,
        channel: Channel,
        governor: Governor,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or OneProcess()
        self.run, self.config, self.pack, self.parts = run, config, pack, parts
        self.state, self.accelerator, self.channel = state, accelerator, channel
        self.batch = self.samples = config.recipe.effective_batch
        self.workers = Workers(state.model, self.make_batches, plan.workers)
        self.set_length(config.total_steps(parts.train.size))
        self.steps_a_train_event = STEPS_A_TRAIN_EVENT if config.data.image_size <= SMALL_IMAGE else OF_LARGE_IMAGES
        self.journal = Journal(run.events, channel, self.batch, parts.train.size)
        self.source: Source = WholeOrder(lambda: state.counters, self.batch, self.total_steps)
        identity = {"experiment_sha256": config.experiment_hash(), "data_fingerprint": pack.fingerprint}
        self.saver = Saver(
            run,
            config.checkpoint,
            state,
            lambda: self.source,
            identity,
            self.journal,
            lambda: channel.stop_requested,
            keeps=self.ranks.is_first,
        )
        self.initial: InitialWeights | None = None
        """What it begins with, if that is not what the seed draws."""
        self.setting = SettingInForce(run, plan, self.workers, governor, self.journal, self.saver.patience)

    @property
    def plan(self) -> Plan:
        """How steps are computed at present."""
        return self.setting.plan

    def go(self, kept_by: str | None = None) -> bool:
        """Train to the end and test; return whether the end was reached (and not a stop on request).

        Args:
            kept_by: what of the system enforces the cap on this process, if anything does.
        """
        self.begin(kept_by)
        reached = self.train()
        self.source.end(reached)
        self.saver.save()
        return reached and self.test()

    def train(self) -> bool:
        """Do the steps that are left, each with what is due after it; return False if a stop was asked for."""
        counters = self.state.counters
        while True:
            self.source.before_step()
            best = False
            if self.source.validates and self.validation_is_due(counters.step):
                result = self.validate()
                if result is None:
                    return False
                best = counters.count_validation(result.loss, result.accuracy)
            if self.source.is_over:
                return True
            if self.saver.is_due(best):
                self.saver.save()
            if not self.train_step():
                return False
            if self.journal.figures_are_due(counters.step, self.steps_a_train_event, self.total_steps):
                self.journal.record_training(counters, self.rate(counters.step - 1))

    def train_step(self) -> bool:
        """Do one optimizer step, unless others do the rest; False, as before it, if a stop was asked for."""
        ranges = self.source.take(self.batch)
        if not ranges:
            return not self.channel.stop_requested
        began = awake_seconds()
        counters, recipe = self.state.counters, self.config.recipe
        self.samples = sum(end - start for start, end in ranges)
        loss = self.ranks.agree(self.compute(self.ranks.part_of_step(ranges)), self.state.parameters)
        if loss is None:
            return False
        self.ranks.add_up_gradients(list(self.state.parameters.values()))
        self.finite(loss, "loss")
        self.finite(self.state.optimizer.clip_gradients(recipe.clip_norm, self.ranks.first_s), "gradient's norm")
        with self.state.updating():
            self.state.optimizer.step(self.rate(max(counters.step, ranges[0][0] // self.batch)))
            if self.state.average is not None:
                self.state.average.update(counters.step)
            self.source.trained(ranges, awake_seconds() - began)
            counters.count_step(loss, self.samples, self.step_reached())
        self.setting.step_ended(self.total_steps - counters.step)
        self.journal.show_progress(counters)
        return True

    def compute(self, ranges: list[Range]) -> float | None:
        """Leave the gradients of a step's positions, and return their loss; None if a stop was asked for."""
        self.setting.change(self.state.counters.step)
        while (losses := self.workers.run(self.micro_batches(ranges), self.forward_and_backward)) is None:
            if self.channel.stop_requested:
                return None
            self.setting.change(self.state.counters.step)  # and begin the step anew
        return float(torch.stack(losses).sum()) if losses else 0.0

    def step_reached(self) -> int | None:
        """Return how far the run is after a step, where others do some as well; the last one is the end's alone."""
        if isinstance(self.source, WholeOrder):
            return None
        return min(self.source.samples_done // self.batch, self.total_steps - 1)

    def set_length(self, steps: int) -> None:
        """Let the run have so many steps."""
        self.total_steps = steps
        self.mixing_ends = round(steps * (1 - self.config.augmentation.mixing_off_fraction))

    def micro_batches(self, ranges: list[Range]) -> list[Range]:
        """Return the ranges of global positions that a step is computed in."""
        size = self.plan.micro_batch
        return [(start, min(start + size, end)) for first, end in ranges for start in range(first, end, size)]

    def forward_and_backward(self, worker: Worker, positions: Range) -> Tensor | None:
        """Add the gradients of a range of samples; return their share of the step's mean loss, ().

        Each sample weighs 1 / samples of the step, so the cut into micro-batches changes nothing but rounding. None
        if a stop was asked for, or memory is short.
        """
        if self.channel.stop_requested or self.setting.asks_to_stop():
            return None
        batch = worker.batches.read(*positions, mixing=positions[0] < self.mixing_ends * self.batch)
        device = self.accelerator.device
        noise = draw_noise(worker.model, self.config.seed, batch.epochs, batch.samples, device)
        with self.accelerator.autocast():
            logits = worker.model(batch.images.to(device), noise)  # (B, K)
        loss = -(batch.targets.to(device) * logits.float().log_softmax(1)).sum() / self.samples
        self.accelerator.backward(loss)
        detached: Tensor = loss.detach()
        return detached

    def finite(self, value: float, what: str) -> float:
        """Return a value of the present step, if it is finite.

        Raises:
            UsageError: it isn't; the weights are still those before the step.
        """
        if not math.isfinite(value):
            rate = self.config.recipe.peak_learning_rate
            raise UsageError(
                f"the training diverged: the {what} of step {self.state.counters.step + 1} is {value}.",
                f"start again with a lower learning rate: --set recipe.peak_learning_rate={rate / 2:g}",
            )
        return value

    def make_batches(self) -> TrainingBatches:
        """Return the training part's batches, with buffers of their own."""
        described = self.pack.description
        return TrainingBatches(
            self.parts.train,
            len(self.parts.classes),
            described.mean,
            described.deviation,
            self.config.seed,
            mirrored_where_it_makes_sense(self.config.augmentation, self.pack),
            self.config.recipe.label_smoothing,
        )

    def rate(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        return learning_rate(self.config.recipe, step, self.total_steps)

    def validation_is_due(self, step: int) -> bool:
        """Whether the weights after `step` steps are to be looked at, and were not yet."""
        validated, every = self.state.counters.validated_step, self.config.recipe.evaluate_every_epochs
        if step <= validated:
            return False
        before, now = (int(self.journal.epoch(count)) // every for count in (validated, step))
        return now > before or step >= self.total_steps

    def validate(self) -> Evaluation | None:
        """Evaluate on the part that choices are made by; None if a stop was asked for."""
        result, seconds = self.evaluate_part(self.parts.validation)
        if result is None:
            return None
        step = self.state.counters.step
        self.journal.record(
            "validation",
            step=step,
            epoch=self.journal.epoch(step),
            val_loss=result.loss,
            val_accuracy=result.accuracy,
            seconds=seconds,
        )
        return result

    def test(self) -> bool:
        """Write the final weights, and read the test part, once; return False if a stop was asked for."""
        digest = self.saver.patience.run("the final weights", self.write_final_weights)
        result, seconds = self.saver.patience.run("the predictions", lambda: self.predict_test(digest))
        if result is None:
            return False
        step = self.state.counters.step
        self.journal.record(
            "test",
            step=step,
            epoch=self.journal.epoch(step),
            test_loss=result.loss,
            test_accuracy=result.accuracy,
            class_accuracies=result.class_accuracies,
            confusion=result.confusion,
            weights_sha256=digest,
            seconds=seconds,
            wall_seconds=self.journal.wall_seconds(),
        )
        return True

    def predict_test(self, weights_sha256: str) -> tuple[Evaluation | None, float]:
        """Return the figures of the test part, and leave what was predicted for reports; see `evaluate_part`.

        Among several ranks the first one does all of it, for it keeps what is said of each picture.
        """
        test, classes = self.parts.test, self.parts.classes
        if not self.ranks.is_first:
            return self.evaluate_part(test.cut(0, 0), shared=False)
        with (
            needing(self.run.path, "the run folder"),
            writing_predictions(self.run.predictions_file, test, classes, weights_sha256) as predictions,
        ):
            return self.evaluate_part(test, predictions.add, shared=False)

    def evaluate_part(
        self, part: Part, observe: Observer | None = None, shared: bool = True
    ) -> tuple[Evaluation | None, float]:
        """Return the figures of the averaged weights on a part (None: stopped), and the seconds that it took.

        Args:
            part: the images.
            observe: is told what the model says of each batch.
            shared: whether several ranks share it out; else each says what its own part is.
        """
        began = awake_seconds()
        self.source.does("evaluating")
        self.journal.show_evaluation(part.size)
        described = self.pack.description
        own = self.ranks.part_to_evaluate(part) if shared else part
        batches = evaluation_batches(
            own, described.mean, described.deviation, self.setting.sizes_to_evaluate(self.state.counters.step)
        )
        with self.state.averaged() as model:
            tally = count(
                model,
                batches,
                len(self.parts.classes),
                self.accelerator,
                lambda: self.channel.stop_requested,
                observe,
            )
        total = self.ranks.total(tally)
        result = None if total is None else total.figures()
        self.source.does("training")
        seconds = awake_seconds() - began
        self.journal.pause_ended(seconds)
        return result, seconds

    def write_final_weights(self) -> str:
        """Write the averaged weights with all that is needed to use them; return their SHA-256.

        Among several ranks the first one writes.
        """
        if not self.ranks.is_first:
            with self.state.averaged():
                return weights_sha256(self.state.parameters)
        described = self.pack.description
        details = {
            "model": self.config.model.to_settings(),
            "image_size": described.image_size,
            "mean": described.mean,
            "deviation": described.deviation,
        }
        gone = needing(self.run.path, "the run folder")
        with gone, self.state.averaged(), placing(self.run.weights_file) as path:
            metadata = final_metadata(self.config.name, self.parts.classes, details)
            write_tensors(path, self.state.parameters, metadata)
            return weights_sha256(self.state.parameters)

    def begin(self, kept_by: str | None = None) -> None:
        """Say what is about to be trained, and see that there is room for it."""
        self.saver.require_disk_space()
        self.journal.record(
            "session_started",
            step=self.state.counters.step,
            resumed=self.saver.has_saved,
            total_steps=self.total_steps,
            epochs=self.journal.epoch(self.total_steps),
            parameters=parameter_count(self.state.model),
            train_images=self.parts.train.size,
            validation_images=self.parts.validation.size,
            test_images=self.parts.test.size,
            classes=list(self.parts.classes),
            device=self.plan.device,
            precision=self.plan.precision,
            threads=self.plan.workers * self.plan.threads,
            workers=self.plan.workers,
            micro_batch=self.plan.micro_batch,
            recomputed_layers=self.plan.recomputed_layers,
            allocator=self.plan.allocator,
            lstm_path=self.plan.lstm_path,
            cap_enforced_by=kept_by,
            effective_batch=self.batch,
        )
        name = self.config.machine.log_with
        if name != NO_TRACKER:
            tracking = Tracking(self.accelerator, name, self.run, self.config.name, self.journal.record)
            self.journal.track(tracking, self.state.counters.step)


def mirrored_where_it_makes_sense(augmentation: AugmentationConfig, pack: Pack) -> AugmentationConfig:
    """Return the settings with `flip` decided: as given, or by what the catalogue says of the dataset."""
    if augmentation.flip is not None:
        return augmentation
    entry = CATALOGUE.get(pack.description.source)
    return structs.replace(augmentation, flip=entry is None or entry.flip_makes_sense)
