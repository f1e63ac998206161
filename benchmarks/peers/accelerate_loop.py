"""Our own model and data in a bare loop with Accelerate: what lowmem-seq adds to it is what the tool costs.

It computes as a run of ours was planned: the same micro-batches and workers, layers recomputed, LSTM path, threads
and allocator. There is no supervisor, governor, limit, journal or saver, and no signal is listened to.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.peers.task import StepClock, Task, read_task
from lowmem_seq.data.batches import TrainingBatches
from lowmem_seq.models import build_model
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.loop import mirrored_where_it_makes_sense
from lowmem_seq.training.noise import draw_noise
from lowmem_seq.training.session import open_data, read_plan
from lowmem_seq.training.workers import Range, Worker, Workers


def train(task: Task) -> None:
    """Train until the last step."""
    run = RunFolder(Path(task.run))
    config, plan = run.config, read_plan(run)
    torch.set_num_threads(plan.threads)
    torch.manual_seed(config.seed)
    pack, parts = open_data(run, config)
    described = pack.description

    def make_batches() -> TrainingBatches:
        return TrainingBatches(
            parts.train,
            len(parts.classes),
            described.mean,
            described.deviation,
            config.seed,
            mirrored_where_it_makes_sense(config.augmentation, pack),
            config.recipe.label_smoothing,
        )

    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if plan.precision == "bf16" else "no")
    model = build_model(config.model, len(parts.classes))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.recipe.peak_learning_rate,
        weight_decay=config.recipe.weight_decay,
        fused=True,
    )
    workers = Workers(model, make_batches, plan.workers)
    workers.set_recomputed_layers(plan.recomputed_layers)
    workers.set_lstm_path(plan.lstm_path)

    def forward_and_backward(worker: Worker, positions: Range) -> Tensor:
        batch = worker.batches.read(*positions, mixing=False)
        noise = draw_noise(worker.model, config.seed, batch.epochs, batch.samples, accelerator.device)
        with accelerator.autocast():
            logits = worker.model(batch.images, noise)
        loss: Tensor = -(batch.targets * logits.float().log_softmax(1)).sum() / task.effective_batch
        accelerator.backward(loss)
        return loss.detach()

    clock, first = StepClock(task), 0
    while True:
        end = first + task.effective_batch
        cuts = range(first, end, plan.micro_batch)
        workers.run([(cut, min(cut + plan.micro_batch, end)) for cut in cuts], forward_and_backward)
        if config.recipe.clip_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), config.recipe.clip_norm)
        optimizer.step()
        first = end
        if clock.step_ended():
            return


if __name__ == "__main__":
    train(read_task())
