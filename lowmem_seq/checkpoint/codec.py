"""Tensors to and from safetensors files. No pickle: a file is a JSON header and raw numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowmem_seq.errors import NoCheckpointError


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write the tensors, from the memory they lie in where they are on the CPU.

    Args:
        path: the file; it is neither synced nor renamed here.
        tensors: any shapes; no two may share memory.
        metadata: text that the header carries.
    """
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, dict(metadata or {}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, on the CPU.

    Raises:
        NoCheckpointError: the file is no whole safetensors file.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise NoCheckpointError(f"{path} can't be read: {error}", "is it a copy that broke off?") from error


def copy_into(target: Mapping[str, Tensor], source: Mapping[str, Tensor], what: str) -> None:
    """Copy values by name into tensors that exist already.

    Raises:
        NoCheckpointError: the names or the shapes differ.
    """
    if target.keys() != source.keys():
        differing = sorted(target.keys() ^ source.keys())
        raise NoCheckpointError(
            f"the checkpoint's {what} has other tensors than this model: {', '.join(differing[:4])}",
            "was config.yaml changed since?",
        )
    for name, tensor in target.items():
        if tensor.shape != source[name].shape:
            raise NoCheckpointError(
                f"the checkpoint's {name} is {tuple(source[name].shape)}, this model's {tuple(tensor.shape)}",
                "was config.yaml changed since?",
            )
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
