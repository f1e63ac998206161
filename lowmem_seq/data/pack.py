"""A dataset packed once: raw uint8 pixels and labels in plain files, read by position.

    <cache>/packs/cifar10-32px-0123456789ab/
        train.images    N * H * W * 3 bytes, RGB, one picture after the other
        train.labels    N int32, little endian
        test.images, test.labels
        pack.json       what it is, with the SHA-256 and size of each file; written last

Pictures are read with seek and readinto into a buffer that the caller reuses, not through a memory map: a map's
pages count as resident memory, so a training process would seem to grow with the dataset.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from lowmem_seq.data.dataset import PART_NAMES, PartName, Pixels, Skipped
from lowmem_seq.data.fingerprint import PACK_FORMAT
from lowmem_seq.errors import DataError
from lowmem_seq.files import building_folder, make_folder, read_json, sha256_of, write_json, writing

DESCRIPTION = "pack.json"
CHANNELS = 3
LABEL_BYTES = 4
_BUFFER_BYTES = 1 << 20
_DAMAGED_HINT = "delete this folder and run the command again: the dataset is packed anew"


class PackedFile(msgspec.Struct, frozen=True):
    """A file of the pack as it was written."""

    bytes: int
    sha256: str


class PartCounts(msgspec.Struct, frozen=True):
    """How many pictures a part has, in all and by class."""

    images: int
    by_class: tuple[int, ...]


class SkippedFiles(msgspec.Struct, frozen=True):
    """The source files that were left out: all are counted by reason, the first thousand are listed."""

    total: int
    reasons: dict[str, int]
    listed: tuple[tuple[str, str], ...]


class PackHeader(msgspec.Struct, frozen=True):
    """What is known of a pack before its pictures are read."""

    name: str
    source: str
    """A catalogue name, or the absolute path of a folder or zip."""
    classes: tuple[str, ...]
    image_size: int
    fingerprint: str
    test_part: str
    """How the test part came about, for people."""


class PackDescription(PackHeader, frozen=True, kw_only=True):
    """The content of pack.json."""

    format_version: Literal[1] = 1
    parts: dict[PartName, PartCounts]
    mean: tuple[float, float, float]
    """Of the train part's red, green and blue, each from 0 to 1."""
    deviation: tuple[float, float, float]
    """Standard deviation of the train part's red, green and blue, each from 0 to 1."""
    skipped: SkippedFiles
    files: dict[str, PackedFile]


def file_sizes(description: PackDescription) -> dict[str, int]:
    """Return how many bytes each file of a pack has, by how many pictures are in it."""
    picture_bytes = description.image_size**2 * CHANNELS
    return {
        f"{part}.{kind}": description.parts[part].images * each_bytes
        for part in PART_NAMES
        for kind, each_bytes in (("images", picture_bytes), ("labels", LABEL_BYTES))
    }


class _PartWriter:
    """Appends to one part's two files; holds about 1 MiB of pixels, whatever the part's size."""

    def __init__(self, images: IO[bytes], labels: IO[bytes], image_size: int, class_count: int) -> None:
        self._files = {"images": images, "labels": labels}
        self._digests = {kind: hashlib.sha256() for kind in self._files}
        self._sizes = dict.fromkeys(self._files, 0)
        held = max(1, _BUFFER_BYTES // (image_size * image_size * CHANNELS))
        self._pixels = np.empty((held, image_size, image_size, CHANNELS), np.uint8)
        self._labels = np.empty(held, "<i4")
        self._held = 0
        self.by_class = np.zeros(class_count, np.int64)
        self.sums = np.zeros(CHANNELS, np.int64)
        self.square_sums = np.zeros(CHANNELS, np.int64)

    def add(self, pixels: Pixels, label: int) -> None:
        self._pixels[self._held] = pixels
        self._labels[self._held] = label
        self._held += 1
        if self._held == len(self._pixels):
            self.flush()

    def flush(self) -> None:
        pixels, labels = self._pixels[: self._held], self._labels[: self._held]
        for kind, block in (("images", pixels.tobytes()), ("labels", labels.tobytes())):
            self._files[kind].write(block)
            self._digests[kind].update(block)
            self._sizes[kind] += len(block)
        values = pixels.reshape(-1, CHANNELS).astype(np.int64)  # (held * H * W, 3)
        self.sums += values.sum(0)  # in integers, so that every system gets the same mean
        self.square_sums += (values * values).sum(0)
        self.by_class += np.bincount(labels, minlength=len(self.by_class))
        self._held = 0

    def written(self) -> dict[str, PackedFile]:
        return {
            kind: PackedFile(bytes=self._sizes[kind], sha256=self._digests[kind].hexdigest())
            for kind in self._files
        }


class PackWriter:
    """Takes a pack's pictures one by one; made by `writing_pack`."""

    def __init__(self, parts: dict[PartName, _PartWriter], header: PackHeader) -> None:
        self._parts = parts
        self._header = header

    def add(self, part: PartName, pixels: Pixels, label: int) -> None:
        """Append one picture; pixels: (H, W, 3)."""
        self._parts[part].add(pixels, label)

    def description(self, skipped: Skipped) -> PackDescription:
        """Flush what is held, and return what pack.json is to say."""
        files: dict[str, PackedFile] = {}
        for part, writer in self._parts.items():
            writer.flush()
            files |= {f"{part}.{kind}": written for kind, written in writer.written().items()}
        train = self._parts["train"]
        values = max(1, int(train.by_class.sum()) * self._header.image_size**2)
        mean = train.sums / values / 255
        variance = np.maximum(train.square_sums / values / 255**2 - mean**2, 0.0)
        return PackDescription(
            **msgspec.structs.asdict(self._header),
            parts={
                part: PartCounts(images=int(writer.by_class.sum()), by_class=tuple(writer.by_class.tolist()))
                for part, writer in self._parts.items()
            },
            mean=tuple(mean.tolist()),
            deviation=tuple(np.sqrt(variance).tolist()),
            skipped=SkippedFiles(
                total=skipped.reasons.total(), reasons=dict(skipped.reasons), listed=tuple(skipped.listed)
            ),
            files=files,
        )


@contextlib.contextmanager
def writing_pack(folder: Path, header: PackHeader, skipped: Skipped) -> Iterator[PackWriter]:
    """Build the pack `folder` from what the block adds; it is there wholly when the block ends, or not at all.

    Raises:
        OSError: what the disk said.
    """
    make_folder(folder.parent)
    with building_folder(folder) as building:
        with contextlib.ExitStack() as stack:
            writer = PackWriter(
                {
                    part: _PartWriter(
                        stack.enter_context(writing(building / f"{part}.images")),
                        stack.enter_context(writing(building / f"{part}.labels")),
                        header.image_size,
                        len(header.classes),
                    )
                    for part in PART_NAMES
                },
                header,
            )
            yield writer
            description = writer.description(skipped)
        write_json(building / DESCRIPTION, msgspec.to_builtins(description))


class Pack:
    """An opened pack. Its files are opened at the first read, and reads may come from several threads."""

    def __init__(self, folder: Path, description: PackDescription) -> None:
        self.folder = folder
        self.description = description
        self._files: dict[PartName, IO[bytes]] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path) -> Pack:
        """Return the pack in `folder`, after a look at the sizes of its files.

        Raises:
            DataError: no pack, a damaged one, or one of a later format.
        """
        try:
            content = read_json(folder / DESCRIPTION)
        except FileNotFoundError as error:
            raise DataError(f"{folder} is no pack: it has no {DESCRIPTION}.", _DAMAGED_HINT) from error
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / DESCRIPTION} can't be read: {error}", _DAMAGED_HINT) from error
        version = content.get("format_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > PACK_FORMAT:
            raise DataError(
                f"{folder} has format version {version}, and this release reads version {PACK_FORMAT}.",
                "update lowmem-seq",
            )
        try:
            pack = cls(folder, msgspec.convert(content, PackDescription))
        except msgspec.ValidationError as error:
            raise DataError(f"{folder / DESCRIPTION} is not valid: {error}", _DAMAGED_HINT) from error
        pack._check_sizes()
        return pack

    def _check_sizes(self) -> None:
        for name, size in file_sizes(self.description).items():
            path = self.folder / name
            found = path.stat().st_size if path.is_file() else 0
            if found != size:
                raise DataError(
                    f"the pack {self.folder} is torn: {path.name} has {found} of {size} bytes.", _DAMAGED_HINT
                )

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in the order of their labels."""
        return self.description.classes

    @property
    def image_size(self) -> int:
        """Side of every picture, in pixels."""
        return self.description.image_size

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the source and the pack's settings."""
        return self.description.fingerprint

    def size(self, part: PartName) -> int:
        """How many pictures the part has."""
        return self.description.parts[part].images

    def labels(self, part: PartName) -> npt.NDArray[np.int64]:
        """Return the labels of the part: (N,)."""
        return np.fromfile(self.folder / f"{part}.labels", "<i4").astype(np.int64)

    def read(self, part: PartName, indices: npt.NDArray[np.integer], out: Pixels | None = None) -> Pixels:
        """Return the pictures at these positions: (B, H, W, 3), in `out` where it is given.

        Raises:
            IndexError: a position that the part doesn't have.
            ValueError: `out` is not a contiguous uint8 array of that shape.
            DataError: the file ends early, or can't be read.
        """
        shape = (len(indices), self.image_size, self.image_size, CHANNELS)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out must be a contiguous uint8 array of shape {shape}")
        if not len(indices):
            return out
        if not (int(indices.min()) >= 0 and int(indices.max()) < self.size(part)):
            raise IndexError(f"the {part} part has the positions 0 to {self.size(part) - 1}")
        picture_bytes = self.image_size**2 * CHANNELS
        buffer = out.data.cast("B")
        try:
            with self._lock:
                file = self._file(part)
                for place, index in enumerate(indices.tolist()):
                    file.seek(index * picture_bytes)
                    start, end = place * picture_bytes, (place + 1) * picture_bytes
                    while start < end:
                        count = file.readinto(buffer[start:end])  # type: ignore[attr-defined]
                        if not count:
                            raise DataError(
                                f"the pack {self.folder} is torn: {part}.images ends early.", _DAMAGED_HINT
                            )
                        start += count
        except OSError as error:
            raise DataError(f"the pack {self.folder} can't be read: {error}", _DAMAGED_HINT) from error
        return out

    def _file(self, part: PartName) -> IO[bytes]:
        if part not in self._files:
            file = (self.folder / f"{part}.images").open("rb", buffering=0)
            self._files[part] = file
            weakref.finalize(self, file.close)
        return self._files[part]

    def verify(self) -> None:
        """Read all of the pack and compare it with the hashes in pack.json.

        Raises:
            DataError: a file is not what was written.
        """
        for name, written in self.description.files.items():
            try:
                found = sha256_of(self.folder / name)
            except OSError as error:
                raise DataError(f"{self.folder / name} can't be read: {error}", _DAMAGED_HINT) from error
            if found != written.sha256:
                raise DataError(
                    f"the pack {self.folder} is damaged: {name} has the SHA-256 {found[:12]}..., and "
                    f"{written.sha256[:12]}... was written.",
                    _DAMAGED_HINT,
                )
