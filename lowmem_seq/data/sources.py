"""A folder or a zip of images as a dataset: what is in it, its bytes, and the pictures that they are.

Names are taken as they would be on every system (NFC, `/`), and a zip's members are never unpacked to disk. A
file that can't be read is counted and listed; a class that loses more than half of its images is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lowmem_seq.data.dataset import Content, Picture, Progress, Skipped, Stamp
from lowmem_seq.data.fingerprint import is_ignored, normalised
from lowmem_seq.data.layout import LAYOUT_HINT, Layout, arrange
from lowmem_seq.data.pictures import UnreadableError, decode
from lowmem_seq.errors import DataError
from lowmem_seq.units import format_bytes

MAX_FILE_BYTES = 200 * 10**6


class _Files(Protocol):
    """Named bytes; `names` are normalised, relative, and without what systems leave behind."""

    names: list[str]
    folders: list[str]

    def read(self, position: int) -> bytes:
        """The bytes of the file `names[position]`; raises UnreadableError."""


def _checked_size(size: int) -> int:
    if size > MAX_FILE_BYTES:
        raise UnreadableError(f"over {format_bytes(MAX_FILE_BYTES)}")
    return size


class _FolderFiles:
    def __init__(self, root: Path, skipped: Skipped) -> None:
        self.names: list[str] = []
        self.folders: list[str] = []
        self.stamps: list[Stamp] = []
        self._paths: list[str] = []
        self._root = Path(os.path.realpath(root))
        self._walk(self._root, "", skipped)

    def _walk(self, folder: Path, prefix: str, skipped: Skipped) -> None:
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"the folder {folder} can't be read: {error.strerror}.", "check its permissions"
            ) from error
        for entry in entries:
            name = normalised(prefix + entry.name)
            if is_ignored(name):
                continue
            if entry.is_symlink():
                target = Path(os.path.realpath(entry.path))
                if not target.is_relative_to(self._root):
                    skipped.add(name, "a link that leaves the folder")
                    continue
                if not target.is_file():
                    skipped.add(name, "a link to a folder, or to nothing")
                    continue
            if entry.is_dir():
                self.folders.append(name)
                self._walk(Path(entry.path), name + "/", skipped)
            elif entry.is_file():
                status = entry.stat()
                self.names.append(name)
                self._paths.append(entry.path)
                self.stamps.append(Stamp(name, status.st_size, status.st_mtime_ns))

    def read(self, position: int) -> bytes:
        try:
            with open(self._paths[position], "rb", buffering=0) as file:  # noqa: PTH123 - a Path an image is slow
                _checked_size(os.fstat(file.fileno()).st_size)
                return file.readall()
        except OSError as error:
            raise UnreadableError(error.strerror or "not readable") from error


class _ZipFiles:
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


class _ImageContent:
    """An opened folder or zip of images."""

    def __init__(self, files: _Files, skipped: Skipped, source: str) -> None:
        self.skipped = skipped
        self._source = source
        self._files = files
        try:
            self._layout: Layout = arrange(files.names, files.folders, skipped)
        except DataError as error:
            raise DataError(f"{source} can't be used: {error.message}", error.hint) from error
        self._digests: list[bytes] = []

    @property
    def classes(self) -> tuple[str, ...]:
        return self._layout.classes

    @property
    def picture_count(self) -> int:
        return len(self._layout.files)

    @property
    def test_part(self) -> str:
        return self._layout.test_part

    def hashes(self, progress: Progress) -> Iterable[tuple[str, str]]:
        self._digests = []
        for done, file in enumerate(self._layout.files):
            progress("checking files", done, self.picture_count)
            try:
                digest = hashlib.sha256(self._files.read(file.position)).digest()
            except UnreadableError:
                digest = b""
            self._digests.append(digest)
            yield file.name, digest.hex() or "unreadable"

    def pictures(self, image_size: int, progress: Progress) -> Iterator[Picture]:
        in_class: Counter[int] = Counter()
        broken: Counter[int] = Counter()
        in_train: Counter[int] = Counter()
        examples: dict[int, str] = {}
        for done, file in enumerate(self._layout.files):
            progress("reading images", done, self.picture_count)
            in_class[file.label] += 1
            try:
                data = self._files.read(file.position)
                if self._digests and hashlib.sha256(data).digest() != self._digests[done]:
                    raise DataError(f"{self._source}: {file.name} changed while it was read.", "run it again")
                pixels = decode(data, image_size)
            except UnreadableError as error:
                broken[file.label] += 1
                examples[file.label] = f"{file.name}: {error}"
                self.skipped.add(file.name, str(error))
                continue
            in_train[file.label] += file.part == "train"
            yield Picture(file.part, file.label, pixels)
        progress("reading images", self.picture_count, self.picture_count)
        self._check(in_class, broken, in_train, examples)

    def _check(
        self, in_class: Counter[int], broken: Counter[int], in_train: Counter[int], examples: dict[int, str]
    ) -> None:
        for label, name in enumerate(self.classes):
            if 2 * broken[label] > in_class[label]:
                raise DataError(
                    f"{self._source}: {broken[label]} of the {in_class[label]} images of the class {name} can't be "
                    f"read (for example {examples[label]}).",
                    "replace or remove the broken files",
                )
            if not in_train[label]:
                raise DataError(f"{self._source}: the class {name} has no readable train image.", LAYOUT_HINT)


def _short_name(path: Path) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", path.stem.lower() if path.is_file() else path.name.lower()).strip("-")
    return plain[:40] or "images"


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, laid out CLASS/file or train/CLASS/file."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name, in letters, digits and dashes."""
        return _short_name(self.path)

    @property
    def source(self) -> str:
        """The absolute path."""
        return str(self.path)

    def stamps(self) -> Iterable[Stamp]:
        """The files' names, sizes and modification times."""
        return _FolderFiles(self.path, Skipped()).stamps

    @contextlib.contextmanager
    def opened(self, progress: Progress) -> Iterator[Content]:
        """List the folder."""
        progress("listing files", 0, None)
        skipped = Skipped()
        yield _ImageContent(_FolderFiles(self.path, skipped), skipped, self.source)


@dataclass(frozen=True)
class ImageZip:
    """A zip of images, laid out CLASS/file or train/CLASS/file."""

    path: Path

    @property
    def name(self) -> str:
        """The zip's name, in letters, digits and dashes."""
        return _short_name(self.path)

    @property
    def source(self) -> str:
        """The absolute path."""
        return str(self.path)

    def stamps(self) -> Iterable[Stamp]:
        """The zip's own size and modification time."""
        status = self.path.stat()
        return [Stamp(self.path.name, status.st_size, status.st_mtime_ns)]

    @contextlib.contextmanager
    def opened(self, progress: Progress) -> Iterator[Content]:
        """List the zip.

        Raises:
            DataError: it is broken, encrypted, or has members outside of itself.
        """
        progress("listing files", 0, None)
        try:
            archive = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise DataError(f"{self.path} can't be read as a zip: {error}", "copy or download it again") from error
        with archive:
            yield _ImageContent(_ZipFiles(self.path, archive), Skipped(), self.source)
