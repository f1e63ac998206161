"""What the file layer asks of a disk, and where Linux, macOS and Windows differ in it.

On macOS a plain fsync leaves the data in the drive's cache, so F_FULLFSYNC is asked for; network volumes don't know
it, and get the plain one. Windows can't sync folders: its rename is durable with the journal of the volume. It
refuses to rename what another program (mostly a scanner) has open, so a refused rename is tried again for two
seconds. And its errors have codes of their own, many of which Python tells as EACCES or EINVAL.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import IO, Any, Protocol

from lowmem_seq.errors import DiskError

RENAME_WAITS_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOTTY, errno.EOPNOTSUPP})
TROUBLE = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS", "ENXIO", "ENODEV", "ESTALE")
    if hasattr(errno, name)
)
"""Errors that freeing space, plugging a disk in again or waiting may mend."""
WINDOWS_FULL = frozenset({39, 112})
WINDOWS_LOCKED = frozenset({5, 32, 33})
"""Access denied, sharing violation, lock violation: what a file says that another program has open."""
WINDOWS_FAILING = frozenset({21, 23, 55, 59, 64, 1117})
"""Not ready, CRC, network resource gone, network error, network name gone, I/O device error."""
WINDOWS_JUNCTION = 0xA0000003
"""IO_REPARSE_TAG_MOUNT_POINT; Python 3.12 is the first that has a function for it."""
WINDOWS_TROUBLE = WINDOWS_FULL | WINDOWS_LOCKED | WINDOWS_FAILING


class Disk(Protocol):
    """The operations that change a disk; the tests have a second form, which records them."""

    def sync_file(self, file: IO[Any]) -> None:
        """Return when the bytes written to an open file are on the disk itself."""

    def sync_folder(self, folder: Path) -> None:
        """Return when the folder's names are on the disk itself."""

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or folder another name; a file that has the name already is replaced."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder whose parent is there."""

    def remove_file(self, path: Path) -> None:
        """Delete a file, if it is there."""

    def remove_tree(self, folder: Path) -> None:
        """Delete a folder and all in it; links in it are removed, not followed."""

    def append(self, path: Path, data: bytes) -> None:
        """Add bytes to the end of a file in one write; the file is made where there is none."""


class SystemDisk:
    """The disk of this system.

    Args:
        platform: as sys.platform says it; a test gives another one.
    """

    def __init__(self, platform: str = sys.platform) -> None:
        self._platform = platform

    def sync_file(self, file: IO[Any]) -> None:
        """See Disk."""
        file.flush()
        self._sync(file.fileno())

    def sync_folder(self, folder: Path) -> None:
        """See Disk."""
        if self._platform == "win32":
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            self._sync(descriptor)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        finally:
            os.close(descriptor)

    def _sync(self, descriptor: int) -> None:
        if self._platform == "darwin":
            fcntl: Any = importlib.import_module("fcntl")
            try:
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
            else:
                return
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """See Disk."""
        for wait_seconds in RENAME_WAITS_SECONDS if self._platform == "win32" else ():
            with contextlib.suppress(PermissionError):
                source.replace(target)
                return
            time.sleep(wait_seconds)
        source.replace(target)

    def make_folder(self, folder: Path) -> None:
        """See Disk."""
        folder.mkdir()

    def remove_file(self, path: Path) -> None:
        """See Disk."""
        path.unlink(missing_ok=True)

    def remove_tree(self, folder: Path) -> None:
        """See Disk."""
        shutil.rmtree(folder)

    def append(self, path: Path, data: bytes) -> None:
        """See Disk. A link in the file's place is refused (Windows: followed)."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(path, flags, 0o666)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)


def is_link(path: Path) -> bool:
    """Whether a path leads elsewhere: a symbolic link, or a junction of Windows. What is gone leads nowhere."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISLNK(status.st_mode) or getattr(status, "st_reparse_tag", 0) == WINDOWS_JUNCTION


def free_bytes(folder: Path) -> int:
    """Return what this user may still write to the disk that `folder` lies on."""
    return shutil.disk_usage(folder).free


def is_trouble(error: OSError, platform: str = sys.platform) -> bool:
    """Whether the disk is full, fails or is gone, which may pass, and not the request is wrong.

    On Windows a refused access counts too: mostly another program has the file open.
    """
    if platform == "win32" and (
        isinstance(error, PermissionError) or getattr(error, "winerror", None) in WINDOWS_TROUBLE
    ):
        return True
    return error.errno in TROUBLE


def as_disk_error(error: Exception) -> DiskError | None:
    """Return what a disk's trouble is told as; None where an error is another one."""
    if isinstance(error, OSError) and is_trouble(error):
        return DiskError(f"the disk refused: {error}.", "make room on the disk; what was saved before stands")
    return None


def errno_of(code: int, platform: str = sys.platform) -> int:
    """Return the errno of a code that a library tells as the system's: on Windows it is one of Windows' own."""
    if platform != "win32":
        return code
    if code in WINDOWS_FULL:
        return errno.ENOSPC
    if code in WINDOWS_LOCKED:
        return errno.EACCES
    return errno.EIO if code in WINDOWS_FAILING else errno.EINVAL
