"""Tensors to and from safetensors files. No pickle: a file is a JSON header and raw numbers."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowmem_seq.checkpoint.header import TYPE_NAMES, read_shapes
from lowmem_seq.disk import errno_of
from lowmem_seq.errors import NoCheckpointError

_SAVED_NAMES = {f"torch.{name}": saved for saved, name in TYPE_NAMES.items()}
_SYSTEM_ERROR = re.compile(r"\bcode: (\d+)|\(os error (\d+)\)")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write the tensors, from the memory they lie in where they are on the CPU.

    Args:
        path: the file; it is neither synced nor renamed here.
        tensors: any shapes; no two may share memory.
        metadata: text that the header carries.

    Raises:
        OSError: what the disk said.
    """
    path.touch()
    mode = path.stat().st_mode  # the library's file can be read by its owner only
    try:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, dict(metadata or {})
        )
    except SafetensorError as error:
        raise as_system_error(error, path) from error
    path.chmod(mode)


def as_system_error(error: SafetensorError, path: Path, platform: str = sys.platform) -> OSError | SafetensorError:
    """Return the system's error that the library wraps in words of its own, or the error itself."""
    found = _SYSTEM_ERROR.search(str(error))
    if found is None:
        return error
    return OSError(errno_of(int(found[1] or found[2]), platform), str(error), str(path))


def read_tensors_into(target: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Copy a file's values by name into tensors that exist already, one after the other.

    The header is compared first: nothing is read from a file whose names, shapes or types differ.

    Raises:
        NoCheckpointError: the file can't be read, or its tensors are not those of `target`.
    """
    found = read_shapes(path)
    if target.keys() != found.keys():
        differing = sorted(target.keys() ^ found.keys())
        raise NoCheckpointError(
            f"the checkpoint's {what} has other tensors than this model: {', '.join(differing[:4])}",
            "was config.yaml changed since?",
        )
    for name, tensor in target.items():
        expected = (_SAVED_NAMES.get(str(tensor.dtype), str(tensor.dtype)), tuple(tensor.shape))
        if found[name] != expected:
            raise NoCheckpointError(
                f"the checkpoint's {name} is {found[name][0]} {found[name][1]}, this model's {expected[0]} "
                f"{expected[1]}",
                "was config.yaml changed since?",
            )
    with torch.no_grad(), safe_open(path, "pt") as file:
        for name, tensor in target.items():
            tensor.copy_(file.get_tensor(name))
