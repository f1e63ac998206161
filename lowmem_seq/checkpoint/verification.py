"""Whether the checkpoints of a run can be gone on from, looked at without torch and without changing anything.

More is asked than that the bytes are those that were written: that each tensor file can be loaded, that the
optimizer's state and the average fit the weights, and that all checkpoints of the run hold the same tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lowmem_seq.checkpoint.counters import COUNTERS, read_counters
from lowmem_seq.checkpoint.header import TYPE_NAMES, Shapes, read_shapes
from lowmem_seq.checkpoint.manifest import Checkpoint, find_fault, read_manifest
from lowmem_seq.checkpoint.store import SET_ASIDE_PREFIXES, bytes_on_disk, checkpoints_in, step_of
from lowmem_seq.errors import NoCheckpointError
from lowmem_seq.files import is_temporary, name_wanted

MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"
CHUNK_BYTES = 1 << 20

Contents = dict[str, Shapes]
"""The tensors of each file of a checkpoint: `{"model.safetensors": {"head.bias": ("F32", (10,))}}`."""


@dataclass(frozen=True)
class Verdict:
    """What was found about one checkpoint."""

    checkpoint: Checkpoint
    bytes: int
    val_accuracy: float | None
    fault: str | None
    """What is wrong with it; None: it verifies."""
    kind: Literal["broken", "unreadable", "newer", "foreign", "unusable"] | None
    """Of the fault: as the store tells them; unusable: its bytes are as they were written, and don't make sense."""
    contents: Contents
    """Empty where it does not verify."""


def verify_checkpoints(folder: Path, identity: Mapping[str, str], with_leftovers: bool) -> list[Verdict]:
    """Return a verdict on each checkpoint in a folder, oldest first; one that is pruned meanwhile is left out.

    Args:
        folder: the run's checkpoints folder.
        identity: what they must belong to.
        with_leftovers: take in those that are whole and had not got their names yet, as a resume does. While a
            trainer runs they are saves under way.
    """
    while True:
        found = checkpoints_in(folder)
        recoverable = [one for one in leftovers(folder) if find_fault(one) is None] if with_leftovers else []
        verdicts = [verdict for one in found if (verdict := verify_checkpoint(one, identity)) is not None]
        if verdicts or not found:  # where all were pruned meanwhile, newer ones are there
            verdicts += [
                verdict for one in recoverable if (verdict := verify_checkpoint(one, identity)) is not None
            ]
            return compare(sorted(verdicts, key=lambda verdict: verdict.checkpoint.step))


def leftovers(folder: Path) -> list[Checkpoint]:
    """Return what killed saves left behind in place of checkpoints that are not there, whole or not."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    found = []
    for path in paths:
        step = step_of(name_wanted(path)) if is_temporary(path) and path.is_dir() else None
        if step is not None and not path.with_name(name_wanted(path)).exists():
            found.append(Checkpoint(path, step))
    return found


def set_aside(folder: Path) -> list[str]:
    """Return the names of the checkpoints that earlier resumes passed over."""
    paths = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(
        path.name for path in paths if path.name.startswith(SET_ASIDE_PREFIXES) and not is_temporary(path)
    )


def verify_checkpoint(checkpoint: Checkpoint, identity: Mapping[str, str]) -> Verdict | None:
    """Return what is found in one checkpoint by itself; None if it is no longer there.

    One that is replaced meanwhile by a newer save of the same step is looked at again.
    """
    while (before := _folder_id(checkpoint)) is not None:
        verdict = _verdict(checkpoint, identity)
        if verdict.fault is None or _folder_id(checkpoint) == before:
            return verdict
    return None


def _folder_id(checkpoint: Checkpoint) -> tuple[int, int] | None:
    try:
        status = checkpoint.path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _verdict(checkpoint: Checkpoint, identity: Mapping[str, str]) -> Verdict:
    size = bytes_on_disk(checkpoint)
    fault = find_fault(checkpoint, identity)
    if fault is not None:
        return Verdict(checkpoint, size, None, fault.text, fault.kind, {})
    try:
        manifest = read_manifest(checkpoint)
        contents = {
            name: read_shapes(checkpoint.path / name)
            for name in sorted(manifest["files"])
            if name.endswith(".safetensors")
        }
        wrong = _wrong_files(manifest) or _wrong_counters(checkpoint) or _wrong_shapes(contents)
    except NoCheckpointError as error:
        return Verdict(checkpoint, size, None, error.message, "unusable", {})
    except (OSError, ValueError) as error:
        return Verdict(checkpoint, size, None, f"it can't be read: {error}", "unusable", {})
    return Verdict(
        checkpoint, size, _accuracy(manifest), wrong, "unusable" if wrong else None, {} if wrong else contents
    )


def _accuracy(manifest: Mapping[str, Any]) -> float | None:
    metrics = manifest.get("metrics")
    value = metrics.get("val_accuracy") if isinstance(metrics, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _wrong_files(manifest: Mapping[str, Any]) -> str | None:
    missing = [name for name in (MODEL, OPTIMIZER, COUNTERS) if name not in manifest["files"]]
    return f"its manifest names no {' and no '.join(missing)}" if missing else None


def _wrong_counters(checkpoint: Checkpoint) -> str | None:
    try:
        read_counters(checkpoint)
    except NoCheckpointError:
        return f"{COUNTERS} holds no counters of step {checkpoint.step}"
    return None


def _wrong_shapes(contents: Contents) -> str | None:
    """Return what in the optimizer's state or the average does not fit the weights."""
    model = contents[MODEL]
    state = {f"{kind}.{name}": shape for kind in ("mean", "square") for name, shape in model.items()}
    state |= {f"steps.{name}": ("F32", ()) for name in model}
    wrong = difference(contents[OPTIMIZER], state, "its weights ask for")
    if wrong:
        return f"{OPTIMIZER}: {wrong}"
    if AVERAGE in contents and (wrong := difference(contents[AVERAGE], model, "its weights have")):
        return f"{AVERAGE}: {wrong}"
    return None


def difference(found: Shapes, expected: Shapes, expected_by: str) -> str | None:
    """Return the first tensor that differs, in words, or None where all are the same.

    Args:
        found: the tensors of one file.
        expected: what they should be.
        expected_by: who says so, with its verb: `its weights have`.
    """
    for name in sorted(found.keys() | expected.keys()):
        here, there = found.get(name), expected.get(name)
        if here is None:
            return f"{name} is missing"
        if there is None:
            return f"{name} is one too many"
        if here != there:
            return f"{name} is {here[0]} {here[1]}, and {expected_by} {there[0]} {there[1]}"
    return None


def compare(verdicts: list[Verdict]) -> list[Verdict]:
    """Return the verdicts, with a fault for each checkpoint whose tensors are not those of most others."""
    whole = [verdict for verdict in verdicts if verdict.fault is None]
    if not whole:
        return verdicts
    usual = Counter(_key(verdict) for verdict in whole).most_common(1)[0][0]
    pattern = next(verdict for verdict in whole if _key(verdict) == usual)
    return [
        verdict if verdict.fault or _key(verdict) == usual else _odd_one(verdict, pattern) for verdict in verdicts
    ]


def _key(verdict: Verdict) -> str:
    return json.dumps(verdict.contents, sort_keys=True)


def _odd_one(verdict: Verdict, pattern: Verdict) -> Verdict:
    other = pattern.checkpoint.path.name
    for name in sorted(verdict.contents.keys() ^ pattern.contents.keys()):
        told = f"has {name}, and {other} has none" if name in verdict.contents else f"has no {name} as {other} has"
        return replace(verdict, fault=told, kind="unusable", contents={})
    wrong = next(
        f"{name}: {wrong}"
        for name, shapes in verdict.contents.items()
        if (wrong := difference(shapes, pattern.contents[name], f"in {other} it is"))
    )
    return replace(verdict, fault=wrong, kind="unusable", contents={})


def resume_step(verdicts: list[Verdict]) -> int | None:
    """Return the step that a resume goes on from; None: it finds nothing, or ends with an error.

    A resume looks at the newest first, and passes over what is broken, can't be read or belongs elsewhere.
    """
    for verdict in reversed(verdicts):
        if verdict.fault is None:
            return verdict.checkpoint.step
        if verdict.kind in ("newer", "unusable"):
            return None
    return None


def find_weights_fault(path: Path, expected: Shapes | None, sha256: str | None) -> str | None:
    """Return what is wrong with the final weights, or None.

    Args:
        path: the run's model.safetensors.
        expected: the weights of a checkpoint that verifies, if there is one.
        sha256: what the run's end told of the weights, if it did.
    """
    try:
        found = read_shapes(path)
    except NoCheckpointError as error:
        return error.message
    wrong = difference(found, expected, "in the checkpoints it is") if expected is not None else None
    if wrong is None and sha256 is not None and weights_sha256_of(path) != sha256:
        return "they have changed since they were written"
    return wrong


def weights_sha256_of(path: Path) -> str:
    """Return the SHA-256 over names, shapes and bytes of a file's tensors, in sorted order, as training counts it.

    The header must have been read by `read_shapes`, which checks it.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, tensor in sorted(header.items()):
            if name == "__metadata__":
                continue
            kind = f"torch.{TYPE_NAMES.get(tensor['dtype'], tensor['dtype'])}"
            digest.update(json.dumps([name, tensor["shape"], kind]).encode())
            begin, end = tensor["data_offsets"]
            file.seek(8 + length + begin)
            for start in range(begin, end, CHUNK_BYTES):
                digest.update(file.read(min(CHUNK_BYTES, end - start)))
    return digest.hexdigest()
