"""Where the memory of a run goes: bytes by category, from the model's shapes and what the probe measured."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from typing import Literal

from lowmem_seq.config import ModelConfig, Sequencer2DConfig

OPTIMIZER_COPIES = 2
"""AdamW keeps two numbers a weight; they take memory from the first step on."""
BYTES_A_PIXEL = 3 * (1 + 4)
"""Three colours, as bytes in the buffer that the pack is read into and as float32 of the model's images."""


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak, by category; together they are what all processes of the run hold."""

    libraries_bytes: int = 0
    """Python, torch and what else is resident before the model."""
    weights_bytes: int = 0
    gradients_bytes: int = 0
    """Each worker has its own."""
    optimizer_bytes: int = 0
    average_bytes: int = 0
    """The running average of the weights."""
    data_bytes: int = 0
    """The images of the micro-batches that are computed at once."""
    activations_bytes: int = 0
    """What the layers keep for backward, and scratch: the rest of the measured peak."""
    supervisor_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return sum(astuple(self))

    @property
    def without_images_bytes(self) -> int:
        """What the trainer holds whatever it computes."""
        return self.total_bytes - self.data_bytes - self.activations_bytes - self.supervisor_bytes


CATEGORIES = {one.name: one.name.removesuffix("_bytes") for one in fields(Footprint)}
"""The keys of a footprint, with their names for people."""


@dataclass(frozen=True)
class Facts:
    """What the probe knows of a run before its first step."""

    device: Literal["cpu", "mps", "cuda"]
    precision: Literal["fp32", "bf16"]
    layers: int
    """How many can be recomputed."""
    libraries_bytes: int
    """Resident before the model."""
    weights_bytes: int
    average_bytes: int
    image_size: int
    train_images: int
    validation_images: int
    test_images: int
    recommended_bytes: int = 0
    """What the system recommends to take of an Apple GPU's memory; 0 elsewhere."""


def make_footprint(
    facts: Facts, micro_batch: int, workers: int, peak_bytes: int, supervisor_bytes: int
) -> Footprint:
    """Return the categories of a measured peak; each is cut to what is left of it, so that their sum is true.

    Args:
        facts: of the run.
        micro_batch: images that a worker computes at once.
        workers: how many compute side by side.
        peak_bytes: resident bytes of the trainer.
        supervisor_bytes: resident bytes of the supervisor.
    """
    wanted = {
        "libraries_bytes": facts.libraries_bytes,
        "weights_bytes": facts.weights_bytes,
        "gradients_bytes": facts.weights_bytes * workers,
        "optimizer_bytes": facts.weights_bytes * OPTIMIZER_COPIES,
        "average_bytes": facts.average_bytes,
        "data_bytes": micro_batch * workers * facts.image_size**2 * BYTES_A_PIXEL,
    }
    left, parts = peak_bytes, {}
    for name, size in wanted.items():
        parts[name] = min(size, left)
        left -= parts[name]
    return Footprint(**parts, activations_bytes=left, supervisor_bytes=supervisor_bytes)


def held_without_images(facts: Facts, workers: int) -> int:
    """Return the bytes that a step on no images would hold: libraries, weights, gradients, optimizer state."""
    copies = 1 + workers + OPTIMIZER_COPIES
    return facts.libraries_bytes + facts.weights_bytes * copies + facts.average_bytes


def layer_shares(model: ModelConfig, image_size: int) -> tuple[float, ...]:
    """Return the share of the kept activations that each layer has, in the order in which layers are recomputed.

    For each token a Sequencer2D layer keeps what its norms, its LSTM and its MLP take in, some ten times the width,
    and the gates and states of four directions. The first stage has the most tokens.
    """
    if not isinstance(model, Sequencer2DConfig):
        return (1 / model.layers,) * model.layers
    sizes: list[float] = []
    side = float(image_size)
    stages = zip(model.layers, model.widths, model.lstm_widths, model.patch_sizes, strict=True)
    for depth, width, lstm_width, patch_size in stages:
        side /= patch_size
        kept = side**2 * (width * (4 + 2 * model.mlp_ratio) + 4 * 6 * lstm_width)
        sizes += [kept] * depth
    return tuple(size / sum(sizes) for size in sizes)
