"""The checkpoints of a run: each exists wholly or not at all, and the newest that verifies wins.

A checkpoint is a folder `step-00000200` with its files and a manifest.json, written last, that holds the size and
SHA-256 of each, and its own. It is built under a temporary name and renamed when all of it is on the disk. An older
one is deleted only after its successor was read back and verified. docs/concepts/checkpoints.md has the format.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowmem_seq.checkpoint.manifest import Checkpoint, Fault, find_fault, read_manifest, write_manifest
from lowmem_seq.disk import free_bytes
from lowmem_seq.errors import NoCheckpointError, UsageError
from lowmem_seq.files import (
    building_folder,
    is_temporary,
    make_folder_in_place,
    name_wanted,
    needing,
    remove_folder,
    remove_leftover,
    rename,
    sha256_of,
    sync_written,
)
from lowmem_seq.units import format_bytes

BROKEN_PREFIX, UNREAD_PREFIX, FOREIGN_PREFIX = "broken-", "unread-", "foreign-"
SET_ASIDE_PREFIXES = (BROKEN_PREFIX, UNREAD_PREFIX, FOREIGN_PREFIX)
KEPT_BROKEN = 2
"""Broken checkpoints that were set aside and stay for a look at them. Those with the other prefixes may be whole:
they are never deleted here."""
_STEP_NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,17})")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest, the one with the best validation accuracy, and every so many steps."""

    newest: int
    best: bool = False
    every_steps: int | None = None


Tell = Callable[[Literal["checkpoint_passed_over", "checkpoint_recovered"], str], None]
"""Hears the name of an event, and a sentence for people."""


class CheckpointStore:
    """The checkpoints folder of one run. Its own folder is made here, the run's is not."""

    def __init__(self, folder: Path, retention: Retention) -> None:
        self.folder = folder
        self._retention = retention

    def all(self) -> list[Checkpoint]:
        """Return the checkpoints on disk, oldest first, verified or not."""
        return checkpoints_in(self.folder)

    def save(
        self,
        step: int,
        writers: Mapping[str, Callable[[Path], None]],
        identity: Mapping[str, str],
        metrics: Mapping[str, float | int | None] | None = None,
        expected_bytes: int = 0,
    ) -> Checkpoint:
        """Write a checkpoint, verify it, give it its name, and delete what is too many.

        Args:
            step: optimizer steps that are in it.
            writers: for each file's name, a function that writes it under the path it is given.
            identity: what the checkpoint belongs to (hashes of the experiment and of the data).
            metrics: what was measured of these weights; `val_accuracy` decides which one is the best.
            expected_bytes: what the files need; with less free on the disk nothing is begun.

        Raises:
            OSError: what the disk said, EIO where what was written reads back otherwise, or ENODEV where the run
                folder is gone; the checkpoints before this one stay as they are, also one of the same step.
        """
        with needing(self.folder.parent, "the run folder"):
            checkpoint = self._write(step, writers, identity, metrics, expected_bytes)
        with contextlib.suppress(OSError):  # the new one is safe; the next save tries to delete again
            self._prune()
        return checkpoint

    def _write(
        self,
        step: int,
        writers: Mapping[str, Callable[[Path], None]],
        identity: Mapping[str, str],
        metrics: Mapping[str, float | int | None] | None,
        expected_bytes: int,
    ) -> Checkpoint:
        path = self.folder / f"step-{step:08d}"
        make_folder_in_place(self.folder)
        self._remove_failed_attempts()
        free = free_bytes(self.folder)
        if free < expected_bytes:
            needed = f"{format_bytes(expected_bytes)} are needed, {format_bytes(free)} are free"
            raise OSError(errno.ENOSPC, needed, str(self.folder))
        with building_folder(path, replacing=True) as temporary:
            files = {}
            for name, write in writers.items():
                write(temporary / name)
                sync_written(temporary / name)
                files[name] = {"bytes": (temporary / name).stat().st_size, "sha256": sha256_of(temporary / name)}
            write_manifest(temporary, {"step": step, **identity, "metrics": dict(metrics or {}), "files": files})
            fault = find_fault(Checkpoint(temporary, step))
            if fault:
                raise OSError(errno.EIO, f"what was written reads back otherwise: {fault.text}", str(path))
        return Checkpoint(path, step)

    def newest_valid(self, identity: Mapping[str, str], tell: Tell) -> Checkpoint | None:
        """Return the newest checkpoint that verifies; None where none was ever saved.

        One that does not verify is reported through `tell`; it is set aside under a name of SET_ASIDE_PREFIXES once
        an older one was found to go on from. A checkpoint that was whole but had not got its name yet gets it.

        Args:
            identity: what the checkpoint must belong to.
            tell: hears of each checkpoint that is passed over or recovered.

        Raises:
            NoCheckpointError: there are checkpoints, and none of them can be used; nothing is moved then.
            UsageError: those that verify belong to another experiment.
        """
        self._recover_leftovers(tell)
        passed: list[tuple[Checkpoint, Fault]] = []
        for checkpoint in reversed(self.all()):
            fault = find_fault(checkpoint, identity)
            if fault is None:
                self._set_aside(passed, tell)
                return checkpoint
            if fault.kind == "newer":
                raise NoCheckpointError(
                    f"{checkpoint.path} was written by a later release: {fault.text}.",
                    "pip install --upgrade lowmem-seq",
                )
            passed.append((checkpoint, fault))
        foreign = [(checkpoint, fault) for checkpoint, fault in passed if fault.kind == "foreign"]
        if foreign:
            raise UsageError(
                f"{foreign[0][0].path} {foreign[0][1].text}.",
                "restore the run's config.yaml; a run with other settings is a new one: lowmem-seq train",
            )
        told = [f"{checkpoint.path.name}: {fault.text}" for checkpoint, fault in passed]
        told = told or sorted(path.name for path in self._paths() if path.name.startswith(SET_ASIDE_PREFIXES))
        if told:
            raise NoCheckpointError(
                f"no checkpoint in {self.folder} verifies ({'; '.join(told)}).",
                "restore the folder from a copy, or start a new run with lowmem-seq train",
            )
        return None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    def _leftovers(self) -> list[Path]:
        return [path for path in self._paths() if is_temporary(path)]

    def _sift_leftovers(self) -> list[tuple[Checkpoint, Fault | None]]:
        """Delete what is unfinished or was to go; return what may be whole and lacks its name, oldest first."""
        found = []
        for leftover in self._leftovers():
            step = step_of(name_wanted(leftover)) if leftover.is_dir() else None
            if step is None or leftover.with_name(name_wanted(leftover)).exists():
                remove_leftover(leftover)
                continue
            checkpoint = Checkpoint(leftover, step)
            fault = find_fault(checkpoint)
            if fault is not None and fault.kind == "broken":
                remove_leftover(leftover)
            else:
                found.append((checkpoint, fault))
        return sorted(found, key=lambda one: one[0].step)

    def _recover_leftovers(self, tell: Tell) -> None:
        """Give a whole checkpoint its name if a kill came before the rename; delete other unfinished ones."""
        for checkpoint, fault in self._sift_leftovers():
            final = checkpoint.path.with_name(name_wanted(checkpoint.path))
            if final.exists():  # the other one of two
                remove_leftover(checkpoint.path)
            elif fault is None:
                rename(checkpoint.path, final)
                tell("checkpoint_recovered", f"{final.name} was whole and had not got its name yet: recovered")

    def _remove_failed_attempts(self) -> None:
        """Delete what earlier saves could not delete, but one checkpoint that may be needed.

        Where the disk refused to give a replaced checkpoint its name back, it may be the only whole one. So the
        newest stays, a whole one before one that can't be read now, until a save has succeeded.
        """
        found = self._sift_leftovers()
        found.sort(key=lambda one: one[1] is None)
        for checkpoint, _ in found[:-1]:
            remove_leftover(checkpoint.path)

    def _set_aside(self, passed: list[tuple[Checkpoint, Fault]], tell: Tell) -> None:
        for checkpoint, fault in passed:
            aside = self._place_aside(checkpoint, fault)
            rename(checkpoint.path, aside)
            tell(
                "checkpoint_passed_over",
                f"{checkpoint.path.name} does not verify ({fault.text}); set aside as {aside.name}",
            )

    def _place_aside(self, checkpoint: Checkpoint, fault: Fault) -> Path:
        """Return a free name; a broken checkpoint takes that of an earlier one, others may be whole and stay."""
        prefix = {"unreadable": UNREAD_PREFIX, "foreign": FOREIGN_PREFIX}.get(fault.kind, BROKEN_PREFIX)
        aside = self.folder / f"{prefix}{checkpoint.path.name}"
        if prefix == BROKEN_PREFIX:
            if aside.is_dir():
                remove_folder(aside)
            return aside
        number = 1
        while aside.exists():
            number += 1
            aside = self.folder / f"{prefix}{checkpoint.path.name}-{number}"
        return aside

    def _prune(self) -> None:
        for leftover in self._leftovers():  # there is no other writer, and the new one is safe
            remove_leftover(leftover)
        checkpoints = self.all()
        kept = set(checkpoints[-self._retention.newest :])
        if self._retention.every_steps is not None:
            kept |= {checkpoint for checkpoint in checkpoints if checkpoint.step % self._retention.every_steps == 0}
        if self._retention.best:
            kept |= {best for best in [best_of(checkpoints)] if best is not None}
        for checkpoint in checkpoints:
            if checkpoint not in kept:
                remove_folder(checkpoint.path)
        broken = [
            path
            for path in self._paths()
            if path.name.startswith(BROKEN_PREFIX) and path.is_dir() and not is_temporary(path)
        ]
        for path in broken[:-KEPT_BROKEN]:
            remove_folder(path)


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints in a folder, oldest first, verified or not; none where there is no folder."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        step = step_of(path.name)
        if step is not None and path.is_dir() and not path.is_symlink():
            found.append(Checkpoint(path, step))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def step_of(name: str) -> int | None:
    """Return the step that the name of a checkpoint's folder tells; None: it is no such name."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def bytes_on_disk(checkpoint: Checkpoint) -> int:
    """Return the size of a checkpoint's files; what is deleted meanwhile counts nothing."""
    size = 0
    with contextlib.suppress(OSError):
        for path in checkpoint.path.iterdir():
            size += path.lstat().st_size
    return size


def best_of(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint with the best validation accuracy, the newest of equals; None where none has one."""
    rated = []
    for checkpoint in checkpoints:
        try:
            accuracy = read_manifest(checkpoint)["metrics"]["val_accuracy"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(accuracy, float):
            rated.append((accuracy, checkpoint.step, checkpoint))
    return max(rated)[2] if rated else None
