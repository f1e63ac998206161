"""timm's model with the Trainer of transformers."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.task import (
    CLIP_NORM,
    LEARNING_RATE,
    LOADERS,
    WEIGHT_DECAY,
    StepClock,
    Task,
    read_task,
    timm_model,
    training_images,
)


class Classifier(nn.Module):
    """The model as the Trainer wants one: it returns its loss."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = timm_model(task.model)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=task.label_smoothing)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Shapes: pixel_values: (B, 3, H, W), labels: (B,) -> loss: (), logits: (B, K)."""
        logits = self.model(pixel_values)
        return {"loss": self.criterion(logits, labels), "logits": logits}


def collate(examples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """Return the micro-batch of some images with their labels."""
    images, labels = zip(*examples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def train(task: Task) -> None:
    """Train until the last step."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Times(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.clock = StepClock(task)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.clock.step_ended()

    with tempfile.TemporaryDirectory(prefix="transformers-") as place:
        arguments = TrainingArguments(
            output_dir=place,
            use_cpu=True,
            bf16=task.precision == "bf16",
            max_steps=task.all_steps,
            per_device_train_batch_size=task.micro_batch,
            gradient_accumulation_steps=task.accumulation,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=CLIP_NORM,
            dataloader_num_workers=LOADERS,
            dataloader_persistent_workers=True,
            dataloader_drop_last=True,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(
            model=Classifier(task),
            args=arguments,
            train_dataset=training_images(task),
            data_collator=collate,
            callbacks=[Times()],
        ).train()


if __name__ == "__main__":
    train(read_task())
