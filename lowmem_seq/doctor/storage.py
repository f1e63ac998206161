"""The disks where runs and the cache lie: room, locks, and what else is done with what is written there."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from lowmem_seq.data.cache import cache_folder
from lowmem_seq.disk import free_bytes
from lowmem_seq.doctor.finding import Finding, fault, note, well
from lowmem_seq.doctor.synced import synced_by
from lowmem_seq.files import rename, writing
from lowmem_seq.units import format_bytes

LEAST_BYTES = 1_000_000_000
"""Small's checkpoints and weights take half of it, CIFAR-10 with its pack the other half."""
COMFORTABLE_BYTES = 5 * 10**9
IN_MEMORY = frozenset({"tmpfs", "ramfs"})
OVER_A_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "webdav", "davfs", "fuse.sshfs", "9p"})
WITHOUT_A_JOURNAL = frozenset({"vfat", "msdos", "exfat", "fat", "fat32"})


@dataclass(frozen=True)
class Place:
    """A folder that is written to, and what is known of its disk."""

    path: str
    free_bytes: int
    file_system: str
    """Its kind, in lower case; empty where it is not known."""
    write_trouble: str = ""
    lock_trouble: str = ""
    synced_by: str | None = None


RUNS_HERE = ("runs folder", "train in another folder, or name one: --run-dir DIR")
CACHE = ("cache folder", "set LOWMEM_SEQ_CACHE to a folder on another disk")


def check_place(name: str, elsewhere: str, place: Place) -> Iterator[Finding]:
    """Say all that is wrong with a place, or that nothing is.

    Args:
        name: what lies there.
        elsewhere: how another place is chosen.
        place: what was found.
    """
    told, figures = place.path, asdict(place)
    problems = [
        *_of_writing(name, elsewhere, place),
        *(_of_room(name, elsewhere, place) if not place.write_trouble else ()),
        *_of_its_kind(name, elsewhere, place),
    ]
    if not problems:
        kind = f", {place.file_system}" if place.file_system else ""
        problems = [well(name, f"{told}: {format_bytes(place.free_bytes)} free{kind}, can be written and locked")]
    yield from (Finding(one.check, one.verdict, one.told, one.fix, figures) for one in problems)


def _of_writing(name: str, elsewhere: str, place: Place) -> Iterator[Finding]:
    if place.write_trouble:
        yield fault(name, f"{place.path} can't be written: {place.write_trouble}", elsewhere)
    elif place.lock_trouble:
        trouble = f"{place.path} knows no locks ({place.lock_trouble}), so two processes could write one run"
        yield fault(name, trouble, elsewhere)


def _of_room(name: str, elsewhere: str, place: Place) -> Iterator[Finding]:
    free = format_bytes(place.free_bytes)
    if place.free_bytes < LEAST_BYTES:
        told = f"{free} are free at {place.path}; Small with CIFAR-10 takes {format_bytes(LEAST_BYTES)}"
        yield fault(name, told, f"make room, or {elsewhere}")
    elif place.free_bytes < COMFORTABLE_BYTES:
        yield note(name, f"{free} are free at {place.path}: enough for a few runs", f"make room, or {elsewhere}")


def _of_its_kind(name: str, elsewhere: str, place: Place) -> Iterator[Finding]:
    if place.synced_by:
        yield note(
            name,
            f"{place.path} is copied to a cloud by {place.synced_by}: it uploads each checkpoint, and may lock or "
            "move files while a run writes them",
            elsewhere,
        )
    if place.file_system in IN_MEMORY:
        told = f"{place.path} lies in memory ({place.file_system}): it takes RAM from training, and is gone "
        yield note(name, told + "after a restart", elsewhere)
    elif place.file_system in OVER_A_NETWORK:
        told = (
            f"{place.path} lies on another machine ({place.file_system}): locks and syncs are only as good as it "
        )
        yield note(name, told + "keeps them", elsewhere)
    elif place.file_system in WITHOUT_A_JOURNAL:
        told = f"{place.path} is on {place.file_system}, which a power cut may damage as a whole"
        yield note(name, told, elsewhere)


def runs_place() -> Place:
    """Return what is known of where runs lie: `runs` in the current folder."""
    return look_at(Path.cwd() / "runs")


def cache_place() -> Place:
    """Return what is known of the cache folder."""
    return look_at(cache_folder())


def look_at(path: Path) -> Place:
    """Return what is known of a folder, or of the nearest above it that is there; what is tried leaves nothing."""
    there = next((folder for folder in (path, *path.parents) if folder.is_dir()), None)
    if there is None:
        return Place(str(path), 0, "", "there is no such disk")
    write_trouble, lock_trouble = _try_to_write(there)
    return Place(str(path), free_bytes(there), _file_system(there), write_trouble, lock_trouble, synced_by(path))


def _try_to_write(folder: Path) -> tuple[str, str]:
    """Return what is in the way of writing there as a checkpoint is written, and of a lock as a run has."""
    try:
        with tempfile.TemporaryDirectory(prefix=".lowmem-seq-doctor-", dir=folder) as name:
            tried = Path(name)
            with writing(tried / "file") as file:
                file.write(b"tried")
            rename(tried / "file", tried / "renamed")
            return "", _try_to_lock(tried / "lock")
    except OSError as error:
        return error.strerror or str(error), ""


def _try_to_lock(path: Path) -> str:
    """Return why a file there can't be locked, or that a second lock was given as well."""
    first, second = (FileLock(path, fallback_to_soft=False, is_singleton=False) for _ in range(2))
    try:
        with first.acquire(timeout=0), contextlib.suppress(Timeout), second.acquire(timeout=0):
            return "a second one was given to the same file"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _file_system(folder: Path) -> str:
    """Return the kind of file system that a folder lies on, by the longest mount point above it."""
    parts = [one for one in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(one.mountpoint)]
    if not parts:
        return ""
    return max(
        reversed(parts), key=lambda one: len(one.mountpoint)
    ).fstype.lower()  # the last mounted covers others
