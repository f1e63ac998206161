"""The first weights of a run where they are not drawn: those of another run, or of timm's model of the same sizes.

The file lies in the run folder, as it was when the run was made. It is read as long as no step was saved; from then
on checkpoints hold all that counts. The head is drawn by the seed, as ever, where the classes are other ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from lowmem_seq.checkpoint.header import read_shapes
from lowmem_seq.errors import UsageError
from lowmem_seq.files import sha256_of
from lowmem_seq.models import ImageClassifier, from_timm_state_dict, is_timm_state_dict

HEAD = frozenset({"head.weight", "head.bias"})
SHOWN = 4


@dataclass(frozen=True)
class InitialWeights:
    """What a model begins with."""

    tensors: int
    """How many were taken from the file."""
    head_drawn_anew: bool
    """Whether the head was left as the seed drew it, because the classes are other ones."""


def take_initial_weights(
    model: ImageClassifier, path: Path, sha256: str, classes: tuple[str, ...]
) -> InitialWeights:
    """Copy the weights of a file into a model, in our names or timm's: all of them, or all but the head.

    Args:
        model: with the weights that the seed gives it.
        path: the file.
        sha256: of its bytes.
        classes: what the model is to tell apart.

    Raises:
        NoCheckpointError: the file is no whole safetensors file.
        UsageError: it is gone or another one, or its tensors are not this model's.
    """
    if not path.is_file() or sha256_of(path) != sha256:
        what = "has changed since the run was made" if path.exists() else "is missing, and no step was saved yet"
        raise UsageError(f"{path} {what}.", "start a new run: lowmem-seq train PRESET --init-from PATH")
    read_shapes(path)  # which looks at the header's length before it is read
    with safe_open(path, "pt") as file, torch.no_grad():
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        if is_timm_state_dict(tensors):
            tensors = from_timm_state_dict(model, tensors)
        wanted = dict(model.named_parameters())
        left_out = HEAD if _has_another_head(tensors, wanted, metadata, classes) else frozenset()
        _refuse_differences(tensors, wanted, left_out, path)
        for name in wanted.keys() - left_out:
            wanted[name].copy_(tensors[name])
    return InitialWeights(len(wanted) - len(left_out), bool(left_out))


def _has_another_head(
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    classes: tuple[str, ...],
) -> bool:
    """Whether the file's head is for other classes: other names, where it says them, or another number of them."""
    try:
        known = json.loads(metadata["classes"])
    except (KeyError, ValueError, RecursionError):
        known = list(classes)
    return known != list(classes) or any(
        name in tensors and tensors[name].shape[:1] != wanted[name].shape[:1] for name in HEAD
    )


def _refuse_differences(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], left_out: frozenset[str], path: Path
) -> None:
    """See that the file has each tensor that is wanted, in its shape, and no other.

    Raises:
        UsageError: it hasn't.
    """
    faults = [
        f"{name}: {tuple(tensors[name].shape)}, and the model has {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & tensors.keys() - left_out)
        if tensors[name].shape != wanted[name].shape
    ]
    faults += [f"missing: {name}" for name in sorted(wanted.keys() - tensors.keys() - left_out)]
    faults += [f"unexpected: {name}" for name in sorted(tensors.keys() - wanted.keys())]
    if faults:
        more = f"\nand {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UsageError(
            f"the weights of {path.name} are not those of this model.\n" + "\n".join(faults[:SHOWN]) + more,
            "train the preset that they are of; only the number of classes may differ",
        )
