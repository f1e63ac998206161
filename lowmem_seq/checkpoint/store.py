"""The checkpoints of a run: each exists wholly or not at all, and the newest that verifies wins.

A checkpoint is a folder `step-00000200` with its files and a manifest.json, written last, that holds the size and
SHA-256 of each, and its own. It is built under a temporary name and renamed when all of it is on the disk. An older
one is deleted only after its successor was read back and verified. docs/concepts/checkpoints.md has the format.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lowmem_seq.disk import free_bytes
from lowmem_seq.errors import NoCheckpointError, UsageError
from lowmem_seq.files import (
    building_folder,
    is_temporary,
    make_folder,
    name_wanted,
    parse_json,
    read_limited,
    remove_folder,
    remove_leftover,
    rename,
    sha256_of,
    sync_written,
    writing,
)
from lowmem_seq.units import format_bytes

FORMAT_VERSION = 2
"""Version 1 (2026-11-22) had no `manifest_sha256` and no `metrics`; it can still be read."""
MANIFEST = "manifest.json"
LARGEST_MANIFEST_BYTES = 10**6
LARGEST_COUNTERS_BYTES = 10**4
"""Of state.json; JSON takes up to 25 times its length in memory when it is read."""
MOST_FILES = 64
BROKEN_PREFIX = "broken-"
KEPT_BROKEN = 2
"""Checkpoints that were set aside and stay for a look at them."""
_STEP_NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,17})")
_SEAL = '"manifest_sha256": "{}"'
_SEALED = re.compile(_SEAL.format("([0-9a-f]{64})"))
_FILE_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Checkpoint:
    """One saved step."""

    path: Path
    step: int


@dataclass(frozen=True)
class Fault:
    """What keeps a checkpoint from being used.

    broken: it is not as it was written. unreadable: the disk doesn't let it be read, now. newer: a later release
    wrote it. foreign: it belongs to another experiment.
    """

    kind: Literal["broken", "unreadable", "newer", "foreign"]
    text: str


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest, the one with the best validation accuracy, and every so many steps."""

    newest: int
    best: bool = False
    every_steps: int | None = None


class CheckpointStore:
    """The checkpoints folder of one run."""

    def __init__(self, folder: Path, retention: Retention) -> None:
        self.folder = folder
        self._retention = retention

    def all(self) -> list[Checkpoint]:
        """Return the checkpoints on disk, oldest first, verified or not."""
        found = []
        for path in self._paths():
            step = step_of(path.name)
            if step is not None and path.is_dir() and not path.is_symlink():
                found.append(Checkpoint(path, step))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def save(
        self,
        step: int,
        writers: Mapping[str, Callable[[Path], None]],
        identity: Mapping[str, str],
        metrics: Mapping[str, float | int | None] | None = None,
        expected_bytes: int = 0,
    ) -> Checkpoint:
        """Write a checkpoint, verify it, and delete those that are too many.

        Args:
            step: optimizer steps that are in it.
            writers: for each file's name, a function that writes it under the path it is given.
            identity: what the checkpoint belongs to (hashes of the experiment and of the data).
            metrics: what was measured of these weights; `val_accuracy` decides which one is the best.
            expected_bytes: what the files need; with less free on the disk nothing is begun.

        Raises:
            OSError: what the disk said, or EIO where what was written reads back otherwise; the checkpoints before
                this one stay as they are.
        """
        path = self.folder / f"step-{step:08d}"
        make_folder(self.folder)
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
            manifest = {"format_version": FORMAT_VERSION, "step": step, **identity}
            manifest |= {"metrics": dict(metrics or {}), "files": files}
            with writing(temporary / MANIFEST) as file:
                file.write(_sealed(manifest))
        checkpoint = Checkpoint(path, step)
        fault = find_fault(checkpoint)
        if fault:
            raise OSError(errno.EIO, f"what was written reads back otherwise: {fault.text}", str(path))
        with contextlib.suppress(OSError):  # the new one is safe; the next save tries to delete again
            self._prune()
        return checkpoint

    def newest_valid(self, identity: Mapping[str, str], tell: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest checkpoint that verifies; None where none was ever saved.

        One that does not verify is reported through `tell`; it is set aside under the name `broken-...` once an
        older one was found to go on from. A checkpoint that was whole but had not got its name yet gets it.

        Args:
            identity: what the checkpoint must belong to.
            tell: hears a sentence for people about each checkpoint that is passed over or recovered.

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
        told = told or sorted(path.name for path in self._paths() if path.name.startswith(BROKEN_PREFIX))
        if told:
            raise NoCheckpointError(
                f"no checkpoint in {self.folder} verifies ({'; '.join(told)}).",
                "restore the folder from a copy, or start a new run with lowmem-seq train",
            )
        return None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    def _recover_leftovers(self, tell: Callable[[str], None]) -> None:
        """Give a whole checkpoint its name if a kill came before the rename; delete other unfinished ones."""
        for leftover in self._paths():
            if not is_temporary(leftover):
                continue
            step = step_of(name_wanted(leftover))
            final = leftover.with_name(name_wanted(leftover))
            if step is None or final.exists() or not leftover.is_dir():
                remove_leftover(leftover)
                continue
            fault = find_fault(Checkpoint(leftover, step))
            if fault is None:
                rename(leftover, final)
                tell(f"{final.name} was whole and had not got its name yet: recovered")
            elif fault.kind == "broken":  # any other may be whole
                remove_leftover(leftover)

    def _set_aside(self, passed: list[tuple[Checkpoint, Fault]], tell: Callable[[str], None]) -> None:
        for checkpoint, fault in passed:
            aside = checkpoint.path.with_name(f"{BROKEN_PREFIX}{checkpoint.path.name}")
            if aside.is_dir():
                remove_folder(aside)
            rename(checkpoint.path, aside)
            tell(f"{checkpoint.path.name} does not verify ({fault.text}); set aside as {aside.name}")

    def _prune(self) -> None:
        checkpoints = self.all()
        kept = set(checkpoints[-self._retention.newest :])
        if self._retention.every_steps is not None:
            kept |= {checkpoint for checkpoint in checkpoints if checkpoint.step % self._retention.every_steps == 0}
        if self._retention.best:
            kept |= {best for best in [best_of(checkpoints)] if best is not None}
        for checkpoint in checkpoints:
            if checkpoint not in kept:
                remove_folder(checkpoint.path)
        broken = [path for path in self._paths() if path.name.startswith(BROKEN_PREFIX) and path.is_dir()]
        for path in broken[:-KEPT_BROKEN]:
            remove_folder(path)


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


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest's bytes with `manifest_sha256`: the SHA-256 of the bytes with zeros in its place."""
    text = json.dumps({**manifest, "manifest_sha256": _NO_DIGEST}, indent=2, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text.replace(_SEAL.format(_NO_DIGEST), _SEAL.format(digest)).encode()


def read_manifest(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's manifest.

    Raises:
        OSError: it can't be read.
        ValueError: it is not as it was written.
    """
    _require_file(checkpoint.path / MANIFEST)
    content = read_limited(checkpoint.path / MANIFEST, LARGEST_MANIFEST_BYTES)
    manifest = parse_json(content)
    if not isinstance(manifest, dict):
        raise ValueError("it is no JSON object")
    if "manifest_sha256" in manifest or manifest.get("format_version") != 1:
        digests = _SEALED.findall(content.decode("utf-8"))
        if len(digests) != 1:
            raise ValueError("it has no checksum of its own")
        blank = _SEALED.sub(_SEAL.format(_NO_DIGEST), content.decode("utf-8"))
        if hashlib.sha256(blank.encode()).hexdigest() != digests[0]:
            raise ValueError("it has changed since it was written")
    return manifest


class _NoPlainFileError(ValueError):
    """A link, a folder, a pipe or a device stands where a file should."""


def find_fault(checkpoint: Checkpoint, identity: Mapping[str, str] | None = None) -> Fault | None:
    """Return what keeps a checkpoint from being used, or None if every file is as its manifest says.

    Args:
        checkpoint: what is looked at; nothing is changed.
        identity: what it must belong to; None asks for nothing.
    """
    try:
        return _find_fault(checkpoint, identity or {})
    except OSError as error:
        name = Path(error.filename).name if error.filename else "a file"
        if isinstance(error, FileNotFoundError):
            return Fault("broken", f"{name} is missing")
        return Fault("unreadable", f"{name} can't be read: {error.strerror}")
    except _NoPlainFileError as error:
        return Fault("broken", str(error))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Fault("broken", f"its manifest can't be read: {error}")


def _find_fault(checkpoint: Checkpoint, identity: Mapping[str, str]) -> Fault | None:
    manifest = read_manifest(checkpoint)
    version = manifest["format_version"]
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        later = isinstance(version, int) and version > FORMAT_VERSION
        text = f"format version {version} is not known to this release"
        return Fault("newer" if later else "broken", text)
    if manifest["step"] != checkpoint.step:
        return Fault("broken", f"it holds step {manifest['step']}")
    files: dict[str, Any] = manifest["files"]
    if not 0 < len(files) <= MOST_FILES:
        return Fault("broken", f"its manifest names {len(files) or 'no'} files")
    for name, expected in files.items():
        if not _FILE_NAME.fullmatch(name):
            return Fault("broken", f"its manifest names a file outside of it: {name}")
        size = _require_file(checkpoint.path / name)
        if size != expected["bytes"]:
            return Fault("broken", f"{name} has {size} bytes, and {expected['bytes']} are expected")
        if sha256_of(checkpoint.path / name) != expected["sha256"]:
            return Fault("broken", f"{name} has changed since it was written")
    differing = [key for key, value in identity.items() if manifest.get(key) != value]
    if differing:
        return Fault("foreign", f"belongs to another experiment (other {' and '.join(differing)})")
    return None


def _require_file(path: Path) -> int:
    """Return a file's size.

    Raises:
        OSError: it is not there.
        ValueError: it is a link, a folder or a device.
    """
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise _NoPlainFileError(f"{path.name} is no plain file")
    return status.st_size
