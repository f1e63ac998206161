"""A disk that writes down all that is done below a folder, so that a test can take it back as a power cut would.

Before each call the folder is compared with what is known of it. So what went past the file layer is written down
too, as work that nobody synced.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lowmem_seq.disk import SystemDisk

ROOT = 0
"""The number of the folder that is recorded; every file and folder below it has a number of its own for life."""


@dataclass(frozen=True)
class Names:
    """Names that change together, each (folder, name, what it names from now on or None)."""

    changes: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True)
class Content:
    """What a file holds from now on."""

    file: int
    content: bytes


@dataclass(frozen=True)
class Sync:
    """A file's content, or a folder's names, are on the disk itself."""

    what: int


@dataclass(frozen=True)
class Expect:
    """What may be found if the power goes from here on."""

    outcomes: frozenset[Hashable]


Operation = Names | Content | Sync | Expect


class RecordingDisk:
    """Implements Disk for one folder, and keeps the record of it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._disk = SystemDisk()
        self._names: dict[int, dict[str, int]] = {ROOT: {}}
        self._contents: dict[int, bytes] = {}
        self._operations: list[Operation] = []
        self._look()
        self.names_before = {folder: dict(names) for folder, names in self._names.items()}
        """What every folder held when the record began; it counts as safe."""
        self.contents_before = dict(self._contents)
        self._operations.clear()

    @property
    def operations(self) -> list[Operation]:
        """What was done so far, in order."""
        self._look()
        return self._operations

    def expect(self, *outcomes: Hashable) -> None:
        """Note what may be found from here on."""
        self._look()
        self._operations.append(Expect(frozenset(outcomes)))

    def sync_file(self, file: IO[Any]) -> None:
        file.flush()
        self._look()
        self._disk.sync_file(file)
        self._operations.append(Sync(self._number(Path(file.name))))

    def sync_folder(self, folder: Path) -> None:
        self._look()
        self._disk.sync_folder(folder)
        self._operations.append(Sync(self._number(folder)))

    def rename(self, source: Path, target: Path) -> None:
        self._look()
        self._disk.rename(source, target)
        number = self._number(source)
        self._rename((source, None), (target, number))

    def make_folder(self, folder: Path) -> None:
        self._look()
        self._disk.make_folder(folder)
        self._look()

    def remove_file(self, path: Path) -> None:
        self._look()
        self._disk.remove_file(path)
        self._look()

    def remove_tree(self, folder: Path) -> None:
        self._look()
        self._disk.remove_tree(folder)
        self._forget(folder)

    def append(self, path: Path, data: bytes) -> None:
        self._look()
        self._disk.append(path, data)
        self._look()

    def _number(self, path: Path) -> int:
        number = ROOT
        for name in path.relative_to(self._root).parts:
            number = self._names[number][name]
        return number

    def _rename(self, *changes: tuple[Path, int | None]) -> None:
        numbered = tuple((self._number(path.parent), path.name, number) for path, number in changes)
        self._operations.append(Names(numbered))
        for folder, name, number in numbered:
            if number is None:
                del self._names[folder][name]
            else:
                self._names[folder][name] = number

    def _forget(self, path: Path) -> None:
        """Write down the removal of a file, or of a folder from its innermost names on."""
        for name in sorted(self._names.get(self._number(path), {})):
            self._forget(path / name)
        self._rename((path, None))

    def _look(self) -> None:
        self._look_into(self._root)

    def _look_into(self, folder: Path) -> None:
        """Write down what has changed below a folder since the last look."""
        names = self._names[self._number(folder)]
        with os.scandir(folder) as found:
            is_folder = {entry.name: entry.is_dir(follow_symlinks=False) for entry in found}
        for name in sorted(names.keys() - is_folder.keys()):
            self._forget(folder / name)
        for name in sorted(is_folder):
            path = folder / name
            if name not in names:
                number = len(self._names) + len(self._contents)
                if is_folder[name]:
                    self._names[number] = {}
                else:
                    self._contents[number] = b""
                    self._operations.append(Content(number, b""))
                self._rename((path, number))
            if is_folder[name]:
                self._look_into(path)
            elif (content := path.read_bytes()) != self._contents[names[name]]:
                self._contents[names[name]] = content
                self._operations.append(Content(names[name], content))
