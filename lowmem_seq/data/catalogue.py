"""The datasets that are known by name. Cheap to import: what reads them is imported when one is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowmem_seq.data.dataset import Dataset


def _cifar10() -> Dataset:
    from lowmem_seq.data.cifar import CIFAR10, CifarDataset

    return CifarDataset("cifar10", CIFAR10)


def _cifar100() -> Dataset:
    from lowmem_seq.data.cifar import CIFAR100, CifarDataset

    return CifarDataset("cifar100", CIFAR100)


def _mnist() -> Dataset:
    from lowmem_seq.data.mnist import IdxDataset

    return IdxDataset("mnist", "MNIST")


def _fashion_mnist() -> Dataset:
    from lowmem_seq.data.mnist import IdxDataset

    return IdxDataset("fashion-mnist", "FashionMNIST")


def _shapes() -> Dataset:
    from lowmem_seq.data.shapes import ShapesDataset

    return ShapesDataset()


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
        _cifar10,
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
        _cifar100,
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
        _mnist,
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
        _fashion_mnist,
    ),
    Entry(
        "shapes",
        "drawn shapes before noise and clutter; no download",
        8,
        8_000,
        2_000,
        32,
        True,
        0,
        _shapes,
    ),
)
CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
HOST = "host"
"""Stands, among the names of datasets, for the images of the machine that hosts; one that joins fetches them."""
