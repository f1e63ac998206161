"""A trained model at work on pictures: on which device, in which precision, how many at once, under which cap.

Where the run's plan was made for this machine, it is computed as the run's own test was: with the same precision
and the same way of computing LSTMs, so that the figures are the same.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from lowmem_seq.data.augmentation import normalise
from lowmem_seq.data.inputs import Input
from lowmem_seq.errors import CapTooSmallError, LowmemSeqError
from lowmem_seq.memory.limit import data_limit_bytes, system_limit
from lowmem_seq.memory.out_of_memory import is_out_of_memory
from lowmem_seq.memory.plan import Plan, plan_from_json
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.runs.environment import describe_environment, planned_for
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.device import Device, choose_device, make_accelerator
from lowmem_seq.training.trained import TrainedModel
from lowmem_seq.units import format_bytes

PIXELS_AT_ONCE = 4 * 224 * 224
MOST_AT_ONCE = 128
"""Pictures that are computed at once: 4 of 224x224, and no more of small ones than are fast."""


class Classifier:
    """A trained model on its device.

    Args:
        trained: the model.
        run: whose plan is followed, if it was made for this machine and device.
        device: `auto` takes what training would.

    Raises:
        UsageError: the device is not there, or computes LSTMs wrong.
    """

    def __init__(
        self, trained: TrainedModel, run: RunFolder, device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    ) -> None:
        self.trained = trained
        chosen = choose_device(device)
        plan = _plan_for(run, chosen)
        self.accelerator = make_accelerator(chosen, "fp32" if plan is None else plan.precision)
        self.model = trained.model.to(self.accelerator.device)
        if plan is not None and plan.lstm_path in self.model.lstm_paths:
            self.model.lstm_path = plan.lstm_path
        self.batch = max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // trained.image_size**2))
        self._mean, self._deviation = torch.tensor(trained.mean), torch.tensor(trained.deviation)

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return what the model says. Shapes: pixels: (B, S, S, 3), uint8 -> (B, K), on the CPU."""
        images = normalise(pixels, self._mean, self._deviation)  # (B, S, S, 3)
        with self.accelerator.autocast():
            logits: Tensor = self.model(images.to(self.accelerator.device), None)  # (B, K)
        return logits.float().cpu()

    def top(self, pixels: Tensor, count: int) -> list[tuple[tuple[str, float], ...]]:
        """Return each picture's most probable classes and their probabilities. Shapes: pixels: (B, S, S, 3)."""
        probabilities, labels = self.logits(pixels).softmax(1).topk(count)  # (B, count)
        return [
            tuple((self.trained.classes[label], probability) for label, probability in zip(*row, strict=True))
            for row in zip(labels.tolist(), probabilities.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Prediction:
    """What one picture was taken for."""

    image: str
    top: tuple[tuple[str, float], ...]
    """Classes and their probabilities, the most probable first; none where it could not be read."""
    fault: str | None
    """Why it could not."""


def predictions(classifier: Classifier, inputs: Iterator[Input], count: int) -> Iterator[list[Prediction]]:
    """Yield what pictures are taken for, in their order, a batch at a time: no more is held.

    Args:
        classifier: the model.
        inputs: the pictures, of the model's size.
        count: classes that are told of each.
    """
    while batch := list(islice(inputs, classifier.batch)):
        readable = [torch.tensor(one.pixels) for one in batch if one.pixels is not None]
        tops = iter(classifier.top(torch.stack(readable), count) if readable else ())
        yield [Prediction(one.name, next(tops) if one.pixels is not None else (), one.fault) for one in batch]


def _plan_for(run: RunFolder, device: Device) -> Plan | None:
    """Return the run's plan, if it has one of this machine and device."""
    with contextlib.suppress(LowmemSeqError):
        stored = run.read_json(run.plan_file)
        plan = None if stored is None else plan_from_json(stored)
        if plan is None or plan.device != device:
            return None
        if plan.planned_for in ("", planned_for(describe_environment())):
            return plan
    return None


@contextlib.contextmanager
def under_cap(cap_bytes: int | None) -> Iterator[bool]:
    """Bound what this process may hold within the block, now that its libraries and its model are there.

    Gives whether the system enforces it. The bound stays: there is no way back that is safe.

    Raises:
        CapTooSmallError: more is held already, or memory runs out.
    """
    limited = cap_bytes is not None and _bound(cap_bytes)
    try:
        yield limited
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error, limited):
            raise
        cap = "the machine's memory" if cap_bytes is None else f"the cap of {format_bytes(cap_bytes)}"
        raise CapTooSmallError(
            f"memory ran out: {cap} is too small for this.", "close other programs, or give more: --max-ram 2GB"
        ) from error


def _bound(cap_bytes: int) -> bool:
    reader, pid = system_reader(), os.getpid()
    held, data = reader.held_bytes(pid), reader.data_bytes(pid)
    if held > cap_bytes:
        raise CapTooSmallError(
            f"the cap of {format_bytes(cap_bytes)} is too small: {format_bytes(held)} are held before the first "
            "picture is looked at.",
            f"--max-ram {-(-held * 5 // 4 // 10**7) * 10}MB",
        )
    wanted = cap_bytes if sys.platform == "win32" else data_limit_bytes(data or 0, held, cap_bytes)
    return system_limit().set(wanted)
