from __future__ import annotations

import hashlib
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lowmem_seq.data import torchvision_compat
from lowmem_seq.data.cache import downloads_folder
from lowmem_seq.data.cifar import CIFAR10, CIFAR100, CifarArchive, CifarDataset
from lowmem_seq.data.dataset import Pixels, silent
from lowmem_seq.data.fingerprint import fingerprint
from lowmem_seq.data.pack import Pack
from lowmem_seq.data.prepare import _packed, prepare
from lowmem_seq.errors import DataError

CLASS_NAMES = b"plane\ncar\nbird\n\n"


def fabricated(archive: CifarArchive, drop: str = "", cut: int = 0, label: int = 2) -> tuple[CifarArchive, Pixels]:
    """Put a tiny archive of the same layout into the downloads folder; returns it and its pictures.

    The pixels count up, so that a wrong order of channels, rows or columns is seen.
    """
    pixels = np.random.default_rng(7).integers(0, 256, (6, 32, 32, 3), np.uint8)
    members = (("train", archive.members[0][1], 4), ("test", archive.members[-1][1], 2))
    files = {archive.names_file: CLASS_NAMES, "../../evil.bin": b"x"}
    start = 0
    for _, name, count in members:
        records = b"".join(
            bytes([9] * (archive.label_bytes - 1) + [number % label]) + pixels[number].transpose(2, 0, 1).tobytes()
            for number in range(start, start + count)
        )
        files[name] = records[: len(records) - cut]
        start += count
    path = downloads_folder() / archive.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in sorted(files.items()):
            if name != drop:
                info = tarfile.TarInfo(f"{archive.folder}/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return replace(archive, md5=md5, members=members), pixels  # type: ignore[arg-type]


def packed(archive: CifarArchive, image_size: int = 32) -> Pack:
    dataset = CifarDataset("cifar10", archive)
    with dataset.opened(silent) as content:
        return _packed(dataset, content, image_size, silent)


@pytest.mark.parametrize("archive", [CIFAR10, CIFAR100])
def test_an_archive_put_there_by_hand_is_read(archive: CifarArchive, cache: Path) -> None:
    tiny, pixels = fabricated(archive)
    pack = packed(tiny)
    assert pack.classes == ("plane", "car", "bird")
    assert np.array_equal(pack.read("train", np.arange(4)), pixels[:4])
    assert np.array_equal(pack.read("test", np.arange(2)), pixels[4:])
    assert pack.labels("train").tolist() == [0, 1, 0, 1]
    assert pack.description.test_part == "as published"
    sha256 = hashlib.sha256((downloads_folder() / archive.file_name).read_bytes()).hexdigest()
    assert pack.fingerprint == fingerprint([(archive.file_name, sha256)], 32)
    assert not list(cache.rglob("evil.bin"))


def test_another_size_is_resized() -> None:
    tiny, _ = fabricated(CIFAR10)
    assert packed(tiny, 16).read("train", np.arange(4)).shape == (4, 16, 16, 3)


@pytest.mark.parametrize("drop", [CIFAR10.names_file, "data_batch_1.bin"])
def test_an_archive_without_one_of_its_files(drop: str) -> None:
    tiny, _ = fabricated(CIFAR10, drop=drop)
    with pytest.raises(DataError, match=f"has no file cifar-10-batches-bin/{drop}"):
        packed(tiny)


def test_a_file_of_another_size() -> None:
    tiny, _ = fabricated(CIFAR10, cut=1)
    with pytest.raises(DataError, match="of 12292 bytes"):
        packed(tiny)


def test_a_label_without_a_class() -> None:
    tiny, _ = fabricated(CIFAR10, label=250)
    with pytest.raises(DataError, match="has the label 3, and there are 3 classes"):
        packed(tiny)


def test_something_that_is_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.tar.gz").write_bytes(b"\x1f\x8b" + bytes(50))
    monkeypatch.setattr(torchvision_compat, "download", lambda *_: tmp_path / "no.tar.gz")
    with pytest.raises(DataError, match="can't be read"):
        packed(CIFAR10)


def test_no_pickle_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    import torch

    tiny, _ = fabricated(CIFAR10)
    torchvision_compat.datasets()

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a pickle is read")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refused)
    assert packed(tiny).size("train") == 4


@pytest.mark.skipif("LOWMEM_SEQ_CIFAR10" not in os.environ, reason="LOWMEM_SEQ_CIFAR10 names no zip of CIFAR-10")
def test_the_real_pictures() -> None:
    """On the zip train/CLASS/nnnn.jpg: the counts, and the colours that CIFAR-10 is known to have."""
    pack = prepare(os.environ["LOWMEM_SEQ_CIFAR10"], 32)
    pack.verify()
    assert pack.description.parts["train"].by_class == (5000,) * 10
    assert pack.description.parts["test"].by_class == (1000,) * 10
    assert pack.classes[:4] == ("airplane", "automobile", "bird", "cat")
    assert np.allclose(pack.description.mean, (0.4914, 0.4822, 0.4465), atol=0.002)
    assert np.allclose(pack.description.deviation, (0.2470, 0.2435, 0.2616), atol=0.003)
    assert pack.description.skipped.total == 0
