"""The folder on this machine that keeps what is made once: packs, downloads, and what was remembered.

<cache>/packs/cifar10-32px-0123456789ab/    a pack
<cache>/downloads/                          archives as they were published
<cache>/remembered/<key>.json               which pack an unchanged source has
<cache>/plans/<key>.json                    what the planner measured (memory/remembered.py)
<cache>/locks/<key>                         held by the process that packs that source
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from lowmem_seq.files import (
    TEMPORARY_MARK,
    is_temporary,
    make_folder,
    read_json,
    remove_leftover,
    rename,
    temporary_beside,
    write_json,
)

LEFTOVER_AGE_SECONDS = 24 * 3600.0
ARRIVING = f"{TEMPORARY_MARK}arriving"
ARRIVING_AGE_SECONDS = 7 * LEFTOVER_AGE_SECONDS
"""For which what came of another machine's pack is kept, so that the rest of it can be fetched."""


def cache_folder() -> Path:
    """The folder that LOWMEM_SEQ_CACHE names, or the user's cache folder of this system."""
    chosen = os.environ.get("LOWMEM_SEQ_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("lowmem-seq"))


def packs_folder() -> Path:
    """Where packs are; it may not exist yet."""
    return cache_folder() / "packs"


def downloads_folder() -> Path:
    """Where published archives are kept, and where a user may put one by hand."""
    return cache_folder() / "downloads"


def arriving_folder(pack: Path) -> Path:
    """Return where a pack gathers that another machine sends."""
    return pack.with_name(f"{pack.name}{ARRIVING}")


def remember(key: str, pack: Path) -> None:
    """Note that the source with this quick key is packed in the folder `pack`."""
    path = cache_folder() / "remembered" / f"{key}.json"
    make_folder(path.parent)
    write_json(path, {"format_version": 1, "pack": pack.name})


def recall(key: str) -> Path | None:
    """Return the pack's folder that was remembered for this quick key, if there is one."""
    try:
        noted = read_json(cache_folder() / "remembered" / f"{key}.json")
        return packs_folder() / Path(noted["pack"]).name if noted["format_version"] == 1 else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


@contextlib.contextmanager
def one_at_a_time(key: str, waiting: Callable[[], object]) -> Iterator[None]:
    """Let one process after the other do what this key stands for; a disk that knows no locks lets all.

    Args:
        key: a name of a file.
        waiting: called once where another process is at it.
    """
    lock = FileLock(cache_folder() / "locks" / key, fallback_to_soft=False)
    try:
        make_folder(cache_folder() / "locks")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _newest_change(path: Path) -> float:
    inside = path.iterdir() if path.is_dir() else iter(())
    return max(entry.stat().st_mtime for entry in (path, *inside))


def remove_leftovers() -> None:
    """Delete what interrupted writes left in the cache, once nothing in it has changed for a day.

    What is left of a pack that another machine sent stays for a week.
    """
    for folder in (packs_folder(), cache_folder() / "remembered", cache_folder() / "plans"):
        for path in folder.glob("*") if folder.is_dir() else ():
            if not is_temporary(path):
                continue
            age_seconds = ARRIVING_AGE_SECONDS if path.name.endswith(ARRIVING) else LEFTOVER_AGE_SECONDS
            try:
                if time.time() - _newest_change(path) > age_seconds:
                    remove_leftover(path)
            except OSError:
                continue  # its writer has just renamed or removed it


def discard(folder: Path) -> None:
    """Remove a damaged folder so that its name is free at once, even while another process reads in it."""
    aside = temporary_beside(folder)
    rename(folder, aside)
    remove_leftover(aside)
