from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lowmem_seq.data import inputs
from lowmem_seq.data.dataset import Pixels, Skipped
from lowmem_seq.data.inputs import read_inputs, require_inputs
from lowmem_seq.data.pictures import decode
from lowmem_seq.errors import DataError
from tests.builders import NEEDS_LINKS
from tests.data.builders import picture, write_folder, write_zip

FILES = {
    "b/2.png": picture(2, 20),
    "a.png": picture(1),
    "b/deep/er/3.JPG": picture(3, 30, "JPEG"),
    "b/broken.png": b"no picture",
    "notes.txt": b"words",
    ".DS_Store": b"",
    "__MACOSX/a.png": b"",
}
NAMES = ["a.png", "b/2.png", "b/broken.png", "b/deep/er/3.JPG"]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_everything_below_is_read_as_a_pack_would_have_it(tmp_path: Path, kind: str) -> None:
    path = write_folder(tmp_path / "x", FILES) if kind == "folder" else write_zip(tmp_path / "x.zip", FILES)
    skipped = Skipped()
    found = {one.name: one for one in read_inputs([path], 16, skipped)}
    assert sorted(found) == [str(path / name) for name in NAMES]
    for name in NAMES:
        one = found[str(path / name)]
        if name == "b/broken.png":
            assert (one.pixels, one.fault) == (None, "not a readable image")
        else:
            assert one.pixels is not None
            assert np.array_equal(one.pixels, decode(FILES[name], 16))
    assert dict(skipped.reasons) == {"not an image file": 1}


def test_a_file_is_tried_whatever_its_name_is_and_order_is_as_given(tmp_path: Path) -> None:
    write_folder(tmp_path, {"second": picture(2), "first.dat": picture(1), "x/z.png": picture(3)})
    paths = [tmp_path / "second", tmp_path / "x", tmp_path / "first.dat"]
    found = list(read_inputs(paths, 8, Skipped()))
    assert [Path(one.name).name for one in found] == ["second", "z.png", "first.dat"]
    assert all(one.pixels is not None for one in found)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, {f"{number:03}.png": b"" for number in range(100)})
    decoded = 0

    def count(data: bytes, image_size: int) -> Pixels:
        nonlocal decoded
        decoded += 1
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(inputs, "decode", count)
    reading: Iterator[inputs.Input] = read_inputs([tmp_path], 8, Skipped())
    for _ in range(3):
        next(reading)
    assert decoded == 3


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.png": picture(1)})
    with pytest.raises(DataError, match="there is nothing at"):
        require_inputs([tmp_path / "a.png", tmp_path / "nowhere"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        require_inputs([tmp_path / "pipe"])


@NEEDS_LINKS
def test_links_that_leave_the_folder_are_counted_and_not_followed(tmp_path: Path) -> None:
    write_folder(tmp_path, {"in/a.png": picture(1), "out/b.png": picture(2)})
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "out" / "b.png")
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    skipped = Skipped()
    assert [Path(one.name).name for one in read_inputs([tmp_path / "in"], 8, skipped)] == ["a.png"]
    assert dict(skipped.reasons) == {"a link that leaves the folder": 1, "a link to a folder, or to nothing": 1}


def test_a_zip_that_climbs_out_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "evil.zip", {"../a.png": picture(1)})
    with pytest.raises(DataError, match="lies outside of the archive"):
        list(read_inputs([path], 8, Skipped()))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_names_of_any_bytes_can_be_told(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff\x1b[31m\n.png")).write_bytes(picture(1))
    (one,) = read_inputs([tmp_path], 8, Skipped())
    one.name.encode("utf-8")
    assert one.fault is None
