"""Real steps at one setting, measured: the highest memory, and the images/s.

With the optimizer's step, an evaluation batch and a save. The process keeps itself under its budget: by the
system's limit where there is one, and by a look every 5 ms.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

import torch

from lowmem_seq.checkpoint.store import CheckpointStore, Retention
from lowmem_seq.data.batches import evaluation_batches
from lowmem_seq.disk import free_bytes
from lowmem_seq.errors import DiskError
from lowmem_seq.files import remove_leftover, temporary_beside
from lowmem_seq.memory.limit import system_limit
from lowmem_seq.memory.plan import TORCH_LSTM, Means, Measurement, Setting, threads_each
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.memory.remembered import DOES_NOT_FIT
from lowmem_seq.memory.space import SMALL_IMAGE
from lowmem_seq.training.device import give_back
from lowmem_seq.training.evaluation import evaluate
from lowmem_seq.training.loop import Training
from lowmem_seq.training.workers import Range

TIMED_SECONDS = 0.6
FEWEST_TIMED = 3
LONGEST_TIMED_SECONDS = 2.0
"""From here on, one more round says no more about speed."""
TIMED_ROUNDS = 2
"""Rounds that are timed at once where a step takes long, so that workers seldom wait for each other."""
SAMPLE_SECONDS = 0.005
FIRST_GAP_BYTES = 64 * 10**6
"""By how much the data segment passes what is resident at the peak of one worker: 51 to 68 MB for Small and
sequencer2d_l. The file pages that are resident are no part of it, so it passes even more of the rest."""
WORKER_BYTES = 48 * 10**6
"""By how much each worker beside the first one makes the data segment pass what is resident: a stack, and a heap of
its own (35 MB for Small, the same and more for sequencer2d_l)."""
GROWS_LATER = 0.03
GROWS_LATER_WITH_WORKERS = 0.10
"""Share that is added to a peak of large images, of which only a few rounds are measured: the heap is cut up a bit
more, and it takes many rounds until several workers hold most at the same moment. Over the next three or four steps
at 224x224 one worker passed its measured peak by 0.4 to 3.0 %, two by 0.3 to 9.9 % (docs/log.md, 2026-11-23)."""
ROOM_ON_DISK = 1.5
"""A save is tried only where the disk has this many times its size."""


class PeakSampler:
    """The peak resident bytes within a block, by the system or by samples of 5 ms, and its highest data segment.

    Args:
        budget_bytes: what this process may hold.
        passed: called by another thread as soon as it holds more.
    """

    def __init__(self, budget_bytes: float = math.inf, passed: Callable[[], None] = lambda: None) -> None:
        self._reader, self._pid = system_reader(), os.getpid()
        self._budget_bytes, self._passed = budget_bytes, passed
        self._ended = threading.Event()
        self.peak_bytes = 0
        """The peak of the block that ended."""
        self.data_bytes = 0
        """Its highest data segment; 0 where the system has none."""

    def __enter__(self) -> PeakSampler:
        self._exact = self._reader.reset_peak()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        held = self._reader.held_bytes(self._pid)
        self.peak_bytes = max(self.peak_bytes, held)
        self.data_bytes = max(self.data_bytes, self._reader.data_bytes(self._pid) or 0)
        if held > self._budget_bytes:
            self._passed()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        if self._exact:
            self.peak_bytes = max(self.peak_bytes, self._reader.peak_bytes(self._pid) or 0)


class Probe:
    """Measures one training at one setting after the other.

    Args:
        training: a session at step 0; its weights are not kept.
        cores: how many to use.
        budget_bytes: what this process may hold, or infinity.
        allocator: how this process was started.
        save_bytes: what a save takes above what is held; None where it is not known yet.
    """

    def __init__(
        self, training: Training, cores: int, budget_bytes: float, allocator: str, save_bytes: int | None = None
    ) -> None:
        self._training, self._cores, self._allocator = training, cores, allocator
        self._budget_bytes = budget_bytes
        self._reader = system_reader()
        bounded = training.plan.device == "cpu" and budget_bytes < math.inf
        self._limit = system_limit() if bounded else None
        self._untouched_at_start = self._untouched()
        self._gap_bytes = FIRST_GAP_BYTES
        self._save_bytes = save_bytes
        self.count = 0
        """Settings that were measured."""

    def measure(self, setting: Setting, lstm_path: str = TORCH_LSTM) -> Measurement:
        """Do real steps at a setting, with LSTMs computed so, and tell what they took.

        Raises:
            Exception: what a library says that gets no memory, see `is_out_of_memory`.
        """
        training = self._training
        means = Means(self._allocator, lstm_path)
        training.channel.say({"event": "probing", **asdict(setting), **asdict(means)})
        torch.set_num_threads(threads_each(setting.workers, self._cores))
        training.workers.set_count(setting.workers)
        training.workers.set_recomputed_layers(setting.recomputed_layers)
        training.workers.set_lstm_path(lstm_path)
        give_back(training.plan.device)  # what a setting before this one needed is not this one's
        left_behind = self._bound(setting.workers)
        with PeakSampler(self._budget_bytes, self._leave) as sampler:
            step_seconds = self._time_step(setting)
            self._evaluate(setting.micro_batch)
            held = self._reader.held_bytes(os.getpid())
        training.state.optimizer.clear_gradients()
        if self._save_bytes is None:
            self._save_bytes = self._save()
        self.count += 1
        peak = max(sampler.peak_bytes, held + self._save_bytes)
        data = min(
            sampler.data_bytes, max(sampler.data_bytes - left_behind, sampler.peak_bytes + self._untouched_at_start)
        )
        later = round(_grows_later(training, setting.workers) * peak)
        return Measurement(
            **asdict(setting),
            **asdict(means),
            peak_bytes=peak + later,
            data_bytes=data + later if data else 0,
            images_per_second=training.batch / step_seconds,
        )

    def _untouched(self) -> int:
        """Return by how much the data segment passes what is resident (which has file pages, too)."""
        data = self._reader.data_bytes(os.getpid())
        return 0 if data is None else data - self._reader.held_bytes(os.getpid())

    def _bound(self, workers: int) -> int:
        """Have the system hold this process to its budget: the data segment may grow by what it may still hold.

        Returns:
            What settings before this one left in the data segment without holding it, in bytes.
        """
        left_behind = max(0, self._untouched() - self._untouched_at_start)
        if self._limit is not None:
            untouched = self._gap_bytes + (workers - 1) * WORKER_BYTES + left_behind
            self._limit.set(int(self._budget_bytes) + untouched)
        return left_behind

    def _leave(self) -> None:
        """End at once: more is held than may be."""
        held = self._reader.held_bytes(os.getpid())
        sys.stderr.write(f"holds {held} of {self._budget_bytes:.0f} bytes\n")
        sys.stderr.flush()
        os._exit(DOES_NOT_FIT)

    def _time_step(self, setting: Setting) -> float:
        """Return the seconds of one optimizer step at a setting; where whole steps are long, rounds are timed."""
        ranges = cut(self._training.batch, setting.micro_batch)
        rounds = math.ceil(len(ranges) / setting.workers)
        # the first round sets up kernels and memory: a fifth to a third slower than the next ones
        seconds = _seconds(lambda: self._compute(ranges[: setting.workers]))
        if self._training.config.data.image_size > SMALL_IMAGE:
            timed = min(rounds, TIMED_ROUNDS if seconds < LONGEST_TIMED_SECONDS else 1)
        else:
            timed = min(rounds, max(TIMED_ROUNDS, math.ceil(TIMED_SECONDS / FEWEST_TIMED / seconds)))
        unit = ranges[: timed * setting.workers]
        if ranges[-1] not in unit and _size(ranges[-1]) < setting.micro_batch:
            self._compute(ranges[-1:])  # the rest of a step: of a shape that has buffers and kernels of its own
        times: list[float] = []
        while sum(times) < LONGEST_TIMED_SECONDS and (len(times) < FEWEST_TIMED or sum(times) < TIMED_SECONDS):
            times.append(_seconds(lambda: self._compute(unit)))
        return statistics.median_low(times) * rounds / timed + _seconds(self._update)

    def _compute(self, ranges: list[Range]) -> None:
        self._training.workers.run(ranges, self._training.forward_and_backward)

    def _update(self) -> None:
        """Do what follows the gradients of a step; a rate of nought leaves the weights as they are."""
        state = self._training.state
        state.optimizer.clip_gradients(self._training.config.recipe.clip_norm)
        state.optimizer.step(0.0)
        if state.average is not None:
            state.average.update(0)

    def _evaluate(self, size: int) -> None:
        """Evaluate one batch, and tell how fast that is."""
        training = self._training
        described = training.pack.description
        batches = evaluation_batches(training.parts.validation, described.mean, described.deviation, [size])
        batch = next(iter(batches))
        with training.state.averaged() as model:
            seconds = _seconds(lambda: evaluate(model, [batch], len(training.parts.classes), training.accelerator))
        training.channel.say({"event": "evaluated", "images_per_second": len(batch[1]) / seconds})

    def _save(self) -> int:
        """Save a checkpoint beside the run's files, and delete it; return the bytes it takes above what is held.

        One save is enough: it needs the same at every setting.
        """
        training = self._training
        size = training.saver.checkpoint_bytes
        if free_bytes(training.run.path) < ROOM_ON_DISK * size:  # which the start of the training will say
            return 0
        folder = temporary_beside(training.run.path / "probe")
        held, seconds = self._reader.held_bytes(os.getpid()), 0.0
        with PeakSampler(self._budget_bytes, self._leave) as sampler, contextlib.suppress(OSError, DiskError):
            began = time.monotonic()
            CheckpointStore(folder, Retention(1)).save(0, training.state.writers(), {}, {}, size)
            seconds = time.monotonic() - began
        remove_leftover(folder)
        extra = max(0, sampler.peak_bytes - held)
        training.channel.say({"event": "saved", "seconds": seconds, "bytes": extra})
        return extra


def _grows_later(training: Training, workers: int) -> float:
    if training.config.data.image_size <= SMALL_IMAGE:
        return 0.0
    return GROWS_LATER if workers == 1 else GROWS_LATER_WITH_WORKERS


def cut(batch: int, micro_batch: int) -> list[Range]:
    """Return the first step's ranges of global positions."""
    return [(start, min(start + micro_batch, batch)) for start in range(0, batch, micro_batch)]


def _size(one: Range) -> int:
    return one[1] - one[0]


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
