"""A pack that comes from another machine, byte by byte; it gets its name when all of it is here and verified.

<cache>/packs/fetched-32px-0123456789ab.partial-arriving/
    told.json       what was told of it; what came of another one is thrown away
    train.images    as much as has come of it
    ...

What is here stays when the line or this process breaks off, and the next one goes on from there. A file is synced
before it grows past the next SYNC_BYTES, so a power cut costs no more than that much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import TracebackType
from typing import IO, NamedTuple

import msgspec
import numpy as np

from lowmem_seq.data.cache import arriving_folder, discard, packs_folder
from lowmem_seq.data.dataset import PART_NAMES
from lowmem_seq.data.pack import DESCRIPTION, Pack, PackDescription, file_sizes
from lowmem_seq.data.prepare import pack_name
from lowmem_seq.errors import DataError
from lowmem_seq.files import make_folder, read_json, remove_leftover, rename, sync_written, write_json

TOLD = "told.json"
SYNC_BYTES = 2**24
_BLOCK_BYTES = 2**20
_DAMAGED_HINT = "start again; if it ends so again, verify the pack on the host: lowmem-seq data show"


class Missing(NamedTuple):
    """What is to come next."""

    name: str
    """Of a file."""
    start: int
    """The first byte of it that isn't here."""
    size: int
    """Of the whole file."""


class ArrivingPack:
    """What is here of a pack, and what is missing. To be closed, which `with` does.

    Args:
        description: what is told of it; its files must be as long as its pictures need.
        progress: hears how many bytes of what an earlier try left were looked at.

    Raises:
        OSError: what the disk said.
    """

    def __init__(
        self, description: PackDescription, progress: Callable[[int], object] = lambda _done: None
    ) -> None:
        name = pack_name("fetched", description.fingerprint, description.image_size)
        self._description, self._progress = description, progress
        self._target = packs_folder() / name
        self._folder = arriving_folder(self._target)
        self._sizes = file_sizes(description)
        self._left = list(self._sizes)
        self._start = 0
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self.total_bytes = sum(self._sizes.values())
        self._keep_what_fits()
        self._go_on()

    @property
    def missing(self) -> Missing | None:
        """What `append` is to be given next; None: all is here."""
        return Missing(self._left[0], self._start, self._sizes[self._left[0]]) if self._left else None

    @property
    def here_bytes(self) -> int:
        """How much of all files is here."""
        return self.total_bytes - sum(self._sizes[name] for name in self._left) + self._start

    def append(self, data: bytes) -> None:
        """Add to the file that `missing` names, in pieces that divide SYNC_BYTES; its last piece may be shorter.

        Raises:
            OSError: what the disk said; what was here stays.
            DataError: the file is whole now, and not what was told. It is thrown away.
        """
        assert self._file is not None
        if self._start and self._start % SYNC_BYTES == 0:
            sync_written(self._folder / self._left[0])
        rest = memoryview(data)
        while rest:  # a disk that is nearly full may take a part
            rest = rest[self._file.write(rest) :]
        self._digest.update(data)
        self._start += len(data)
        if not self._bytes_left:
            self._end_file()
            self._go_on()

    def finish(self) -> Pack:
        """Give the pack its name, once nothing is missing.

        Raises:
            OSError: what the disk said.
            DataError: its labels are others than was told. They are thrown away.
        """
        self._require_labels()
        write_json(self._folder / DESCRIPTION, msgspec.to_builtins(self._description))
        remove_leftover(self._folder / TOLD)
        if self._target.exists():
            discard(self._target)  # damaged, or it would have been taken
        rename(self._folder, self._target)
        return Pack.open(self._target)

    def close(self) -> None:
        """Let go of the file that is under way."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> ArrivingPack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _bytes_left(self) -> int:
        return self._sizes[self._left[0]] - self._start

    def _keep_what_fits(self) -> None:
        """Throw away what came of another pack, as of the same images decoded by another release of a library."""
        make_folder(self._folder)
        path = self._folder / TOLD
        try:
            fits = msgspec.convert(read_json(path), PackDescription) == self._description
        except (OSError, ValueError):
            fits = False
        if not fits:
            for name in self._sizes:
                remove_leftover(self._folder / name)
            write_json(path, msgspec.to_builtins(self._description))

    def _go_on(self) -> None:
        """Open the first file that is not whole, at the first byte of it that isn't here."""
        while self._left:
            self._open_first()
            if self._bytes_left:
                return
            self._end_file()

    def _open_first(self) -> None:
        """Open a file, cut back to what is surely on the disk; one that is whole and something else is emptied."""
        name, size = self._left[0], self._sizes[self._left[0]]
        path = self._folder / name
        path.touch()
        self._file = path.open("r+b", buffering=0)
        found = path.stat().st_size
        self._start = size if found == size else max(0, found - 1) // SYNC_BYTES * SYNC_BYTES
        self._digest = self._hash(self._start)
        if size and self._start == size and self._digest.hexdigest() != self._description.files[name].sha256:
            self._start, self._digest = 0, hashlib.sha256()
        self._file.truncate(self._start)
        self._file.seek(self._start)

    def _hash(self, end: int) -> hashlib._Hash:
        """Return the hash of the first bytes of the open file."""
        assert self._file is not None
        digest, done = hashlib.sha256(), 0
        while done < end and (block := self._file.read(min(_BLOCK_BYTES, end - done))):
            digest.update(block)
            done += len(block)
            self._progress(self.here_bytes - end + done)
        return digest

    def _end_file(self) -> None:
        """Have a file that is whole on the disk, and see that it is what was told."""
        name = self._left[0]
        path = self._folder / name
        sync_written(path)
        self.close()
        if self._digest.hexdigest() != self._description.files[name].sha256:
            remove_leftover(path)
            raise DataError(
                f"{name} came with the SHA-256 {self._digest.hexdigest()[:12]}..., and the host told of "
                f"{self._description.files[name].sha256[:12]}...",
                _DAMAGED_HINT,
            )
        del self._left[0]
        self._start = 0

    def _require_labels(self) -> None:
        """See that each picture has a class, and each class as many as was told."""
        classes = len(self._description.classes)
        for part in PART_NAMES:
            path = self._folder / f"{part}.labels"
            counts = np.zeros(classes, np.int64)
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    labels = np.frombuffer(block, "<i4")
                    known = labels[(labels >= 0) & (labels < classes)]
                    counts += np.bincount(known, minlength=classes)
            if tuple(counts.tolist()) != self._description.parts[part].by_class:
                remove_leftover(path)
                raise DataError(
                    f"the labels that came for {part} are not those that the host told of.", _DAMAGED_HINT
                )
