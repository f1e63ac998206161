"""The datasets that are known by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lowmem_seq.data.cifar import CIFAR10, CIFAR100, CifarDataset
from lowmem_seq.data.dataset import Dataset
from lowmem_seq.data.mnist import IdxDataset
from lowmem_seq.data.shapes import CLASSES as SHAPES_CLASSES
from lowmem_seq.data.shapes import TEST_COUNT, TRAIN_COUNT, ShapesDataset


@dataclass(frozen=True)
class Entry:
    """A dataset of the catalogue, as it is known before anything is downloaded."""

    name: str
    description: str
    class_count: int
    train_count: int
    test_count: int
    native_size: int
    """Side of the published pictures, in pixels."""
    flip_makes_sense: bool
    """Whether a picture keeps its class when it is mirrored left and right."""
    download_bytes: int
    """What has to be downloaded; 0: nothing."""
    dataset: Callable[[], Dataset]


_ENTRIES = (
    Entry(
        "cifar10",
        "photos of 6 animals and 4 vehicles (Krizhevsky 2009)",
        10,
        50_000,
        10_000,
        32,
        True,
        170_052_171,
        lambda: CifarDataset("cifar10", CIFAR10),
    ),
    Entry(
        "cifar100",
        "photos of 100 kinds of things, fine labels (Krizhevsky 2009)",
        100,
        50_000,
        10_000,
        32,
        True,
        168_513_733,
        lambda: CifarDataset("cifar100", CIFAR100),
    ),
    Entry(
        "mnist",
        "handwritten digits, grey (LeCun 1998)",
        10,
        60_000,
        10_000,
        28,
        False,
        11_594_722,
        lambda: IdxDataset("mnist", "MNIST"),
    ),
    Entry(
        "fashion-mnist",
        "pictures of clothes, grey (Xiao 2017)",
        10,
        60_000,
        10_000,
        28,
        True,
        30_878_645,
        lambda: IdxDataset("fashion-mnist", "FashionMNIST"),
    ),
    Entry(
        "shapes",
        "drawn shapes before noise and clutter; no download",
        len(SHAPES_CLASSES),
        TRAIN_COUNT,
        TEST_COUNT,
        32,
        True,
        0,
        ShapesDataset,
    ),
)
CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
DEFAULT_NAME = "cifar10"
