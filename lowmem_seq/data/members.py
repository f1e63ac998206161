"""The files in a folder or a zip: their names as they would be on every system (NFC, `/`), and their bytes.

A zip's members are never unpacked to disk, and a name that leads out of it is refused.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from lowmem_seq.data.dataset import Skipped, Stamp
from lowmem_seq.data.fingerprint import is_ignored, normalised
from lowmem_seq.data.pictures import UnreadableError
from lowmem_seq.errors import DataError
from lowmem_seq.units import format_bytes

MAX_FILE_BYTES = 200 * 10**6


class NamedFiles(Protocol):
    """Named bytes; `names` are normalised, relative, and without what systems leave behind."""

    names: list[str]
    folders: list[str]

    def read(self, position: int) -> bytes:
        """The bytes of the file `names[position]`; raises UnreadableError."""


def _checked_size(size: int) -> int:
    if size > MAX_FILE_BYTES:
        raise UnreadableError(f"over {format_bytes(MAX_FILE_BYTES)}")
    return size


def walk(root: Path, skipped: Skipped) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield each file and folder below `root` with its normalised relative name, folder by folder, sorted by name.

    What systems leave behind is left out. So are links that lead out of `root` or to folders, which are counted.

    Raises:
        DataError: a folder can't be read.
    """
    return _walk(Path(os.path.realpath(root)), "", Path(os.path.realpath(root)), skipped)


def _walk(folder: Path, prefix: str, root: Path, skipped: Skipped) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"the folder {folder} can't be read: {error.strerror}.", "check its permissions") from error
    for entry in entries:
        name = normalised(prefix + entry.name)
        if is_ignored(name):
            continue
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            if not target.is_relative_to(root):
                skipped.add(name, "a link that leaves the folder")
                continue
            if not target.is_file():
                skipped.add(name, "a link to a folder, or to nothing")
                continue
        if entry.is_dir():
            yield name, entry
            yield from _walk(Path(entry.path), name + "/", root, skipped)
        elif entry.is_file():
            yield name, entry


def read_file(path: str) -> bytes:
    """Return the bytes of a file.

    Raises:
        UnreadableError: it is too large for a picture, or the system doesn't let it be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path an image is slow
            _checked_size(os.fstat(file.fileno()).st_size)
            return file.readall()
    except OSError as error:
        raise UnreadableError(error.strerror or "not readable") from error


class FolderFiles:
    """The files below a folder."""

    def __init__(self, root: Path, skipped: Skipped) -> None:
        self.names: list[str] = []
        self.folders: list[str] = []
        self.stamps: list[Stamp] = []
        self._paths: list[str] = []
        for name, entry in walk(root, skipped):
            if entry.is_dir():
                self.folders.append(name)
                continue
            status = entry.stat()
            self.names.append(name)
            self._paths.append(entry.path)
            self.stamps.append(Stamp(name, status.st_size, status.st_mtime_ns))

    def read(self, position: int) -> bytes:
        """See NamedFiles."""
        return read_file(self._paths[position])


def open_zip(path: Path) -> zipfile.ZipFile:
    """Return an opened zip.

    Raises:
        DataError: it is broken, or can't be read.
    """
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as a zip: {error}", "copy or download it again") from error


class ZipFiles:
    """The members of an opened zip.

    Raises:
        DataError: one is encrypted, or lies outside of the archive by its name.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.names: list[str] = []
        self.folders: list[str] = []
        self._archive = archive
        self._members: list[zipfile.ZipInfo] = []
        for member in archive.infolist():
            name = _member_name(member, path)
            if is_ignored(name):
                continue
            if member.is_dir() or name.endswith("/"):
                self.folders.append(name.rstrip("/"))
                continue
            if member.flag_bits & 0x1:
                raise DataError(
                    f"{path} is encrypted (its member {name!r} is).", "unpack it and give the folder: --data FOLDER"
                )
            self.names.append(name)
            self._members.append(member)

    def read(self, position: int) -> bytes:
        """See NamedFiles."""
        member = self._members[position]
        _checked_size(member.file_size)
        try:
            with self._archive.open(member) as file:
                return file.read(member.file_size)  # never more than it says, whatever it unpacks to
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
            raise UnreadableError("a broken zip member") from error
        except (NotImplementedError, RuntimeError) as error:
            raise UnreadableError("a zip member of an unknown compression") from error
        except OSError as error:
            raise UnreadableError(error.strerror or "not readable") from error


def _member_name(member: zipfile.ZipInfo, path: Path) -> str:
    """The member's normalised name.

    Raises:
        DataError: it is absolute, or climbs out of the folder that a zip would be unpacked to.
    """
    name = member.filename.replace("\\", "/")
    if not member.flag_bits & 0x800:  # no sign that the name is UTF-8, though macOS writes it so
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        raise DataError(
            f"{path} has a member {member.filename!r}, which lies outside of the archive.",
            "don't trust this archive; get it from its publisher",
        )
    return normalised(
        "/".join(part for part in name.split("/") if part not in ("", ".")) + "/" * name.endswith("/")
    )
