from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_seq.data.dataset import Pixels, Skipped
from lowmem_seq.data.pack import Pack, PackHeader, writing_pack
from lowmem_seq.errors import DataError
from lowmem_seq.files import is_temporary, read_json, write_json
from tests.data.builders import write_pack


def header(image_size: int = 8) -> PackHeader:
    return PackHeader(
        name="t", source="t", classes=("a", "b"), image_size=image_size, fingerprint="f" * 64, test_part="-"
    )


def noise(count: int, side: int = 8) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), np.uint8)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    pixels = noise(30)
    skipped = Skipped()
    skipped.add("x.txt", "not an image file")
    with writing_pack(tmp_path / "p", header(), skipped) as writer:
        for number in range(20):
            writer.add("train", pixels[number], number % 2)
        for number in range(20, 30):
            writer.add("test", pixels[number], 1)
    pack = Pack.open(tmp_path / "p")
    pack.verify()
    assert np.array_equal(pack.read("train", np.array([3, 0, 19, 3])), pixels[[3, 0, 19, 3]])
    assert np.array_equal(pack.read("test", np.arange(10)), pixels[20:])
    assert pack.labels("train").tolist() == [0, 1] * 10
    assert pack.labels("train").dtype == np.int64
    about = pack.description
    assert about.parts["train"].by_class == (10, 10)
    assert about.parts["test"].by_class == (0, 10)
    assert about.skipped.total == 1
    assert about.skipped.listed == (("x.txt", "not an image file"),)
    train = pixels[:20].reshape(-1, 3) / 255
    assert np.allclose(about.mean, train.mean(0), atol=1e-12)
    assert np.allclose(about.deviation, train.std(0), atol=1e-9)
    assert (tmp_path / "p/train.images").read_bytes() == pixels[:20].tobytes()
    assert (tmp_path / "p/test.labels").read_bytes() == np.ones(10, "<i4").tobytes()


@settings(max_examples=25, deadline=None)
@given(positions=st.lists(st.integers(0, 12), max_size=20))
def test_any_positions_in_any_order(tmp_path_factory: pytest.TempPathFactory, positions: list[int]) -> None:
    pack = write_pack(tmp_path_factory.mktemp("any") / "p", {"train": [0] * 13})
    whole = np.fromfile(pack.folder / "train.images", np.uint8).reshape(13, 8, 8, 3)
    assert np.array_equal(pack.read("train", np.array(positions, np.int64)), whole[positions])


def test_the_buffer_is_reused(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "p", {"train": [0, 1, 2]})
    out = np.zeros((2, 8, 8, 3), np.uint8)
    assert pack.read("train", np.array([2, 1]), out) is out
    assert np.array_equal(out, pack.read("train", np.array([2, 1])))


@pytest.mark.parametrize(
    "out",
    [np.zeros((3, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 3, 8), np.uint8).swapaxes(2, 3)],
)
def test_a_wrong_buffer_is_refused(tmp_path: Path, out: Pixels) -> None:
    pack = write_pack(tmp_path / "p", {"train": [0, 1, 2]})
    with pytest.raises(ValueError, match="contiguous uint8"):
        pack.read("train", np.array([2, 1]), out)


@pytest.mark.parametrize("position", [-1, 3])
def test_a_position_that_is_not_there(tmp_path: Path, position: int) -> None:
    pack = write_pack(tmp_path / "p", {"train": [0, 1, 2]})
    with pytest.raises(IndexError, match="0 to 2"):
        pack.read("train", np.array([position]))


def test_an_interrupted_pack_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with writing_pack(tmp_path / "p", header(), Skipped()) as writer:
            writer.add("train", noise(1)[0], 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_packs_stays(tmp_path: Path) -> None:
    with writing_pack(tmp_path / "p", header(), Skipped()) as outer:
        outer.add("train", noise(1)[0], 0)
        with writing_pack(tmp_path / "p", header(), Skipped()) as inner:
            inner.add("train", noise(1)[0], 0)
        first = (tmp_path / "p/pack.json").stat().st_ino
    assert (tmp_path / "p/pack.json").stat().st_ino == first
    assert not any(is_temporary(path) for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["train.images", "train.labels", "test.images", "test.labels"])
def test_a_torn_file_is_seen_at_opening(tmp_path: Path, name: str) -> None:
    write_pack(tmp_path / "p", {"train": [0, 1], "test": [0, 1]})
    path = tmp_path / "p" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"torn: {name}") as caught:
        Pack.open(tmp_path / "p")
    assert "delete this folder" in caught.value.hint


def test_a_file_torn_after_opening_is_seen_at_reading(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "p", {"train": [0, 1]})
    (tmp_path / "p/train.images").write_bytes(b"")
    with pytest.raises(DataError, match="ends early"):
        pack.read("train", np.array([1]))


def test_a_missing_file_is_seen_at_reading(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "p", {"train": [0, 1]})
    (tmp_path / "p/train.images").unlink()
    with pytest.raises(DataError, match="can't be read"):
        pack.read("train", np.array([1]))
    with pytest.raises(DataError, match="can't be read"):
        pack.verify()


def test_a_flipped_bit_is_seen_by_verify(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "p", {"train": [0, 1]})
    path = tmp_path / "p/train.images"
    data = bytearray(path.read_bytes())
    data[77] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged: train\.images"):
        pack.verify()


def test_descriptions_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pack"):
        Pack.open(tmp_path)
    write_pack(tmp_path / "p", {"train": [0, 1]})
    path = tmp_path / "p/pack.json"
    content = read_json(path)
    write_json(path, content | {"format_version": 2})
    with pytest.raises(DataError, match="format version 2") as caught:
        Pack.open(tmp_path / "p")
    assert caught.value.hint == "update lowmem-seq"
    write_json(path, {key: value for key, value in content.items() if key != "classes"})
    with pytest.raises(DataError, match="not valid"):
        Pack.open(tmp_path / "p")
    path.write_text("{")
    with pytest.raises(DataError, match="can't be read"):
        Pack.open(tmp_path / "p")


def test_the_description_is_the_one_that_earlier_packs_have(tmp_path: Path) -> None:
    skipped = Skipped()
    skipped.add("x.txt", "not an image file")
    with writing_pack(tmp_path / "p", header(), skipped) as writer:
        writer.add("train", np.full((8, 8, 3), 51, np.uint8), 0)
    content = read_json(tmp_path / "p/pack.json")
    files = content.pop("files")
    assert list(content.items()) == [
        ("name", "t"),
        ("source", "t"),
        ("classes", ["a", "b"]),
        ("image_size", 8),
        ("fingerprint", "f" * 64),
        ("test_part", "-"),
        ("format_version", 1),
        ("parts", {"train": {"images": 1, "by_class": [1, 0]}, "test": {"images": 0, "by_class": [0, 0]}}),
        ("mean", [0.2, 0.2, 0.2]),
        ("deviation", [0.0, 0.0, 0.0]),
        ("skipped", {"total": 1, "reasons": {"not an image file": 1}, "listed": [["x.txt", "not an image file"]]}),
    ]
    sizes = {"train.images": 192, "train.labels": 4, "test.images": 0, "test.labels": 0}
    assert {name: written["bytes"] for name, written in files.items()} == sizes
    assert all(list(written) == ["bytes", "sha256"] for written in files.values())


def test_writing_holds_no_dataset(tmp_path: Path) -> None:
    """74 MB of pictures pass through a writer that holds a few MB."""
    pixels = noise(1, side=64)[0]
    tracemalloc.start()
    try:
        with writing_pack(tmp_path / "p", header(64), Skipped()) as writer:
            for number in range(6000):
                writer.add("train", pixels, number % 2)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 25e6


def test_reading_holds_no_dataset(tmp_path: Path) -> None:
    """Reading all of a pack leaves the resident memory where it was: no page of the file is mapped."""
    with writing_pack(tmp_path / "p", header(64), Skipped()) as writer:
        for number in range(6000):
            writer.add("train", noise(1, side=64)[0], number % 2)
    pack = Pack.open(tmp_path / "p")
    out = np.empty((100, 64, 64, 3), np.uint8)
    pack.read("train", np.arange(100), out)
    before = psutil.Process().memory_info().rss
    for start in range(0, 6000, 100):
        pack.read("train", np.arange(start, start + 100), out)
    assert psutil.Process().memory_info().rss - before < 15e6
