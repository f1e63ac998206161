"""timm's model with Lightning's Trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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
    import lightning

    class Classifier(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = timm_model(task.model)
            self.criterion = nn.CrossEntropyLoss(label_smoothing=task.label_smoothing)

        def training_step(self, batch: tuple[Tensor, Tensor], _batch_index: int) -> Tensor:
            images, labels = batch
            loss: Tensor = self.criterion(self.model(images), labels)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    class Times(lightning.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.clock, self.done = StepClock(task), 0

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step > self.done:
                self.done = trainer.global_step
                self.clock.step_ended()

    lightning.seed_everything(0)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed" if task.precision == "bf16" else "32-true",
        max_steps=task.all_steps,
        accumulate_grad_batches=task.accumulation,
        gradient_clip_val=CLIP_NORM,
        callbacks=[Times()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), training_loader(task))


if __name__ == "__main__":
    train(read_task())
