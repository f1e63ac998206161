"""A store whose checkpoints are two small texts that tell their step, and what happens to them on a disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq.checkpoint import manifest as manifest_module
from lowmem_seq.checkpoint.manifest import MANIFEST, Checkpoint
from lowmem_seq.checkpoint.store import CheckpointStore, Tell
from lowmem_seq.files import TEMPORARY_MARK, read_json, sha256_of, temporary_beside
from tests.checkpoint.builders import flip_a_bit

IDENTITY = {"experiment_sha256": "e" * 64, "data_fingerprint": "d" * 64}
BLANK = "0" * 64
FOREIGN = {**IDENTITY, "experiment_sha256": "f" * 64}


def writer_of(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def writers_of(step: int, version: str = "") -> dict[str, Callable[[Path], None]]:
    """Two small files that tell the step."""
    return {
        "model.safetensors": writer_of(f"weights of {step}{version}".encode()),
        "state.json": writer_of(json.dumps({"step": step}).encode()),
    }


def write_step(
    store: CheckpointStore,
    step: int,
    accuracy: float | None = None,
    identity: Mapping[str, str] = IDENTITY,
    version: str = "",
) -> Checkpoint:
    return store.save(step, writers_of(step, version), identity, {"val_accuracy": accuracy})


def refuse_complaints(event: str, message: str) -> None:
    raise AssertionError(f"nothing was to be told: {event}: {message}")


def ignore(event: str, message: str) -> None:
    pass


class Told(list[tuple[str, str]]):
    """Hears what is told of checkpoints, the event and its message."""

    def __call__(self, event: str, message: str) -> None:
        self.append((event, message))


def newest(store: CheckpointStore, tell: Tell = refuse_complaints) -> Checkpoint | None:
    return store.newest_valid(IDENTITY, tell)


def folder_of(step: int) -> str:
    return f"step-{step:08d}"


def steps_of(store: CheckpointStore) -> list[int]:
    return [checkpoint.step for checkpoint in store.all()]


def seal(manifest: Mapping[str, Any]) -> str:
    """A manifest's text as docs/concepts/checkpoints.md says: its checksum is that of the text with 64 zeros."""
    text = json.dumps({**manifest, "manifest_sha256": BLANK}, indent=2) + "\n"
    return text.replace(f'"manifest_sha256": "{BLANK}"', f'"manifest_sha256": "{sha256_of_text(text)}"')


def sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def edit_manifest(checkpoint: Checkpoint, **changes: Any) -> None:
    """Change a manifest as somebody would who knows how its checksum is made."""
    manifest = {**read_json(checkpoint.path / MANIFEST), **changes}
    (checkpoint.path / MANIFEST).write_text(seal(manifest))


def change_weights(checkpoint: Checkpoint) -> None:
    flip_a_bit(checkpoint.path / "model.safetensors")


def as_version_1(checkpoint: Checkpoint) -> None:
    """Write the manifest as the first release did: without a checksum of its own, without metrics."""
    manifest = read_json(checkpoint.path / MANIFEST)
    del manifest["manifest_sha256"], manifest["metrics"]
    text = json.dumps({**manifest, "format_version": 1}, indent=2) + "\n"
    (checkpoint.path / MANIFEST).write_text(text)


def refuse_to_read(monkeypatch: pytest.MonkeyPatch, code: int, *folders: str) -> None:
    """The disk doesn't let the weights in these folders be read."""

    def read(path: Path) -> str:
        if path.parent.name.startswith(folders) and path.name == "model.safetensors":
            raise OSError(code, os.strerror(code), str(path))
        return sha256_of(path)

    monkeypatch.setattr(manifest_module, "sha256_of", read)


def unname(checkpoint: Checkpoint, mark: str = TEMPORARY_MARK) -> Path:
    """Give a checkpoint a temporary name, as a kill before or between two renames leaves it."""
    return checkpoint.path.rename(temporary_beside(checkpoint.path, mark))
