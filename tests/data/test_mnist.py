from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lowmem_seq.data import torchvision_compat
from lowmem_seq.data.cache import downloads_folder
from lowmem_seq.data.prepare import prepare


def write_idx(folder: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Five train and three test pictures in the idx format: grey (8, 28, 28)."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 28, 28), np.uint8)
    for name, part in (("train", pixels[:5]), ("t10k", pixels[5:])):
        labels = bytes(range(len(part)))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, len(part), 28, 28) + part.tobytes()
        )
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(part)) + labels)
    return pixels


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_files_that_are_there_are_read_without_download_or_pickle(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = write_idx(downloads_folder() / kind / "raw")
    processed = downloads_folder() / kind / "processed"
    processed.mkdir()
    for legacy in ("training.pt", "test.pt"):  # what old releases of torchvision left, and would read
        (processed / legacy).write_bytes(pickle.dumps("never read"))
    torchvision_compat.datasets()

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a pickle is read, or something is downloaded")

    for module, function in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, function, refused)
    monkeypatch.setattr(torchvision_compat.datasets().mnist, "download_and_extract_archive", refused)
    pack = prepare(name, 28)
    assert np.array_equal(pack.read("train", np.arange(5)), pixels[:5, :, :, None].repeat(3, 3))
    assert np.array_equal(pack.read("test", np.arange(3)), pixels[5:, :, :, None].repeat(3, 3))
    assert pack.labels("train").tolist() == [0, 1, 2, 3, 4]
    assert pack.classes[0] == {"mnist": "0", "fashion-mnist": "T-shirt-top"}[name]
    assert prepare(name, 32).read("train", np.arange(5)).shape == (5, 32, 32, 3)
