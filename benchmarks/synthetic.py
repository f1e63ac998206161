"""Datasets of any size that nobody has: packs in the project's own form, without a source that was ever read.

A sparse one is a file of that length without content: the system gives noughts for it, and it takes no room on the
disk. A written one holds random pixels, one block of them again and again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from lowmem_seq.data.cache import packs_folder, remember
from lowmem_seq.data.fingerprint import quick_key
from lowmem_seq.data.pack import (
    CHANNELS,
    DESCRIPTION,
    Pack,
    PackDescription,
    PackedFile,
    PartCounts,
    SkippedFiles,
)
from lowmem_seq.data.prepare import find_dataset
from lowmem_seq.files import make_folder, write_json

CLASSES = 8
TEST_IMAGES = 64
BLOCK_IMAGES = 1024
ROOM_BYTES = 10**9
"""What must stay free on the disk beside a written pack."""
NOT_HASHED = "0" * 64
"""In the place of a file's SHA-256, which training never looks at."""


@contextlib.contextmanager
def using_cache(folder: Path) -> Iterator[None]:
    """Have this process and its children keep packs and remembered plans in a folder."""
    before = os.environ.get("LOWMEM_SEQ_CACHE")
    os.environ["LOWMEM_SEQ_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["LOWMEM_SEQ_CACHE"]
        if before is not None:
            os.environ["LOWMEM_SEQ_CACHE"] = before


def make_pack(images: int, image_size: int, written: bool) -> Pack:
    """Return a pack with so many training pictures, of which each class has as many; it may be there already.

    Args:
        images: in its train part; a multiple of the classes.
        image_size: the pictures' side in pixels.
        written: whether its pixels are on the disk.

    Raises:
        OSError: they don't fit on the disk.
    """
    name = f"synthetic-{images}-{'written' if written else 'sparse'}-{image_size}px"
    folder = packs_folder() / name
    if (folder / DESCRIPTION).is_file():
        return Pack.open(folder)
    make_folder(folder)
    counts = {"train": images, "test": TEST_IMAGES}
    picture_bytes = image_size**2 * CHANNELS
    files = {}
    if written and shutil.disk_usage(folder).free < images * picture_bytes + ROOM_BYTES:
        raise OSError(f"{folder} has no room for {images} pictures")
    for part, count in counts.items():
        (np.arange(count) % CLASSES).astype("<i4").tofile(folder / f"{part}.labels")
        with (folder / f"{part}.images").open("wb") as file:
            if written:
                _write_pixels(file.fileno(), count, picture_bytes)
            else:
                file.truncate(count * picture_bytes)
        files[f"{part}.images"] = PackedFile(count * picture_bytes, NOT_HASHED)
        files[f"{part}.labels"] = PackedFile(count * 4, NOT_HASHED)
    described = PackDescription(
        name=name,
        source=name,
        classes=tuple(f"class-{number}" for number in range(CLASSES)),
        image_size=image_size,
        fingerprint=name,
        test_part="nothing was read",
        parts={
            "train": PartCounts(images, (images // CLASSES,) * CLASSES),
            "test": PartCounts(TEST_IMAGES, (TEST_IMAGES // CLASSES,) * CLASSES),
        },
        mean=(0.5, 0.5, 0.5),
        deviation=(0.25, 0.25, 0.25),
        skipped=SkippedFiles(0, {}, ()),
        files=files,
    )
    write_json(folder / DESCRIPTION, msgspec.to_builtins(described))
    return Pack.open(folder)


def _write_pixels(descriptor: int, count: int, picture_bytes: int) -> None:
    """Write random pictures to the disk."""
    draws = np.random.default_rng(0)
    block = draws.integers(0, 256, min(count, BLOCK_IMAGES) * picture_bytes, np.uint8).tobytes()
    left = count * picture_bytes
    while left:
        left -= os.write(descriptor, block[: min(left, len(block))])
    os.fsync(descriptor)


def forget(pack: Pack) -> None:
    """Have the system forget what it keeps of a pack in memory, where it can be asked to."""
    for path in pack.folder.glob("*.images"):
        with path.open("rb") as file:
            if sys.platform == "linux":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def as_source(pack: Pack) -> str:
    """Return what `--data` takes for this pack: an empty folder that is remembered as packed so."""
    folder = packs_folder().parent / "sources" / pack.description.name
    make_folder(folder)
    dataset = find_dataset(str(folder))
    remember(quick_key(dataset.source, dataset.stamps(), pack.image_size), pack.folder)
    return str(folder)
