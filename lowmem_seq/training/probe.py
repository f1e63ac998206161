"""What a run needs on this machine, measured: `python -m lowmem_seq.training.probe RUN_DIR CAP_BYTES`.

A disposable process does real steps of the run at growing micro-batches, with optimizer step and an evaluation
batch, and tells the peak memory and the images/s of each. It starts small, and goes on only where the next size is
expected to fit. Nothing that it computes is kept.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from lowmem_seq.channel import Channel
from lowmem_seq.data.batches import evaluation_batches
from lowmem_seq.errors import LowmemSeqError
from lowmem_seq.memory.plan import (
    MARGIN,
    Measurement,
    Plan,
    candidate_sizes,
    predict_peak,
    smaller_sizes,
    threads_each,
    usable_cores,
    worker_counts,
)
from lowmem_seq.memory.tree import peak_process_bytes, release_memory, reset_peak
from lowmem_seq.runs.folder import open_run
from lowmem_seq.training.device import choose_device, choose_precision
from lowmem_seq.training.evaluation import evaluate
from lowmem_seq.training.loop import Training
from lowmem_seq.training.session import open_training

SMALL_IMAGE = 64
FEW = 3
ROUNDS_AGAIN = 2
"""Times that the FEW fastest settings are measured again."""
OPTIMIZER_COPIES = 2
"""AdamW keeps two numbers a weight; they take memory from the first step on."""
SMALLEST_OF_SMALL = 8
"""Smaller micro-batches of small images are slow; they are tried only where this one doesn't fit."""
SECONDS_FOR_SMALL_IMAGES = 20.0
SECONDS_FOR_LARGE_IMAGES = 60.0
TIMED_SECONDS = 0.6
FEWEST_TIMED = 3
SAMPLE_SECONDS = 0.005


class PeakSampler:
    """The peak resident bytes within a block: the system's own figure (Linux), or samples of 5 ms."""

    def __enter__(self) -> PeakSampler:
        self._exact = reset_peak()
        self._peak = 0
        self._ended = threading.Event()
        if not self._exact:
            threading.Thread(target=self._sample, daemon=True).start()
        return self

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._ended.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, process.memory_info().rss)

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        now = psutil.Process().memory_info().rss
        self._peak = max(self._peak, now, (peak_process_bytes() or 0) if self._exact else 0)

    @property
    def peak_bytes(self) -> int:
        """The peak of the block that ended."""
        return self._peak


def measure(training: Training, micro_batch: int) -> Measurement:
    """Do real steps at a micro-batch with the session's workers; the first two rounds set up kernels, untimed."""
    workers = training.workers.count
    training.channel.say({"event": "probing", "micro_batch": micro_batch, "workers": workers})

    def rounds(count: int) -> None:
        starts = range(0, count * workers * micro_batch, micro_batch)
        training.workers.run([(start, start + micro_batch) for start in starts], training.forward_and_backward)

    release_memory()  # what a size before this one needed is not this one's
    with PeakSampler() as sampler:
        rounds(2)  # the second with gradients to add to
        optimizer_seconds = _seconds(lambda: training.state.optimizer.step(0.0))
        times: list[float] = []
        while len(times) < FEWEST_TIMED or (sum(times) < TIMED_SECONDS and len(times) < 32):
            times.append(_seconds(lambda: rounds(1)))
        pack, part = training.pack, training.parts.validation
        batch = next(iter(evaluation_batches(part, pack.description.mean, pack.description.deviation, micro_batch)))
        evaluate(training.state.model, [batch], len(training.parts.classes), training.accelerator)
    training.state.optimizer.clear_gradients()
    middle = sorted(times)[len(times) // 2]
    step_seconds = middle * math.ceil(training.batch / (micro_batch * workers)) + optimizer_seconds
    measurement = Measurement(micro_batch, workers, sampler.peak_bytes, training.batch / step_seconds)
    training.channel.say({"event": "measured", **vars(measurement)})
    return measurement


def _seconds(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def probe(training: Training, cores: int, wanted: int | None, budget_bytes: int) -> list[Measurement]:
    """Return the measurements that are worth it, within the time and under the budget.

    First a worker a core, then one worker on all cores, which needs less memory, from the best micro-batch on.

    Args:
        training: a session at step 0; its weights are not kept.
        cores: how many to use.
        wanted: the micro-batch that the user gave, if any.
        budget_bytes: what this process may hold.
    """
    small = training.config.data.image_size <= SMALL_IMAGE
    deadline = time.monotonic() + (SECONDS_FOR_SMALL_IMAGES if small else SECONDS_FOR_LARGE_IMAGES)
    measured: list[Measurement] = []
    for workers in worker_counts(cores, training.batch, wanted, on_cpu=training.plan.device == "cpu"):
        set_workers(training, workers, cores)
        sizes = candidate_sizes(training.batch, workers, wanted, smallest=SMALLEST_OF_SMALL if small else 1)
        fitting = [point for point in measured if point.peak_bytes <= budget_bytes]
        if fitting:
            best = max(fitting, key=lambda point: point.images_per_second)
            sizes = [size for size in sizes if size >= best.micro_batch]
        measured += _sweep(training, sizes, budget_bytes, deadline)
    for size in smaller_sizes(min(point.micro_batch for point in measured)) if wanted is None else ():
        if min(point.peak_bytes for point in measured) <= budget_bytes:
            break
        measured.append(measure(training, size))
    for point in fastest_few(measured, budget_bytes) * ROUNDS_AGAIN:
        if time.monotonic() > deadline:
            break
        set_workers(training, point.workers, cores)
        measured.append(measure(training, point.micro_batch))
    return measured


def fastest_few(measured: list[Measurement], budget_bytes: int) -> list[Measurement]:
    """Return the fastest settings that fit; they are measured again in turn, and the best time of each counts.

    Other programs only ever slow a measurement down, for seconds at a time; in turn they slow all alike.
    """
    fitting = [point for point in measured if point.peak_bytes <= budget_bytes]
    return sorted(fitting, key=lambda point: point.images_per_second, reverse=True)[:FEW]


def _sweep(training: Training, sizes: list[int], budget_bytes: int, deadline: float) -> list[Measurement]:
    """Measure growing micro-batches until one doesn't fit, is slower, or the time is over."""
    measured: list[Measurement] = []
    floor_bytes = held_without_images(training)
    for size in sizes:
        if measured and (predict_peak(measured, size, floor_bytes) > budget_bytes or time.monotonic() > deadline):
            break
        measured.append(measure(training, size))
        slower = len(measured) > 1 and measured[-1].images_per_second < 0.9 * measured[-2].images_per_second
        if measured[-1].peak_bytes > budget_bytes or slower:
            break
    return measured


def held_without_images(training: Training) -> int:
    """Return the bytes that a step on no images would hold: what is resident, gradients, and optimizer state."""
    weights = sum(value.numel() * value.element_size() for value in training.state.parameters.values())
    return int(psutil.Process().memory_info().rss) + weights * (training.workers.count + OPTIMIZER_COPIES)


def set_workers(training: Training, workers: int, cores: int) -> None:
    """Split the cores among so many workers."""
    torch.set_num_threads(threads_each(workers, cores))
    training.workers.set_count(workers)


def main() -> int:
    """Probe the run that the command line names, and say the result."""
    channel = Channel(saves=False)
    try:
        run = open_run(Path(sys.argv[1]))
        budget_bytes = int(int(sys.argv[2]) * MARGIN)
        config = run.config
        device = choose_device(config.machine.device)
        cores = usable_cores(config.machine.threads)
        plan = Plan(
            device=device,
            precision=choose_precision(config.machine.precision, device),
            micro_batch=1,
            workers=1,
            threads=cores,
            cap_bytes=int(sys.argv[2]),
            cap_source="given",
            predicted_peak_bytes=0,
            predicted_images_per_second=0.0,
        )
        channel.say({"event": "computing", "device": plan.device, "precision": plan.precision})
        training = open_training(run, plan, channel)
        probe(training, cores, config.machine.micro_batch, budget_bytes)
    except LowmemSeqError as error:
        channel.say_error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
