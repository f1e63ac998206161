"""From what a user calls a dataset to its pack: the one entrance.

A source that hasn't changed since it was packed is answered from memory, without reading it. Else it is hashed,
and packed unless a pack with the same fingerprint is there. Of several processes that prepare the same at once the
first one builds, and the others wait for its pack; where the disk knows no locks each builds aside, and the first
to end wins.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lowmem_seq.data.cache import (
    discard,
    one_at_a_time,
    packs_folder,
    recall,
    remember,
    remove_leftovers,
)
from lowmem_seq.data.catalogue import CATALOGUE, HOST
from lowmem_seq.data.dataset import Content, Dataset, Progress, silent
from lowmem_seq.data.fingerprint import fingerprint, quick_key
from lowmem_seq.data.pack import CHANNELS, DESCRIPTION, Pack, PackHeader, writing_pack
from lowmem_seq.data.sources import ImageFolder, ImageZip
from lowmem_seq.errors import DataError, UsageError, nearest
from lowmem_seq.files import is_temporary, make_folder
from lowmem_seq.units import format_bytes

SPARE_BYTES = 50 * 10**6
"""What must stay free on the disk beside a new pack."""
_FINGERPRINT_DIGITS = 12


def find_dataset(source: str) -> Dataset:
    """Return the dataset that `source` means: a catalogue name, or the path of a folder or zip.

    A catalogue name wins over a folder of the same name; `./shapes` means the folder.

    Raises:
        UsageError: a word that is neither a catalogue name nor a path.
        DataError: a path where nothing is, or something else than a folder or zip; or a host's images.
    """
    if source in CATALOGUE:
        return CATALOGUE[source].dataset()
    if source == HOST:
        raise DataError(
            f"{HOST} stands for images that came from another machine, which only a run that joins it can fetch.",
            "name the same ones on this machine: --data PATH",
        )
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        return ImageFolder(path)
    if path.is_file():
        if zipfile.is_zipfile(path):
            return ImageZip(path)
        raise DataError(f"{path} is neither a folder nor a zip.", "give a folder or a zip of images: --data PATH")
    known = f"the catalogue has {', '.join(CATALOGUE)}; or give a folder or a zip of images: --data PATH"
    hint = f"{nearest(source, [*CATALOGUE, *_images_beside(source)])} {known}".strip()
    if Path(source).name == source and not Path(source).suffix:
        raise UsageError(f"there is no dataset or folder named {source!r}.", hint)
    raise DataError(f"there is nothing at {path}.", hint)


def _images_beside(source: str) -> Iterator[str]:
    """Yield the folders and zips that lie where a path leads, as they would be typed."""
    typed = Path(source)
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # the last: ~somebody who is not known here
        for entry in typed.expanduser().parent.iterdir():
            if entry.is_dir() or entry.suffix == ".zip":
                yield str(typed.with_name(entry.name))


def prepare(source: str, image_size: int, progress: Progress = silent) -> Pack:
    """Return the pack of `source` at `image_size`, built if there is none yet.

    Raises:
        UsageError: an unknown name.
        DataError: the source is missing, broken, can't be downloaded, or doesn't fit on the disk.
    """
    dataset = find_dataset(source)
    remove_leftovers()
    with disk_errors_explained():
        key = quick_key(dataset.source, dataset.stamps(), image_size)
        pack = _usable(recall(key))
        if pack is None:
            with one_at_a_time(key, lambda: progress("waiting for the same images to be packed", 0, None)):
                pack = _usable(recall(key))
                if pack is None:
                    with dataset.opened(progress) as content:
                        pack = _packed(dataset, content, image_size, progress)
                    remember(key, pack.folder)
    return pack


def find_pack(source: str, image_size: int) -> Pack | None:
    """Return the pack that an unchanged `source` has already, without building one.

    Raises:
        UsageError: an unknown name.
        DataError: nothing is at that path.
    """
    dataset = find_dataset(source)
    return _usable(recall(quick_key(dataset.source, dataset.stamps(), image_size)))


def pack_name(name: str, fingerprint: str, image_size: int) -> str:
    """Return the name of a pack's folder in the cache."""
    return f"{name}-{image_size}px-{fingerprint[:_FINGERPRINT_DIGITS]}"


def kept_pack(fingerprint: str, image_size: int) -> Pack | None:
    """Return the pack in the cache that has this fingerprint, whatever it was made from."""
    for folder in sorted(packs_folder().glob(pack_name("*", fingerprint, image_size))):
        pack = _usable(folder)
        if pack is not None and pack.fingerprint == fingerprint:
            return pack
    return None


def packs() -> list[Pack]:
    """Every undamaged pack in the cache, by name."""
    folders = sorted(packs_folder().glob("*")) if packs_folder().is_dir() else []
    found = (_usable(folder) for folder in folders if not is_temporary(folder))
    return [pack for pack in found if pack is not None]


def _usable(folder: Path | None) -> Pack | None:
    if folder is None or not (folder / DESCRIPTION).is_file():
        return None
    try:
        return Pack.open(folder)
    except DataError:
        return None


def _packed(dataset: Dataset, content: Content, image_size: int, progress: Progress) -> Pack:
    """Return the pack of an opened dataset: one that has its fingerprint, or a new one."""
    print_ = fingerprint(content.hashes(progress), image_size)
    pack = kept_pack(print_, image_size)
    if pack is not None:
        return pack
    folder = packs_folder() / pack_name(dataset.name, print_, image_size)
    if folder.exists():
        progress("replacing a damaged pack", 0, None)
        discard(folder)
    require_space(content.picture_count * image_size**2 * CHANNELS)
    header = PackHeader(
        name=dataset.name,
        source=dataset.source,
        classes=content.classes,
        image_size=image_size,
        fingerprint=print_,
        test_part=content.test_part,
    )
    with writing_pack(folder, header, content.skipped) as writer:
        for part, label, pixels in content.pictures(image_size, progress):
            writer.add(part, pixels, label)
    return Pack.open(folder)


def require_space(needed_bytes: int) -> None:
    """See that there is room on the disk for a pack, or for what is missing of it.

    Raises:
        DataError: there is not.
    """
    make_folder(packs_folder())
    free_bytes = shutil.disk_usage(packs_folder()).free
    if free_bytes < needed_bytes + SPARE_BYTES:
        raise DataError(
            f"the pack needs {format_bytes(needed_bytes)}, and {format_bytes(free_bytes)} are free in "
            f"{packs_folder()} (of which {format_bytes(SPARE_BYTES)} should stay free).",
            "free some space, or set LOWMEM_SEQ_CACHE to a folder on another disk",
        )


@contextlib.contextmanager
def disk_errors_explained() -> Iterator[None]:
    """Turn what a full or unwritable disk says into a DataError with numbers."""
    try:
        yield
    except OSError as error:
        place = packs_folder()
        while not place.exists():
            place = place.parent
        free = format_bytes(shutil.disk_usage(place).free)
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        what = "the disk is full" if full else f"the cache can't be written ({error})"
        raise DataError(
            f"{what}: {free} are free in {place}.",
            "free some space, or set LOWMEM_SEQ_CACHE to a folder on another disk",
        ) from error
