"""Pictures that somebody points at, without classes: image files, folders with all that is below them, zips.

They are read one after the other. What grows with their number is the list of one folder's names: 38,000 more took
10 MB more (one run, Linux).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lowmem_seq.data.dataset import Pixels, Skipped
from lowmem_seq.data.members import ZipFiles, open_zip, read_file, walk
from lowmem_seq.data.pictures import UnreadableError, decode, is_image_name
from lowmem_seq.errors import DataError


@dataclass(frozen=True)
class Input:
    """One picture, brought to the size that was asked for, or why it could not be."""

    name: str
    """Its path, as it was given; below a folder or in a zip with its name there."""
    pixels: Pixels | None
    """(S, S, 3)"""
    fault: str | None


def require_inputs(paths: Iterable[Path]) -> None:
    """See that there is something at each path.

    Raises:
        DataError: there is nothing, or what is there is neither a file nor a folder.
    """
    for path in paths:
        if not path.exists():
            raise DataError(f"there is nothing at {path}.", "give images, folders of images, or zips of images")
        if not path.is_file() and not path.is_dir():
            raise DataError(f"{path} is neither a file nor a folder.", "give images, folders, or zips of images")


def read_inputs(paths: Iterable[Path], image_size: int, skipped: Skipped) -> Iterator[Input]:
    """Yield the pictures at these paths, each made as a pack's pictures are.

    A file is read as a zip if it is one, else as a picture whatever its name is. In folders and zips, files that
    don't have the name of an image are counted in `skipped`.

    Raises:
        DataError: a folder or zip can't be read.
    """
    for path in paths:
        if path.is_dir():
            for name, entry in walk(path, skipped):
                if entry.is_file() and _is_image(name, skipped):
                    yield _input(f"{path / name}", partial(read_file, entry.path), image_size)
        elif zipfile.is_zipfile(path):
            with open_zip(path) as archive:
                members = ZipFiles(path, archive)
                for position, name in enumerate(members.names):
                    if _is_image(name, skipped):
                        yield _input(f"{path / name}", partial(members.read, position), image_size)
        else:
            yield _input(str(path), partial(read_file, str(path)), image_size)


def _is_image(name: str, skipped: Skipped) -> bool:
    if is_image_name(name):
        return True
    skipped.add(name, "not an image file")
    return False


def _input(name: str, read: Callable[[], bytes], image_size: int) -> Input:
    try:
        return Input(name, decode(read(), image_size), None)
    except UnreadableError as error:
        return Input(name, None, str(error))
