"""The one file layer: whatever is written through it is there wholly, or not at all.

Each write goes to a temporary name in the same folder, is synced to the disk, and takes its final name by one
rename; then the folder is synced, so that the name survives a power cut too. On macOS a plain fsync leaves the
data in the drive's cache, so F_FULLFSYNC is asked for. Windows can't sync folders; its rename is durable with
the volume's journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

TEMPORARY_MARK = ".partial-"


def sync_file(file: IO[Any]) -> None:
    """Return when the file's bytes are on the disk itself."""
    file.flush()
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(file.fileno(), fcntl.F_FULLFSYNC)
    else:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return when the folder's names are on the disk; Windows can't, and does without."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """Return a fresh name in the folder of `path`, recognised by `is_temporary`."""
    return path.with_name(f"{path.name}{TEMPORARY_MARK}{uuid.uuid4().hex[:8]}")


def is_temporary(path: Path) -> bool:
    """Whether `path` is a leftover of a write that never ended."""
    return TEMPORARY_MARK in path.name


@contextlib.contextmanager
def placing(path: Path) -> Iterator[Path]:
    """Give a temporary name; the file that the block writes there becomes `path` when the block ends.

    Raises:
        OSError: what the disk said; the temporary file is gone then, and `path` is as it was.
    """
    temporary = temporary_beside(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            sync_file(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes `path` when the block ends without an error; see `placing`."""
    with placing(path) as temporary, temporary.open("xb") as file:
        yield file


@contextlib.contextmanager
def building_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder that becomes the folder `path` when the block ends without an error.

    The files inside are written by the block, each through `writing`. A folder that is already at `path` stays,
    and the new one is dropped: whoever came first has built the same.
    """
    temporary = temporary_beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_folder(temporary)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            shutil.rmtree(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the file's content by `text`, atomically."""
    with writing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """Replace the file's content by `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the JSON value in the file.

    Raises:
        OSError: the file can't be read.
        ValueError: it holds no JSON.
    """
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the file's bytes as hexadecimal digits."""
    with path.open("rb") as file:
        if sys.version_info >= (3, 11):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()
