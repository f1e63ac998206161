"""Checkpoints with a few small tensors, written through the store as a trainer writes them, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lowmem_seq.checkpoint.manifest import Checkpoint
from lowmem_seq.checkpoint.store import CheckpointStore, Retention
from lowmem_seq.runs.folder import RunFolder

Tensors = dict[str, NDArray[Any]]
Files = dict[str, Tensors]
MANY = Retention(newest=100)


def weights(step: int = 0, classes: int = 3) -> Tensors:
    """The weights of a model of two tensors, of values that tell the step."""
    bias = np.full(classes, step, dtype=np.float32)
    return {"head.bias": bias, "head.weight": np.arange(classes * 2, dtype=np.float32).reshape(classes, 2) + step}


def state_of(model: Mapping[str, NDArray[Any]]) -> Tensors:
    """The optimizer's state that fits the weights."""
    state = {f"{kind}.{name}": np.zeros_like(value) for kind in ("mean", "square") for name, value in model.items()}
    return state | {f"steps.{name}": np.zeros((), dtype=np.float32) for name in model}


def files_of(step: int, classes: int = 3, average: bool = False) -> Files:
    """The tensor files of a checkpoint."""
    model = weights(step, classes)
    files = {"model.safetensors": model, "optimizer.safetensors": state_of(model)}
    return files | {"average.safetensors": model} if average else files


def write_checkpoint(
    folder: Path,
    step: int,
    identity: Mapping[str, str],
    files: Files | None = None,
    counters: object = None,
    val_accuracy: float | None = None,
    retention: Retention = MANY,
    more: Mapping[str, bytes] | None = None,
) -> Checkpoint:
    """Save a step.

    Args:
        folder: the run's checkpoints folder.
        step: how many steps are in it.
        identity: what it belongs to.
        files: the tensor files; None makes those that fit.
        counters: what state.json holds; None: the step.
        val_accuracy: as if it was measured of these weights.
        retention: which ones stay.
        more: bytes of files that take the place of those above, or are written beside them.
    """
    writers: dict[str, Callable[[Path], object]] = {
        name: _tensors(tensors) for name, tensors in (files_of(step) if files is None else files).items()
    }
    writers["state.json"] = _bytes(json.dumps({"step": step} if counters is None else counters).encode())
    writers |= {name: _bytes(content) for name, content in (more or {}).items()}
    metrics = {"val_loss": None, "val_accuracy": val_accuracy}
    store = CheckpointStore(folder, retention)
    return store.save(step, {name: _silent(write) for name, write in writers.items()}, identity, metrics)


def identity_of(run: RunFolder) -> dict[str, str]:
    """What the checkpoints of a run belong to."""
    data = run.read_json(run.data_file)
    assert data is not None
    return {"experiment_sha256": run.config.experiment_hash(), "data_fingerprint": data["fingerprint"]}


def save_step(run: RunFolder, step: int, **details: Any) -> Checkpoint:
    """Save a step of a run; see `write_checkpoint`."""
    return write_checkpoint(run.checkpoints, step, identity_of(run), **details)


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _tensors(tensors: Tensors) -> Callable[[Path], None]:
    return lambda path: save_file(tensors, path)


def _bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _silent(write: Callable[[Path], object]) -> Callable[[Path], None]:
    def written(path: Path) -> None:
        write(path)

    return written
