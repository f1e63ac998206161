"""The one file layer: whatever is written through it is there wholly, or not at all.

Each write goes to a temporary name in the same folder, is synced to the disk, and takes its final name by one
rename; then the folder is synced, so that the name survives a power cut too. What is deleted takes a temporary name
first, so that no reader ever meets half of it. disk.py has what differs between systems, and
docs/concepts/checkpoints.md says what this protects against.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lowmem_seq.disk import Disk, SystemDisk

TEMPORARY_MARK = ".partial-"
"""In the name of what is being written; a checkpoint in which all verifies may yet be given the name it wanted."""
REMOVED_MARK = ".removed-"
"""In the name of what is being deleted; it wants no name (`name_wanted` returns it as it is), so that a checkpoint
that was to go is never brought back."""
LARGEST_JSON_BYTES = 2 * 10**6

_disk: Disk = SystemDisk()


@contextlib.contextmanager
def using(disk: Disk) -> Iterator[None]:
    """Have everything in the block go through another disk: one that records, or fails on purpose."""
    global _disk
    before, _disk = _disk, disk
    try:
        yield
    finally:
        _disk = before


def temporary_beside(path: Path, mark: str = TEMPORARY_MARK) -> Path:
    """Return a fresh name in the folder of `path`, recognised by `is_temporary`."""
    return path.with_name(f"{path.name}{mark}{uuid.uuid4().hex[:8]}")


def is_temporary(path: Path) -> bool:
    """Whether `path` is a leftover of a write or a deletion that never ended."""
    return TEMPORARY_MARK in path.name or REMOVED_MARK in path.name


def name_wanted(path: Path) -> str:
    """Return the name that a temporary file or folder was to take."""
    return path.name.partition(TEMPORARY_MARK)[0]


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it where they are missing; their names are on the disk on return.

    Raises:
        OSError: what the disk said, or ENODEV where not even the root is there.
    """
    if folder.is_dir():
        return
    if folder.parent == folder:
        raise OSError(errno.ENODEV, "there is no such disk", str(folder))
    make_folder(folder.parent)
    make_folder_in_place(folder)


def make_folder_in_place(folder: Path) -> None:
    """Make a folder in one that must be there; its name is on the disk on return. One that is there is as good."""
    if folder.is_dir():
        return
    with contextlib.suppress(FileExistsError):  # another process was faster
        _disk.make_folder(folder)
    _disk.sync_folder(folder.parent)


@contextlib.contextmanager
def needing(folder: Path, what: str) -> Iterator[None]:
    """Where the block fails because a folder is gone, say so with ENODEV: its disk was pulled out, and may return.

    The error of the block itself may be any: ENOENT under an empty mount point, ENODEV, EACCES.
    """
    try:
        yield
    except OSError as error:
        if _is_there(folder):
            raise
        raise OSError(errno.ENODEV, f"{what} is gone", str(folder)) from error


def _is_there(folder: Path) -> bool:
    try:
        return stat.S_ISDIR(folder.stat().st_mode)
    except OSError:
        return False


def sync_written(path: Path) -> None:
    """Return when the bytes of a file that somebody else wrote are on the disk."""
    with path.open("rb+") as file:
        _disk.sync_file(file)


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name in the same folder, lastingly."""
    _disk.rename(source, target)
    _disk.sync_folder(target.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder; from the first moment on nothing stands under its name."""
    doomed = temporary_beside(folder, REMOVED_MARK)
    rename(folder, doomed)
    _disk.remove_tree(doomed)


def remove_leftover(path: Path) -> None:
    """Delete what a write that never ended left, if the disk lets go of it."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            _disk.remove_tree(path)
        else:
            _disk.remove_file(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    Raises:
        OSError: what the disk said; the temporary file is gone then, and `path` is as it was.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            _disk.sync_file(file)
        _disk.rename(temporary, path)
    except BaseException:
        remove_leftover(temporary)
        raise
    _disk.sync_folder(path.parent)


@contextlib.contextmanager
def placing(path: Path) -> Iterator[Path]:
    """Give a name in a temporary folder; the file that the block has a library write there becomes `path`.

    A library may leave files of its own beside the one it writes; they go with the folder.

    Raises:
        OSError: what the disk said; the temporary folder is gone then, and `path` is as it was.
    """
    temporary = temporary_beside(path)
    _disk.make_folder(temporary)
    try:
        yield temporary / path.name
        sync_written(temporary / path.name)
        _disk.rename(temporary / path.name, path)
    finally:
        remove_leftover(temporary)
    _disk.sync_folder(path.parent)


@contextlib.contextmanager
def building_folder(path: Path, replacing: bool = False) -> Iterator[Path]:
    """Make a temporary folder that becomes the folder `path` when the block ends without an error.

    The folder above must be there, and the block syncs the files inside. A folder that is already at `path`
    stays, and the new one is dropped (whoever came first has built the same), unless `replacing`: then the old one
    goes when the new one is whole.
    """
    temporary = temporary_beside(path)
    _disk.make_folder(temporary)
    try:
        yield temporary
        _disk.sync_folder(temporary)
        if replacing and path.is_dir():
            _exchange(temporary, path)
            return
        try:
            _disk.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
            _disk.remove_tree(temporary)
    except BaseException:
        remove_leftover(temporary)
        raise
    _disk.sync_folder(path.parent)


def _exchange(new: Path, path: Path) -> None:
    """Put the whole folder `new` in the place of the one at `path`, which is deleted last."""
    # Between the two renames nothing stands under the name. The old one has the mark of what is written and not of
    # what is removed: so it can be recovered like the new one, if neither gets the name.
    old = temporary_beside(path)
    _disk.rename(path, old)
    try:
        _disk.rename(new, path)
    except BaseException:
        _disk.rename(old, path)
        raise
    _disk.sync_folder(path.parent)
    remove_leftover(old)


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file in one write; if the file ends in a torn line, on a fresh line.

    Raises:
        OSError: what the disk said, or ENODEV where the file's folder is gone; a part of the line may be there.
    """
    with needing(path.parent, "the folder"):
        _disk.append(path, (b"\n" if _ends_torn(path) else b"") + line + b"\n")


def _ends_torn(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            return end > 0 and file.read(1) != b"\n"
    except FileNotFoundError:
        return False


def copy_file(source: Path, target: Path) -> None:
    """Make `target` a copy of a file's bytes, atomically."""
    with source.open("rb") as original, writing(target) as file:
        shutil.copyfileobj(original, file)


def write_text(path: Path, text: str) -> None:
    """Replace the file's content by `text`, atomically."""
    with writing(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """Replace the file's content by `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_limited(path: Path, largest_bytes: int) -> bytes:
    """Return a file's bytes.

    Raises:
        OSError: the file can't be read.
        ValueError: it is larger than anything of its kind.
    """
    with path.open("rb") as file:
        content = file.read(largest_bytes + 1)
    if len(content) > largest_bytes:
        raise ValueError(f"{path.name} has over {largest_bytes:,} bytes")
    return content


def parse_json(content: bytes) -> Any:
    """Return the JSON value in UTF-8 text.

    Raises:
        ValueError: it is no JSON, or nested without end.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path, largest_bytes: int = LARGEST_JSON_BYTES) -> Any:
    """Return the JSON value in the file.

    Raises:
        OSError: the file can't be read.
        ValueError: it holds no JSON, or more of it than anything here writes.
    """
    return parse_json(read_limited(path, largest_bytes))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the file's bytes as hexadecimal digits."""
    with path.open("rb") as file:
        if sys.version_info >= (3, 11):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()
