"""A folder or a zip of images as a dataset: its content, checked, and the pictures that its files are.

A file that can't be read is counted and listed; a class that loses more than half of its images is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lowmem_seq.data.dataset import Content, Picture, Progress, Skipped, Stamp
from lowmem_seq.data.layout import LAYOUT_HINT, Layout, arrange
from lowmem_seq.data.members import FolderFiles, NamedFiles, ZipFiles, open_zip
from lowmem_seq.data.pictures import UnreadableError, decode
from lowmem_seq.errors import DataError


class _ImageContent:
    """An opened folder or zip of images."""

    def __init__(self, files: NamedFiles, skipped: Skipped, source: str) -> None:
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
        return FolderFiles(self.path, Skipped()).stamps

    @contextlib.contextmanager
    def opened(self, progress: Progress) -> Iterator[Content]:
        """List the folder."""
        progress("listing files", 0, None)
        skipped = Skipped()
        yield _ImageContent(FolderFiles(self.path, skipped), skipped, self.source)


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
        with open_zip(self.path) as archive:
            yield _ImageContent(ZipFiles(self.path, archive), Skipped(), self.source)
