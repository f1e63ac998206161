"""What all peers share: the task they are given, the model, the images, and the times at which their steps ended.

A peer is a program: `python -m benchmarks.peers.NAME TASK.json`. The packages it stands for are no dependencies of
this project; they lie in the folder that LOWMEM_SEQ_PEERS names (`make peers-benchmark`).
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

LOADERS = 2
CLIP_NORM = 1.0
WEIGHT_DECAY = 0.05
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Task:
    """What a peer trains, and how."""

    model: dict[str, Any]
    """timm's Sequencer2d, by its arguments."""
    images: str
    """A folder of pictures as CLASS/file; or images.npy and labels.npy, as torchvision's CIFAR10 holds them."""
    image_size: int
    crop_padding: int
    label_smoothing: float
    effective_batch: int
    micro_batch: int
    precision: str
    warm_up_steps: int
    steps: int
    """Steps that are timed, after those of the warm-up."""
    told: str
    """The file for the times at which steps ended."""
    run: str = ""
    """A folder of a run of ours, for the loop that computes as that one was planned."""

    @property
    def all_steps(self) -> int:
        """Optimizer steps."""
        return self.warm_up_steps + self.steps

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return self.effective_batch // self.micro_batch


class StepClock:
    """Notes when optimizer steps ended; after the last one it writes them down."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._ends: list[float] = []

    def step_ended(self) -> bool:
        """Note one; return whether it was the last."""
        self._ends.append(time.monotonic())
        if len(self._ends) < self._task.all_steps:
            return False
        Path(self._task.told).write_text(json.dumps(self._ends), encoding="utf-8")
        return True


def read_task() -> Task:
    """Return the task that the command line names, and make the peers' packages importable."""
    use_peers_folder()
    return Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


def use_peers_folder() -> None:
    """Look for packages in LOWMEM_SEQ_PEERS too, after the environment's own; let torchvision find its operators.

    torchvision's compiled part doesn't load beside a CPU build of torch from another source.
    """
    from lowmem_seq.data.torchvision_compat import datasets

    folder = os.environ.get("LOWMEM_SEQ_PEERS")
    if folder and folder not in sys.path:
        sys.path.append(folder)
    datasets()


def timm_model(arguments: dict[str, Any]) -> nn.Module:
    """Return timm's Sequencer2d."""
    from timm.models.sequencer import Sequencer2d

    model: nn.Module = Sequencer2d(**arguments)
    return model


def training_images(task: Task) -> Dataset[Any]:
    """Return the images as torchvision gives them, cropped and mirrored at random."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    transform = transforms.Compose(
        [
            transforms.RandomCrop(task.image_size, padding=task.crop_padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)),
        ]
    )
    if (Path(task.images) / "images.npy").exists():
        return in_memory(Path(task.images), transform)
    folder: Dataset[Any] = ImageFolder(task.images, transform)
    return folder


def in_memory(folder: Path, transform: Any) -> Dataset[Any]:
    """Return images that lie in one array, as torchvision's CIFAR10 does it."""
    import numpy as np
    from PIL import Image
    from torch.utils.data import Dataset

    class InMemory(Dataset[Any]):
        def __init__(self) -> None:
            self.data = np.load(folder / "images.npy")  # (N, H, W, 3), uint8
            self.targets: list[int] = np.load(folder / "labels.npy").tolist()

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return transform(Image.fromarray(self.data[index])), self.targets[index]

    return InMemory()


def training_loader(task: Task) -> DataLoader[Any]:
    """Return micro-batches in random order, made by two processes that live on from epoch to epoch."""
    from torch.utils.data import DataLoader

    return DataLoader(
        training_images(task),
        batch_size=task.micro_batch,
        shuffle=True,
        num_workers=LOADERS,
        drop_last=True,
        persistent_workers=True,
    )
