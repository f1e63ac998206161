"""The seam between what can be packed and the packing: names, hashes, pictures, and what was left out.

A `Dataset` is cheap to make: it says what it is and by which stamps one sees that it hasn't changed. Opening it
gives its `Content`, which may cost a download or a walk through a folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Progress = Callable[[str, int, "int | None"], None]
"""Called with what is going on, how much of it is done, and out of how much (null: not known)."""
PartName = Literal["train", "test"]
PART_NAMES: tuple[PartName, ...] = ("train", "test")
Pixels = npt.NDArray[np.uint8]

SKIPPED_LISTED_AT_MOST = 1000
AS_PUBLISHED = "as published"


class Picture(NamedTuple):
    """One picture on its way into a pack; pixels: (S, S, 3), RGB."""

    part: PartName
    label: int
    pixels: Pixels


class Stamp(NamedTuple):
    """What is seen of a file without opening it."""

    name: str
    size: int
    modified_ns: int


class Skipped:
    """The files that were left out: all are counted by reason, the first thousand are listed."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.listed: list[tuple[str, str]] = []

    def add(self, name: str, reason: str) -> None:
        """Count one file that is left out."""
        self.reasons[reason] += 1
        if len(self.listed) < SKIPPED_LISTED_AT_MOST:
            self.listed.append((name, reason))


class Content(Protocol):
    """An opened dataset."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in the order of their labels."""

    @property
    def picture_count(self) -> int:
        """How many pictures there are at most, over both parts."""

    @property
    def test_part(self) -> str:
        """How the test part came about, for people."""

    @property
    def skipped(self) -> Skipped:
        """What was left out; complete when `pictures` has ended."""

    def hashes(self, progress: Progress) -> Iterable[tuple[str, str]]:
        """Every source file's name and the SHA-256 of its bytes, for the fingerprint."""

    def pictures(self, image_size: int, progress: Progress) -> Iterator[Picture]:
        """Every picture once, in an order that is the same on every system."""


class Dataset(Protocol):
    """Something that can be packed."""

    @property
    def name(self) -> str:
        """A short name that the pack's folder starts with."""

    @property
    def source(self) -> str:
        """What pack.json names as the source: a catalogue name or an absolute path."""

    def stamps(self) -> Iterable[Stamp]:
        """What tells an unchanged dataset from a changed one without reading it."""

    def opened(self, progress: Progress) -> AbstractContextManager[Content]:
        """Open the dataset, downloading it where it has to be."""


def silent(what: str, done: int, total: int | None) -> None:
    """A `Progress` that shows nothing."""
