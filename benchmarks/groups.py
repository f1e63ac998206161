"""A small machine made of a Linux control group: what runs in it holds no more than its limit, and is seen apart.

Version 1 needs root and the memory controller; version 2 a group above ours that hands memory down and that we may
write to (root, or a delegated one). A group lies outside of the one that this process is in wherever that is
possible, so that nothing but its own limit bounds it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem_seq.memory.cgroups import figure_after, read_bytes

ENTER = 'echo $$ > "$0" && exec "$@"'
"""A shell that moves itself into the group and then becomes the command: what the command holds counts there."""
SECONDS_TO_EMPTY = 10.0
LEAST_BYTES = 64 * 10**6


@dataclass(frozen=True)
class _Files:
    """The names of one version's files and figures."""

    limit: str
    swap_limit: str
    """Version 1 counts memory and swap together there, version 2 swap alone."""
    used: str
    kills: str
    anonymous: bytes


_VERSION_1 = _Files(
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.oom_control",
    b"total_rss ",
)
_VERSION_2 = _Files("memory.max", "memory.swap.max", "memory.current", "memory.events", b"anon ")


class Group:
    """A control group of its own.

    Args:
        folder: the group, made already.
        files: the names of its version's files.
    """

    def __init__(self, folder: Path, files: _Files) -> None:
        self.folder, self._files = folder, files

    def limit_to(self, size_bytes: int) -> None:
        """Let the group hold so much, and swap nothing."""
        (self.folder / self._files.limit).write_text(str(size_bytes), encoding="ascii")
        swap = self.folder / self._files.swap_limit
        if swap.exists():  # a kernel without swap has no such file
            swap.write_text(str(size_bytes if self._files is _VERSION_1 else 0), encoding="ascii")

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process in the group; `options` are Popen's."""
        return subprocess.Popen(["/bin/sh", "-c", ENTER, str(self.folder / "cgroup.procs"), *command], **options)

    def take_in(self, pid: int) -> None:
        """Move a process here; what it holds already stays counted where it was, what it starts is here too."""
        (self.folder / "cgroup.procs").write_text(str(pid), encoding="ascii")

    def anonymous_bytes(self) -> int:
        """Return the private pages that belong to no file: heaps, stacks, arrays.

        Each is counted once, however many processes share it. Not in it: pages of files (libraries, data, caches),
        shared memory, and what the kernel holds for the group. Version 1 calls it `total_rss`, which counts neither
        mapped files nor what processes share with others by a file. The kernel sums up with a delay of some dozen
        pages a processor.
        """
        return figure_after(self._files.anonymous, read_bytes(self.folder / "memory.stat") or b"") or 0

    def used_bytes(self) -> int:
        """Return all that counts against the limit, pages of files included."""
        return int((read_bytes(self.folder / self._files.used) or b"0").strip())

    def oom_kills(self) -> int:
        """Return how many of its processes were ended because the group had no memory left."""
        return figure_after(b"oom_kill ", read_bytes(self.folder / self._files.kills) or b"") or 0

    def processes(self) -> list[int]:
        """Return the processes in it."""
        return [int(pid) for pid in (read_bytes(self.folder / "cgroup.procs") or b"").split()]

    def remove(self) -> None:
        """End whatever still runs in it, and remove it.

        Raises:
            OSError: the system would not.
        """
        until = time.monotonic() + SECONDS_TO_EMPTY
        while True:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                self.folder.rmdir()
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
            else:
                return


@contextlib.contextmanager
def small_machine(limit_bytes: int | None) -> Iterator[Group]:
    """Make a group that holds no more than `limit_bytes`; at the end it is gone, with all that runs in it.

    One without a limit (None) only counts, and what runs in it notices nothing.

    Raises:
        OSError: no such group can be made here; `available` says why in words.
    """
    reasons = []
    for parent, files in _parents():
        group = Group(parent / f"lowmem-seq-{os.getpid()}-{time.monotonic_ns()}", files)
        try:
            group.folder.mkdir()
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            continue
        try:
            if limit_bytes is not None:
                group.limit_to(limit_bytes)
            yield group
        finally:
            group.remove()
        return
    raise OSError("; ".join(reasons) or "no control group hands memory down")


def available() -> str | None:
    """Return why no group can be made here, or None where it can: by making one with a process in it."""
    try:
        with small_machine(LEAST_BYTES) as group, group.start(["true"], stderr=subprocess.DEVNULL) as process:
            if process.wait() != 0:
                return "no process may be moved into a control group here"
    except OSError as error:
        return f"no control group can be made ({error})"
    return None


def _parents() -> Iterator[tuple[Path, _Files]]:
    """Yield the groups in which one that bounds memory might be made."""
    mounts = (read_bytes("/proc/self/mountinfo") or b"").decode()
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        point = Path(before.split()[4])
        if kind == "cgroup" and "memory" in options.split(","):
            yield point, _VERSION_1
        elif kind == "cgroup2":
            yield from ((parent, _VERSION_2) for parent in (point, *_around_us(point)) if _hands_down(parent))


def _around_us(point: Path) -> list[Path]:
    """Return the groups of version 2 between the mount point and our own, the innermost first."""
    for line in (read_bytes("/proc/self/cgroup") or b"").decode().splitlines():
        if line.startswith("0::/"):
            own = point / line.removeprefix("0::/")
            return [folder for folder in own.parents if folder.is_relative_to(point) and folder != point]
    return []


def _hands_down(folder: Path) -> bool:
    return b"memory" in (read_bytes(folder / "cgroup.subtree_control") or b"").split()
