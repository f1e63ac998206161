"""MNIST and Fashion-MNIST from their idx files, through torchvision's reader.

Both are grey, 28x28; a pack holds them as RGB at the size that is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowmem_seq.data.cache import downloads_folder
from lowmem_seq.data.dataset import AS_PUBLISHED, PART_NAMES, Content, PartName, Picture, Progress, Skipped, Stamp
from lowmem_seq.data.pictures import fitted
from lowmem_seq.files import sha256_of


class _IdxContent:
    test_part = AS_PUBLISHED

    def __init__(self, parts: dict[PartName, Any]) -> None:
        self.skipped = Skipped()
        self._parts = parts
        # "T-shirt/top" and "0 - zero": no slashes and blanks, so that --classes takes the names.
        self.classes = tuple(name.split(" - ")[0].replace("/", "-") for name in parts["train"].classes)
        self.picture_count = sum(len(part.targets) for part in parts.values())

    def hashes(self, progress: Progress) -> Iterable[tuple[str, str]]:
        progress("checking files", 0, None)
        raw = Path(self._parts["train"].raw_folder)
        return [(path.name, sha256_of(path)) for path in sorted(raw.glob("*-ubyte"))]

    def pictures(self, image_size: int, progress: Progress) -> Iterator[Picture]:
        done = 0
        for part in PART_NAMES:
            grey = self._parts[part].data.numpy()  # (N, 28, 28)
            for picture, label in zip(grey, self._parts[part].targets.tolist(), strict=True):
                pixels = np.repeat(picture[:, :, None], 3, axis=2)  # (28, 28, 3)
                yield Picture(part, label, fitted(pixels, image_size))
                done += 1
                progress("reading images", done, self.picture_count)


@dataclass(frozen=True)
class IdxDataset:
    """MNIST or Fashion-MNIST, downloaded unless its idx files are in the cache's downloads folder."""

    name: str
    kind: str
    """The name of torchvision's class, and of the folder in the downloads folder."""

    @property
    def source(self) -> str:
        """The catalogue name."""
        return self.name

    def stamps(self) -> Iterable[Stamp]:
        """Nothing changes in a published dataset."""
        return [Stamp(self.kind, 0, 0)]

    @contextlib.contextmanager
    def opened(self, progress: Progress) -> Iterator[Content]:
        """Download the idx files if they aren't here, and read them.

        Raises:
            DataError: they can't be downloaded, or are not what they should be.
        """
        from lowmem_seq.data.torchvision_compat import idx_dataset  # imports torch

        folder = downloads_folder()
        yield _IdxContent({part: idx_dataset(self.kind, part == "train", folder, progress) for part in PART_NAMES})
