"""The control groups of Linux that bound what this process takes, versions 1 and 2, with every group around them.

A group's figures lie below the point where its hierarchy is mounted. Inside a container the group's own name may
begin above that point; then the mount point itself is the outermost group that can be seen.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

NO_LIMIT = 2**62
"""Version 1 writes the largest number of whole pages where there is no limit, 2^63 less a page."""
LONGEST_FIGURE = 40
"""Characters, with the blanks before it."""


@dataclass(frozen=True)
class GroupMemory:
    """What a group may still hold."""

    limit_bytes: int
    available_bytes: int
    pressure: float | None
    """See `MachineMemory`; version 1 doesn't measure it."""


@dataclass(frozen=True)
class _Files:
    """The names of one version's files; the least limit counts."""

    limits: tuple[str, ...]
    used: str
    inactive: bytes
    """Figures of memory.stat, the groups below included: pages of files that were not used again lately,"""
    active: bytes
    """those that were,"""
    mapped: bytes
    """and those of both that processes have mapped."""


_VERSION_1 = _Files(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    b"total_inactive_file ",
    b"total_active_file ",
    b"total_mapped_file ",
)
# above memory.high a group is throttled and swapped long before memory.max ends it
_VERSION_2 = _Files(
    ("memory.max", "memory.high"), "memory.current", b"inactive_file ", b"active_file ", b"file_mapped "
)


class ControlGroups:
    """The groups around this process; `proc` is where the system's /proc lies."""

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._membership = b""
        self._groups: list[tuple[Path, _Files]] = []

    def read(self) -> list[GroupMemory]:
        """Return the groups that have a limit, the innermost first."""
        membership = read_bytes(self._proc / "self" / "cgroup") or b""
        if membership != self._membership:  # somebody may move a process at any time
            self._membership = membership
            folders = _folders_around(*_tables(self._proc), "memory")
            self._groups = [(folder, _VERSION_1 if version == 1 else _VERSION_2) for version, folder in folders]
        read = (_read_group(folder, files) for folder, files in self._groups)
        return [group for group in read if group is not None]


def cpu_quota(proc: Path) -> float | None:
    """Return how many processors the groups around this process let it keep busy; None where that is not bounded.

    Args:
        proc: where the system's /proc lies.
    """
    quotas = []
    for version, folder in _folders_around(*_tables(proc), "cpu"):
        if version == 1:
            quota, period = _whole_number(folder / "cpu.cfs_quota_us"), _whole_number(folder / "cpu.cfs_period_us")
        else:
            words = (read_bytes(folder / "cpu.max") or b"").split()
            quota, period = (int(word) if word.isdigit() else None for word in (*words, b"", b"")[:2])
        if quota and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def read_bytes(path: Path | str) -> bytes | None:
    """Return what a file of the system holds (2 to 10 us), or None where it can't be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        read = b""
        while more := os.read(descriptor, 65536):
            read += more
        return read
    except OSError:  # a process or a group that has ended since
        return None
    finally:
        os.close(descriptor)


def read_pressure(path: Path) -> float | None:
    """Return the share of the last ten seconds in which some task waited, from a pressure file."""
    found = re.match(rb"some avg10=([0-9.]+)", read_bytes(path) or b"")
    return float(found[1]) / 100 if found else None


def figure_after(label: bytes, text: bytes) -> int | None:
    """Return the whole number that follows a label at the beginning of a line."""
    at = (b"\n" + text).find(b"\n" + label)
    if at < 0:
        return None
    words = text[at + len(label) : at + len(label) + LONGEST_FIGURE].split(None, 1)
    return int(words[0]) if words and words[0].isdigit() else None


def _tables(proc: Path) -> tuple[str, str]:
    """Return which groups this process is in, and what is mounted."""
    own = proc / "self"
    return (read_bytes(own / "cgroup") or b"").decode(), (read_bytes(own / "mountinfo") or b"").decode()


def _folders_around(membership: str, mounts: str, controller: str) -> list[tuple[int, Path]]:
    """Return the folders of a controller's groups, with their version, each from the process's own outwards."""
    found: list[tuple[int, Path]] = []
    for line in membership.splitlines():
        hierarchy, controllers, name = line.split(":", 2)
        if hierarchy == "0" and not controllers:
            version, points = 2, _mount_points(mounts, "cgroup2", None)
        elif controller in controllers.split(","):
            version, points = 1, _mount_points(mounts, "cgroup", controller)
        else:
            continue
        found += [(version, folder) for folder in _folders(name, points)]
    return found


def _mount_points(mounts: str, kind: str, option: str | None) -> list[tuple[str, Path]]:
    """Return the root within its hierarchy, and the place, of each mount of a kind; see proc(5)."""
    points = []
    for line in mounts.splitlines():
        before, found, after = line.partition(" - ")
        if not found:
            continue
        fields, (file_system, _, options) = before.split(), after.split(" ", 2)
        if file_system == kind and (option is None or option in options.split(",")):
            points.append((_unescape(fields[3]), Path(_unescape(fields[4]))))
    return points


def _folders(name: str, points: list[tuple[str, Path]]) -> list[Path]:
    """Return the folders of a group and of those around it, as far as a mount shows them."""
    for root, point in points:
        prefix = root.rstrip("/")
        if name == root or (name.startswith(prefix + "/") and ".." not in name.split("/")):
            own = point / name[len(prefix) :].lstrip("/")
            return [own, *(folder for folder in own.parents if folder.is_relative_to(point))]
    return [point for _, point in points[:1]]


def _unescape(field: str) -> str:
    """Return a field of a mount table as it is: blanks and the like stand there as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _read_group(folder: Path, files: _Files) -> GroupMemory | None:
    limits = [_whole_number(folder / name) for name in files.limits]
    limit = min((limit for limit in limits if limit is not None), default=NO_LIMIT)
    if limit >= NO_LIMIT:
        return None
    used = _whole_number(folder / files.used) or 0
    droppable = _droppable_bytes(read_bytes(folder / "memory.stat") or b"", files)
    available = min(limit, max(0, limit - used + droppable))
    return GroupMemory(limit, available, read_pressure(folder / "memory.pressure"))


def _droppable_bytes(figures: bytes, files: _Files) -> int:
    """Return the pages of files that go before anything is swapped: all but the mapped ones, mostly libraries.

    A page that was read twice is active until the kernel needs it. In a group of 300 MB all of a file of 200 MB was
    active after it had been read twice; then 150 MB more were taken, and 107 of it were left, later 15.
    """
    labels = (files.inactive, files.active, files.mapped)
    inactive, active, mapped = (figure_after(label, figures) or 0 for label in labels)
    return inactive + max(0, active - mapped)


def _whole_number(path: Path) -> int | None:
    text = (read_bytes(path) or b"").strip()
    return int(text) if text.isdigit() else None
