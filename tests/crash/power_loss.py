"""What a disk may show when the power is back: after every prefix of a record, with every loss that is allowed.

A name is safe once its folder was synced, a content once its file was; neither makes the other safe. Of the changes
of names that are not safe, any may have reached the disk and any not; the two ends of a rename go together. A
content that is not safe may be there wholly, by half, as zeros, as it was before, or not at all.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.crash.recording import ROOT, Content, Expect, Names, Operation, RecordingDisk, Sync

Tree = tuple[tuple[str, bytes | None], ...]
"""Every path below the root with the file's content, None for a folder."""
ENOUGH_VIOLATIONS = 3


@dataclass(frozen=True)
class Violation:
    """Something that must not be found."""

    after: str
    """The operation that was the last one before the power went."""
    paths: tuple[str, ...]
    found: Hashable


@dataclass(frozen=True)
class Findings:
    """How many different trees were looked at, and what was wrong with the first few."""

    trees: int
    violations: list[Violation]


class _Platter:
    """What is safe on the disk, and what is still on its way."""

    def __init__(self, record: RecordingDisk) -> None:
        self._names = {folder: dict(names) for folder, names in record.names_before.items()}
        self._contents = dict(record.contents_before)
        self._names_under_way: list[Names] = []
        self._contents_under_way: dict[int, bytes] = {}

    def take(self, operation: Operation) -> None:
        if isinstance(operation, Names):
            self._names_under_way.append(operation)
        elif isinstance(operation, Content):
            self._contents_under_way[operation.file] = operation.content
        elif isinstance(operation, Sync):
            self._sync(operation.what)

    def _sync(self, what: int) -> None:
        if what in self._contents_under_way:
            self._contents[what] = self._contents_under_way.pop(what)
        still_under_way = []
        for change in self._names_under_way:
            if any(folder == what for folder, _, _ in change.changes):
                _apply(change, self._names)
            else:
                still_under_way.append(change)
        self._names_under_way = still_under_way

    def trees(self) -> Iterator[Tree]:
        """Yield each tree that may be found if the power goes now."""
        within_reach = self._within_reach()
        changes = [
            change
            for change in self._names_under_way
            if any(folder in within_reach for folder, _, _ in change.changes)
        ]
        shapes = set()
        for arrived in itertools.product((False, True), repeat=len(changes)):
            names = {folder: dict(entries) for folder, entries in self._names.items()}
            for change in itertools.compress(changes, arrived):
                _apply(change, names)
            shapes.add(tuple(_paths(names, ROOT, "", self._is_folder)))
        for shape in shapes:
            yield from self._filled(shape)

    def _within_reach(self) -> set[int]:
        """Every folder that has a name in at least one of the trees."""
        edges = [(folder, number) for folder, names in self._names.items() for number in names.values()]
        edges += [
            (folder, number)
            for change in self._names_under_way
            for folder, _, number in change.changes
            if number is not None
        ]
        reached = {ROOT}
        while new := {number for folder, number in edges if folder in reached} - reached:
            reached |= new
        return reached

    def _is_folder(self, number: int) -> bool:
        return number not in self._contents and number not in self._contents_under_way

    def _filled(self, shape: tuple[tuple[str, int], ...]) -> Iterator[Tree]:
        choices = [[(path, content) for content in self._shown(number)] for path, number in shape]
        yield from itertools.product(*choices)

    def _shown(self, number: int) -> set[bytes | None]:
        """What may be read from a file."""
        if self._is_folder(number):
            return {None}
        safe = self._contents.get(number, b"")
        if number not in self._contents_under_way:
            return {safe}
        full = self._contents_under_way[number]
        kept = len(safe) if full.startswith(safe) else 0  # an append leaves what was there
        half = full[: kept + (len(full) - kept) // 2]
        zeros = full[:kept] + bytes(len(full) - kept)
        return {safe, full[:kept], half, zeros, full}


def _apply(change: Names, names: dict[int, dict[str, int]]) -> None:
    for folder, name, number in change.changes:
        entries = names.setdefault(folder, {})
        if number is None:
            entries.pop(name, None)
        else:
            entries[name] = number


def _paths(
    names: dict[int, dict[str, int]], folder: int, above: str, is_folder: Callable[[int], bool]
) -> Iterator[tuple[str, int]]:
    for name, number in sorted(names.get(folder, {}).items()):
        yield f"{above}{name}", number
        if is_folder(number):
            yield from _paths(names, number, f"{above}{name}/", is_folder)


def write_tree(tree: Tree, folder: Path) -> None:
    """Make a folder that looks like this."""
    folder.mkdir()
    for path, content in tree:
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


def lose_power_everywhere(record: RecordingDisk, look: Callable[[Path], Hashable], workshop: Path) -> Findings:
    """Look at each tree that a power cut may leave, and compare what is found with what the record expects.

    Args:
        record: what was done; before its first `expect` nothing is looked at.
        look: returns what it finds in a folder, which it may change; an exception is a finding too.
        workshop: a folder to build the trees in.
    """
    platter = _Platter(record)
    expected: frozenset[Hashable] | None = None
    found: dict[Tree, Hashable] = {}
    violations: list[Violation] = []
    for position, operation in enumerate(record.operations):
        if isinstance(operation, Expect):
            expected = operation.outcomes
        platter.take(operation)
        for tree in platter.trees() if expected is not None else ():
            if tree not in found:
                found[tree] = _found(tree, look, workshop / "tree")
            if expected is not None and found[tree] not in expected:
                after = f"operation {position}: {operation}"
                violations.append(Violation(after, tuple(path for path, _ in tree), found[tree]))
                if len(violations) == ENOUGH_VIOLATIONS:
                    return Findings(len(found), violations)
    return Findings(len(found), violations)


def _found(tree: Tree, look: Callable[[Path], Hashable], folder: Path) -> Hashable:
    write_tree(tree, folder)
    try:
        return look(folder)
    except Exception as error:
        return repr(error)
    finally:
        shutil.rmtree(folder)
