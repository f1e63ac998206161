"""Disks for the tests: one that lists what it is asked for and refuses on purpose, one that doesn't wait."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO, Any

from lowmem_seq.disk import SystemDisk
from lowmem_seq.files import REMOVED_MARK, TEMPORARY_MARK, is_temporary


class RefusingDisk:
    """The system's disk, with a list of what it was asked for: `rename plan.json~ to plan.json`.

    `~` stands for the mark of what is written, `!` for the mark of what is removed.

    Args:
        refuse_at: the number of the request that is refused, counted from 0; nothing of it is done.
        to_the_end: whether all requests after it are refused too.
        code: the error's number.
    """

    def __init__(self, refuse_at: int | None = None, to_the_end: bool = False, code: int = errno.EIO) -> None:
        self.asked: list[str] = []
        self._disk = SystemDisk()
        self._refuse_at, self._to_the_end, self._code = refuse_at, to_the_end, code

    def _ask(self, what: str) -> None:
        number = len(self.asked)
        self.asked.append(what)
        if self._refuse_at is None or number < self._refuse_at:
            return
        if self._to_the_end or number == self._refuse_at:
            raise OSError(self._code, os.strerror(self._code))

    def sync_file(self, file: IO[Any]) -> None:
        self._ask(f"sync file {_shown(Path(file.name))}")
        self._disk.sync_file(file)

    def sync_folder(self, folder: Path) -> None:
        self._ask(f"sync folder {_shown(folder)}")
        self._disk.sync_folder(folder)

    def rename(self, source: Path, target: Path) -> None:
        self._ask(f"rename {_shown(source)} to {_shown(target)}")
        self._disk.rename(source, target)

    def make_folder(self, folder: Path) -> None:
        self._ask(f"make folder {_shown(folder)}")
        self._disk.make_folder(folder)

    def remove_file(self, path: Path) -> None:
        self._ask(f"remove file {_shown(path)}")
        self._disk.remove_file(path)

    def remove_tree(self, folder: Path) -> None:
        self._ask(f"remove tree {_shown(folder)}")
        self._disk.remove_tree(folder)

    def append(self, path: Path, data: bytes) -> None:
        self._ask(f"append {data!r} to {_shown(path)}")
        self._disk.append(path, data)


class UnsyncedDisk(SystemDisk):
    """The system's disk, for tests with thousands of writes: nothing is synced."""

    def sync_file(self, file: IO[Any]) -> None:
        file.flush()

    def sync_folder(self, folder: Path) -> None:
        pass


def _shown(path: Path) -> str:
    name = path.name
    for mark, sign in ((TEMPORARY_MARK, "~"), (REMOVED_MARK, "!")):
        if mark in name:
            name = name.partition(mark)[0] + sign
    return f"{_shown(path.parent)}/{name}" if is_temporary(path.parent) else name
