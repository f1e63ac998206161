"""What a run needs on this machine, measured: `python -m lowmem_seq.training.probe RUN_DIR CAP_BYTES`.

A disposable process does real steps of the run at growing micro-batches, with optimizer step and an evaluation
batch, and tells the peak memory and the images/s of each. It starts small, and goes on only where the next size is
expected to fit. Nothing that it computes is kept.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from lowmem_seq.channel import Channel
from lowmem_seq.config import RunConfig
from lowmem_seq.data.batches import evaluation_batches
from lowmem_seq.errors import LowmemSeqError
from lowmem_seq.memory.plan import MARGIN, Measurement, Plan, candidate_sizes, predict_peak, smaller_sizes
from lowmem_seq.memory.tree import peak_process_bytes, reset_peak
from lowmem_seq.runs.folder import open_run
from lowmem_seq.training.device import choose_device, choose_precision
from lowmem_seq.training.evaluation import evaluate
from lowmem_seq.training.loop import Training
from lowmem_seq.training.session import open_training

SECONDS = {"small images": 20.0, "large images": 60.0}
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
    """Do real steps at a micro-batch; the first one, which sets up kernels, is not timed."""

    def micro_step(start: int) -> None:
        training.forward_and_backward(start, start + micro_batch, mixing=True)

    with PeakSampler() as sampler:
        micro_step(0)
        micro_step(micro_batch)  # with gradients to add to
        optimizer_seconds = _seconds(lambda: training.state.optimizer.step(0.0))
        times: list[float] = []
        while len(times) < FEWEST_TIMED or (sum(times) < TIMED_SECONDS and len(times) < 32):
            times.append(_seconds(lambda: micro_step((2 + len(times)) * micro_batch)))
        pack, part = training.pack, training.parts.validation
        batch = next(iter(evaluation_batches(part, pack.description.mean, pack.description.deviation, micro_batch)))
        evaluate(training.state.model, [batch], len(training.parts.classes), training.accelerator)
    training.state.optimizer.clear_gradients()
    middle = sorted(times)[len(times) // 2]
    steps_seconds = middle * training.batch / micro_batch + optimizer_seconds
    return Measurement(micro_batch, sampler.peak_bytes, training.batch / steps_seconds)


def _seconds(action: Any) -> float:
    began = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def probe(training: Training, config: RunConfig, budget_bytes: int) -> list[Measurement]:
    """Return the measurements of the micro-batches that are worth it, within the time and under the budget."""
    seconds = SECONDS["small images" if config.data.image_size <= 64 else "large images"]
    deadline = time.monotonic() + seconds
    wanted = config.machine.micro_batch
    measured: list[Measurement] = []
    sizes = candidate_sizes(training.batch, wanted)
    for size in sizes:
        if measured and (predict_peak(measured, size) > budget_bytes or time.monotonic() > deadline):
            break
        measured.append(measure(training, size))
        training.channel.say({"event": "probed", "micro_batch": size, "of": sizes})
        if measured[-1].peak_bytes > budget_bytes:
            break
        if len(measured) > 2 and measured[-1].images_per_second < 0.9 * measured[-2].images_per_second:
            break
    for size in smaller_sizes(sizes[0]) if wanted is None else ():
        if min(point.peak_bytes for point in measured) <= budget_bytes:
            break
        measured.append(measure(training, size))
    return measured


def main() -> int:
    """Probe the run that the command line names, and say the result."""
    channel = Channel()
    try:
        run = open_run(Path(sys.argv[1]))
        budget_bytes = int(int(sys.argv[2]) * MARGIN)
        config = run.config
        device = choose_device(config.machine.device)
        threads = config.machine.threads or psutil.cpu_count(logical=False) or os.cpu_count() or 1
        plan = Plan(
            device=device,
            precision=choose_precision(config.machine.precision, device),
            micro_batch=1,
            threads=threads,
            cap_bytes=int(sys.argv[2]),
            cap_source="given",
            predicted_peak_bytes=0,
            predicted_images_per_second=0.0,
        )
        measured = probe(open_training(run, plan, channel), config, budget_bytes)
    except LowmemSeqError as error:
        channel.say_error(error)
        return error.exit_code
    channel.say(
        {
            "event": "probe_result",
            "device": plan.device,
            "precision": plan.precision,
            "threads": plan.threads,
            "measurements": [vars(point) for point in measured],
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
