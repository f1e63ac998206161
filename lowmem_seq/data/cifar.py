"""CIFAR-10 and CIFAR-100 from their binary archives (https://www.cs.toronto.edu/~kriz/cifar.html).

A record is one label byte (CIFAR-100: the coarse and the fine label) and 3072 bytes of pixels, channel by channel
and row by row. The publisher's Python archives hold the same pictures as pickles, which this project never reads.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from lowmem_seq.data.cache import downloads_folder
from lowmem_seq.data.dataset import AS_PUBLISHED, Content, PartName, Picture, Progress, Skipped, Stamp
from lowmem_seq.data.pictures import fitted
from lowmem_seq.errors import DataError
from lowmem_seq.files import sha256_of

SIDE = 32
PIXEL_BYTES = 3 * SIDE * SIDE
_RECORDS_AT_ONCE = 500


@dataclass(frozen=True)
class CifarArchive:
    """Where an archive is published, and how it is laid out."""

    url: str
    md5: str
    folder: str
    names_file: str
    label_bytes: int
    """Bytes before the pixels; the last of them is the label that is read."""
    members: tuple[tuple[PartName, str, int], ...]
    """The part, name and number of records of each file."""

    @property
    def file_name(self) -> str:
        """The archive's file name."""
        return self.url.rsplit("/", 1)[-1]


CIFAR10 = CifarArchive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    names_file="batches.meta.txt",
    label_bytes=1,
    members=(*(("train", f"data_batch_{n}.bin", 10_000) for n in range(1, 6)), ("test", "test_batch.bin", 10_000)),
)
CIFAR100 = CifarArchive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    names_file="fine_label_names.txt",
    label_bytes=2,
    members=(("train", "train.bin", 50_000), ("test", "test.bin", 10_000)),
)


class _CifarContent:
    test_part = AS_PUBLISHED

    def __init__(self, archive: CifarArchive, path: Path, tar: tarfile.TarFile) -> None:
        self.skipped = Skipped()
        self._archive = archive
        self._path = path
        self._tar = tar
        with self._member(archive.names_file) as names:
            self.classes = tuple(names.read(1 << 20).decode("utf-8").split())
        self.picture_count = sum(count for _, _, count in archive.members)

    def _member(self, name: str, size: int | None = None) -> IO[bytes]:
        inside = f"{self._archive.folder}/{name}"
        try:
            member = self._tar.getmember(inside)
            file = self._tar.extractfile(member) if member.isreg() else None
        except KeyError:
            file = None
        if file is None or (size is not None and member.size != size):
            raise DataError(
                f"{self._path} has no file {inside}" + (f" of {size} bytes." if size else "."),
                "delete the archive, so that it is downloaded again",
            )
        return file

    def hashes(self, progress: Progress) -> Iterable[tuple[str, str]]:
        progress("checking files", 0, None)
        return [(self._archive.file_name, sha256_of(self._path))]

    def pictures(self, image_size: int, progress: Progress) -> Iterator[Picture]:
        record_bytes = self._archive.label_bytes + PIXEL_BYTES
        done = 0
        for part, name, count in self._archive.members:
            with self._member(name, count * record_bytes) as file:
                while block := file.read(_RECORDS_AT_ONCE * record_bytes):
                    records = np.frombuffer(block, np.uint8).reshape(-1, record_bytes)  # (B, record_bytes)
                    labels = records[:, self._archive.label_bytes - 1]
                    pixels = records[:, self._archive.label_bytes :].reshape(-1, 3, SIDE, SIDE)  # (B, 3, H, W)
                    pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))  # (B, H, W, 3)
                    if int(labels.max()) >= len(self.classes):
                        raise DataError(
                            f"{self._path}: {name} has the label {labels.max()}, and there are "
                            f"{len(self.classes)} classes.",
                            "delete the archive, so that it is downloaded again",
                        )
                    for label, picture in zip(labels.tolist(), pixels, strict=True):
                        yield Picture(part, label, fitted(picture, image_size))
                    done += len(records)
                    progress("reading images", done, self.picture_count)


@dataclass(frozen=True)
class CifarDataset:
    """CIFAR-10 or CIFAR-100, downloaded unless its archive is in the cache's downloads folder."""

    name: str
    archive: CifarArchive

    @property
    def source(self) -> str:
        """The catalogue name."""
        return self.name

    def stamps(self) -> Iterable[Stamp]:
        """The published archive: its MD5 decides, whether it is here or not."""
        return [Stamp(self.archive.md5, 0, 0)]

    @contextlib.contextmanager
    def opened(self, progress: Progress) -> Iterator[Content]:
        """Download the archive if it isn't here, and open it.

        Raises:
            DataError: it can't be downloaded, or is not what it should be.
        """
        from lowmem_seq.data.torchvision_compat import download  # imports torch

        path = download(self.name, self.archive.url, self.archive.md5, downloads_folder(), progress)
        try:
            with tarfile.open(path, "r:gz") as tar:
                yield _CifarContent(self.archive, path, tar)
        except (tarfile.TarError, EOFError) as error:
            raise DataError(
                f"{path} can't be read: {error}", "delete it, so that it is downloaded again"
            ) from error
