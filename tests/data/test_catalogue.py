from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lowmem_seq.config import DataConfig
from lowmem_seq.data.catalogue import CATALOGUE
from lowmem_seq.data.dataset import silent


def test_the_names_are_the_promised_ones() -> None:
    assert list(CATALOGUE) == ["cifar10", "cifar100", "mnist", "fashion-mnist", "shapes"]
    assert DataConfig().source in CATALOGUE
    assert all(
        name == entry.name == entry.dataset().name == entry.dataset().source for name, entry in CATALOGUE.items()
    )


def test_only_digits_must_not_be_mirrored() -> None:
    assert [name for name, entry in CATALOGUE.items() if not entry.flip_makes_sense] == ["mnist"]


def test_only_shapes_needs_no_download() -> None:
    assert [name for name, entry in CATALOGUE.items() if entry.download_bytes == 0] == ["shapes"]


def test_the_counts_of_shapes_are_what_it_has(cache: Path) -> None:
    entry = CATALOGUE["shapes"]
    with entry.dataset().opened(silent) as content:
        assert len(content.classes) == entry.class_count
        assert content.picture_count == entry.train_count + entry.test_count


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_counts_of_cifar_are_those_of_its_files(name: str) -> None:
    entry = CATALOGUE[name]
    archive = getattr(entry.dataset(), "archive")  # noqa: B009 - the protocol doesn't promise it
    counts = {part: sum(count for p, _, count in archive.members if p == part) for part in ("train", "test")}
    assert counts == {"train": entry.train_count, "test": entry.test_count}
    assert np.log10(entry.download_bytes) > 8
