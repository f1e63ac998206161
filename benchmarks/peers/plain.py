"""timm's model in a plain loop of PyTorch; in bf16 with autocast and the fused AdamW."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.peers.task import (
    CLIP_NORM,
    LEARNING_RATE,
    WEIGHT_DECAY,
    StepClock,
    Task,
    read_task,
    timm_model,
    training_loader,
)


def train(task: Task) -> None:
    """Train until the last step."""
    torch.manual_seed(0)
    bf16 = task.precision == "bf16"
    model = timm_model(task.model)
    loader = training_loader(task)
    fused = True if bf16 else None  # None is the default
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=fused)
    criterion = nn.CrossEntropyLoss(label_smoothing=task.label_smoothing)
    clock = StepClock(task)
    model.train()
    micro_batches = 0
    while True:
        for images, labels in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = criterion(model(images), labels) / task.accumulation
            loss.backward()
            micro_batches += 1
            if micro_batches % task.accumulation:
                continue
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
            if clock.step_ended():
                return


if __name__ == "__main__":
    train(read_task())
