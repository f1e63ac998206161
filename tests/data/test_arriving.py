"""A pack that comes byte by byte: what breaks off goes on, and nothing counts before all of it verifies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec
import pytest

from lowmem_seq.data import arriving as module
from lowmem_seq.data.arriving import ArrivingPack
from lowmem_seq.data.cache import ARRIVING, packs_folder, remove_leftovers
from lowmem_seq.data.pack import Pack, PartCounts
from lowmem_seq.data.prepare import kept_pack, packs
from lowmem_seq.errors import DataError
from tests.builders import names
from tests.data.builders import write_pack

SIDE = 8
SYNC = 256
PIECE = 64


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SYNC_BYTES", SYNC)
    monkeypatch.setenv("LOWMEM_SEQ_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Pack:
    """18 and 6 pictures of 192 bytes: files of 3,456, 72, 1,152 and 24 bytes."""
    return write_pack(tmp_path / "source", {"train": [0, 1, 2] * 6, "test": [0, 1, 2] * 2}, image_size=SIDE)


def pieces(source: Pack, arriving: ArrivingPack) -> Iterator[bytes]:
    """What is missing, as it would come, one file after the other."""
    while (missing := arriving.missing) is not None:
        content = (source.folder / missing.name).read_bytes()
        assert missing.size == len(content)
        for start in range(missing.start, missing.size, PIECE):
            yield content[start : start + PIECE]


def bring(source: Pack, arriving: ArrivingPack, most_bytes: int = 10**9) -> None:
    """Append what is missing, up to so much."""
    for piece in pieces(source, arriving):
        if most_bytes <= 0:
            return
        arriving.append(piece)
        most_bytes -= len(piece)


def folder_of(source: Pack) -> Path:
    return packs_folder() / f"fetched-{SIDE}px-{source.fingerprint[:12]}"


def partial(source: Pack) -> Path:
    return folder_of(source).with_name(folder_of(source).name + ARRIVING)


def test_what_came_is_the_pack_that_was_told_of(source: Pack) -> None:
    with ArrivingPack(source.description) as arriving:
        assert (arriving.here_bytes, arriving.total_bytes) == (0, 3456 + 72 + 1152 + 24)
        bring(source, arriving)
        assert arriving.missing is None
        assert arriving.here_bytes == arriving.total_bytes
        assert packs() == []  # not before it is finished
        pack = arriving.finish()
    assert pack.folder == folder_of(source)
    assert pack.description == source.description
    pack.verify()
    assert names(packs_folder()) == [pack.folder.name]
    assert names(pack.folder) == sorted([*source.description.files, "pack.json"])
    found = kept_pack(source.fingerprint, SIDE)
    assert found is not None
    assert found.folder == pack.folder


@pytest.mark.parametrize(
    ("came", "kept"),
    [(0, 0), (256, 0), (320, 256), (3392, 3328), (3456, 3456), (3520, 3456), (3528, 3528), (4704, 4704)],
)
def test_what_broke_off_goes_on_from_what_is_surely_on_the_disk(source: Pack, came: int, kept: int) -> None:
    with ArrivingPack(source.description) as arriving:
        bring(source, arriving, came)
        assert arriving.here_bytes == came
    looked: list[int] = []
    with ArrivingPack(source.description, looked.append) as again:
        assert again.here_bytes == kept
        assert looked == sorted(looked)
        assert looked[-1:] == ([kept] if kept else [])
        bring(source, again)
        again.finish().verify()


def test_a_file_is_synced_before_it_grows_past_what_a_cut_may_cost(
    source: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, int]] = []
    monkeypatch.setattr(module, "sync_written", lambda path: synced.append((path.name, path.stat().st_size)))
    with ArrivingPack(source.description) as arriving:
        bring(source, arriving)
    images = [size for name, size in synced if name == "train.images"]
    assert images == [*range(SYNC, 3456, SYNC), 3456]
    assert {name for name, _ in synced} == set(source.description.files)


def test_what_a_power_cut_spoiled_is_fetched_again(source: Pack) -> None:
    with ArrivingPack(source.description) as arriving:
        bring(source, arriving, 640)
    path = partial(source) / "train.images"
    path.write_bytes(path.read_bytes()[:512] + bytes(128))  # zeros where it wasn't synced yet
    with ArrivingPack(source.description) as again:
        assert again.here_bytes == 512
        bring(source, again)
        again.finish().verify()


def test_what_is_damaged_never_becomes_a_pack_and_is_fetched_anew(source: Pack) -> None:
    with ArrivingPack(source.description) as arriving:
        bring(source, arriving, 640)
    path = partial(source) / "train.images"
    path.write_bytes(b"?" + path.read_bytes()[1:])
    with ArrivingPack(source.description) as again:
        with pytest.raises(DataError, match=r"train\.images came with the SHA-256") as caught:
            bring(source, again)
        assert "start again" in caught.value.hint
        assert not path.exists()
    assert packs() == []
    with ArrivingPack(source.description) as anew:
        assert anew.here_bytes == 0
        bring(source, anew)
        anew.finish().verify()


def test_a_whole_file_that_was_damaged_since_is_emptied(source: Pack) -> None:
    with ArrivingPack(source.description) as arriving:
        bring(source, arriving, 3528)
    path = partial(source) / "train.labels"
    path.write_bytes(b"\xff" * 72)
    with ArrivingPack(source.description) as again:
        assert again.here_bytes == 3456
        bring(source, again)
        again.finish().verify()


def test_what_came_of_another_pack_is_thrown_away(source: Pack, tmp_path: Path) -> None:
    with ArrivingPack(source.description) as arriving:
        bring(source, arriving, 1000)
    other = write_pack(tmp_path / "other", {"train": [0] * 18, "test": [1] * 6}, image_size=SIDE)
    assert other.fingerprint == source.fingerprint  # the same images, decoded by something else
    with ArrivingPack(other.description) as again:
        assert again.here_bytes == 0
        bring(other, again)
        assert again.finish().description == other.description


@pytest.mark.parametrize(
    ("classes", "by_class"), [(("a", "b", "c"), (5, 7, 6)), (("a", "b"), (6, 12))], ids=["counts", "a class less"]
)
def test_labels_must_be_those_that_were_told_of(
    source: Pack, classes: tuple[str, ...], by_class: tuple[int, ...]
) -> None:
    counts = {"train": PartCounts(18, by_class), "test": PartCounts(6, (2, 4, 0)[: len(classes)])}
    told = msgspec.structs.replace(source.description, classes=classes, parts=counts)
    with ArrivingPack(told) as arriving:
        bring(source, arriving)
        with pytest.raises(DataError, match="the labels that came for train are not those"):
            arriving.finish()
    assert packs() == []


def test_a_part_may_have_no_pictures(tmp_path: Path) -> None:
    source = write_pack(tmp_path / "source", {"train": [0, 1, 2] * 6, "test": []}, image_size=SIDE)
    with ArrivingPack(source.description) as arriving:
        bring(source, arriving)
        assert arriving.finish().size("test") == 0


def test_a_damaged_pack_in_its_place_goes(source: Pack) -> None:
    folder_of(source).mkdir(parents=True)
    (folder_of(source) / "train.images").write_bytes(b"torn")
    with ArrivingPack(source.description) as arriving:
        bring(source, arriving)
        arriving.finish().verify()
    assert names(packs_folder()) == [folder_of(source).name]


def test_a_disk_that_takes_a_part_is_given_the_rest(source: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reluctant:
        def __init__(self, file: IO[bytes]) -> None:
            self._file = file

        def write(self, data: memoryview) -> int:
            return self._file.write(data[:50])

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

    with ArrivingPack(source.description) as arriving:
        arriving._file = Reluctant(arriving._file)  # type: ignore[arg-type, assignment]
        bring(source, arriving)
        arriving.finish().verify()


def test_what_came_stays_for_a_week(source: Pack) -> None:
    with ArrivingPack(source.description) as arriving:
        bring(source, arriving, 640)
    for days, is_kept in ((6, True), (8, False)):
        for path in (*partial(source).iterdir(), partial(source)):
            os.utime(path, (time.time() - days * 86400,) * 2)
        remove_leftovers()
        assert partial(source).exists() == is_kept
