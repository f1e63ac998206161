"""The checkpoints of a run: each exists wholly or not at all, and the newest that verifies wins.

A checkpoint is a folder `step-00000200` with its files and a manifest.json, written last, that holds the size and
SHA-256 of each. It is built under a temporary name and renamed when all of it is on the disk. An older one is
deleted only after its successor was read back and verified.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem_seq.errors import NoCheckpointError
from lowmem_seq.files import building_folder, is_temporary, placing, read_json, sha256_of, write_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_STEP_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """One saved step."""

    path: Path
    step: int


class CheckpointStore:
    """The checkpoints folder of one run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def all(self) -> list[Checkpoint]:
        """Return the checkpoints on disk, oldest first, verified or not."""
        if not self.folder.is_dir():
            return []
        found = []
        for path in self.folder.iterdir():
            match = _STEP_NAME.fullmatch(path.name)
            if match and path.is_dir():
                found.append(Checkpoint(path, int(match[1])))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def save(
        self, step: int, writers: Mapping[str, Callable[[Path], None]], identity: Mapping[str, Any]
    ) -> Checkpoint:
        """Write a checkpoint, verify it, and delete those that are too many.

        Args:
            step: optimizer steps that are in it.
            writers: for each file's name, a function that writes it under the path it is given.
            identity: what the checkpoint belongs to (hashes of the experiment and of the data).

        Raises:
            OSError: what the disk said; the checkpoints before this one stay as they are.
            NoCheckpointError: what was written reads back differently.
        """
        path = self.folder / f"step-{step:08d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with building_folder(path) as temporary:
            files = {}
            for name, write in writers.items():
                with placing(temporary / name) as file:
                    write(file)
                written = temporary / name
                files[name] = {"bytes": written.stat().st_size, "sha256": sha256_of(written)}
            manifest = {"format_version": FORMAT_VERSION, "step": step, **identity, "files": files}
            write_json(temporary / MANIFEST, manifest)
        checkpoint = Checkpoint(path, step)
        fault = find_fault(checkpoint)
        if fault:
            raise NoCheckpointError(f"the checkpoint just written is broken: {fault}", "check the disk")
        self._prune()
        return checkpoint

    def newest_valid(self, complain: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest checkpoint that verifies; None where none was ever saved.

        A broken one is reported through `complain` and set aside under the name `broken-...`.

        Raises:
            NoCheckpointError: there are checkpoints, and none of them verifies.
        """
        for leftover in self.folder.glob("*") if self.folder.is_dir() else ():
            if is_temporary(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        faults = []
        for checkpoint in reversed(self.all()):
            fault = find_fault(checkpoint)
            if fault is None:
                return checkpoint
            faults.append(f"{checkpoint.path.name}: {fault}")
            aside = checkpoint.path.with_name(f"broken-{checkpoint.path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.path.rename(aside)
            complain(f"checkpoint {checkpoint.path.name} does not verify ({fault}); set aside as {aside.name}")
        broken = sorted(path.name for path in self.folder.glob("broken-step-*")) if self.folder.is_dir() else []
        if broken:
            raise NoCheckpointError(
                f"no checkpoint in {self.folder} verifies ({'; '.join(faults) or ', '.join(broken)}).",
                "restore the folder from a copy, or start a new run with lowmem-seq train",
            )
        return None

    def _prune(self) -> None:
        for checkpoint in self.all()[: -self._keep]:
            shutil.rmtree(checkpoint.path)


def read_identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a checkpoint that verifies belongs to, as it was given to `save`."""
    manifest = read_json(checkpoint.path / MANIFEST)
    return {key: value for key, value in manifest.items() if key not in ("format_version", "step", "files")}


def find_fault(checkpoint: Checkpoint) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file is as its manifest says."""
    try:
        manifest = read_json(checkpoint.path / MANIFEST)
        version, step, files = manifest["format_version"], manifest["step"], manifest["files"]
        if version != FORMAT_VERSION:
            return f"format version {version} is not known to this release"
        if step != checkpoint.step:
            return f"it holds step {step}"
        if not files:
            return "its manifest names no files"
        for name, expected in files.items():
            if Path(name).name != name:
                return f"its manifest names a file outside of it: {name}"
            path = checkpoint.path / name
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, and {expected['bytes']} are expected"
            if sha256_of(path) != expected["sha256"]:
                return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest can't be read: {error}"
    return None
