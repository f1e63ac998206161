from __future__ import annotations

import os
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lowmem_seq.data import members
from lowmem_seq.data.dataset import Content, Dataset, Picture, silent
from lowmem_seq.data.sources import ImageFolder, ImageZip
from lowmem_seq.errors import DataError
from tests.data.builders import class_files, picture, write_folder, write_zip


def contents(dataset: Dataset) -> tuple[Content, list[Picture]]:
    with dataset.opened(silent) as content:
        list(content.hashes(silent))
        return content, list(content.pictures(8, silent))


def test_pictures_have_their_pixels_and_labels(tmp_path: Path) -> None:
    files = class_files("train/cat", "train/dog", "test/cat", count=2)
    content, pictures = contents(ImageFolder(write_folder(tmp_path / "a", files)))
    assert content.classes == ("cat", "dog")
    assert [(p.part, p.label) for p in pictures] == [
        ("train", 0), ("train", 0), ("train", 1), ("train", 1), ("test", 0), ("test", 0),
    ]  # fmt: skip
    expected = np.random.default_rng(2).integers(0, 256, (8, 8, 3), np.uint8)
    assert np.array_equal(pictures[2].pixels, expected)


def test_a_zip_gives_what_its_folder_gives(tmp_path: Path) -> None:
    files = class_files("cat", "dog", count=7)
    _, from_folder = contents(ImageFolder(write_folder(tmp_path / "a", files)))
    _, from_zip = contents(ImageZip(write_zip(tmp_path / "a.zip", {f"a/{name}": files[name] for name in files})))
    for one, other in zip(from_folder, from_zip, strict=True):
        assert one[:2] == other[:2]
        assert np.array_equal(one.pixels, other.pixels)


def test_broken_images_are_counted_and_listed(tmp_path: Path) -> None:
    files = class_files("cat", "dog", count=6)
    files |= {"cat/0.png": b"no picture", "dog/1.png": files["dog/1.png"][:60], "dog/2.png": b""}
    content, pictures = contents(ImageFolder(write_folder(tmp_path / "a", files)))
    assert len(pictures) == 9
    assert content.skipped.reasons == {"not a readable image": 3}
    assert {name for name, _ in content.skipped.listed} == {"cat/0.png", "dog/1.png", "dog/2.png"}


def test_too_many_broken_images_in_a_class(tmp_path: Path) -> None:
    files = class_files("cat", "dog") | dict.fromkeys(["dog/0.png", "dog/1.png", "dog/2.png"], b"?")
    with pytest.raises(DataError, match="3 of the 4 images of the class dog") as caught:
        contents(ImageFolder(write_folder(tmp_path / "a", files)))
    assert "not a readable image" in caught.value.message
    assert caught.value.exit_code == 5


def test_a_class_without_a_readable_train_image(tmp_path: Path) -> None:
    files = class_files("train/cat", "train/dog", "test/cat", "test/dog", count=2)
    files |= {"train/dog/0.png": b"?", "train/dog/1.png": b"?"}
    with pytest.raises(DataError, match="the class dog has no readable train image"):
        contents(ImageFolder(write_folder(tmp_path / "a", files)))


def test_a_file_that_changes_between_hashing_and_reading(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "a", class_files("cat", "dog"))
    with ImageFolder(root).opened(silent) as content:
        list(content.hashes(silent))
        (root / "cat/0.png").write_bytes(picture(99))
        with pytest.raises(DataError, match=r"cat/0\.png changed"):
            list(content.pictures(8, silent))


@pytest.mark.skipif(sys.platform == "win32", reason="making links needs a privilege on Windows")
def test_links_that_leave_the_folder_are_left_out(tmp_path: Path) -> None:
    outside = write_folder(tmp_path / "outside", class_files("eel"))
    root = write_folder(tmp_path / "a", class_files("cat", "dog"))
    (root / "cat/out.png").symlink_to(outside / "eel/0.png")
    (root / "eel").symlink_to(outside / "eel", target_is_directory=True)
    (root / "cat/loop").symlink_to(root, target_is_directory=True)
    (root / "cat/gone.png").symlink_to(root / "nothing.png")
    (root / "cat/in.png").symlink_to(root / "cat/0.png")
    content, pictures = contents(ImageFolder(root))
    assert len(pictures) == 9
    assert content.skipped.reasons == {"a link that leaves the folder": 2, "a link to a folder, or to nothing": 2}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a file's name be any bytes")
def test_names_of_any_bytes(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "a", class_files("cat", "dog"))
    Path(os.fsdecode(os.fsencode(root) + b"/cat/\xff\xfe.png")).write_bytes(picture(5))
    content, pictures = contents(ImageFolder(root))
    assert len(pictures) == 9
    assert r"cat/\udcff\udcfe.png" in [name for name, _ in content.hashes(silent)]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "a", class_files("cat", "dog"))
    (root / "cat").chmod(0)
    try:
        with pytest.raises(DataError, match="Permission denied"):
            contents(ImageFolder(root))
    finally:
        (root / "cat").chmod(0o755)


@pytest.mark.parametrize(
    "name", ["../evil.png", "cat/../../evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png"]
)
def test_zip_members_that_climb_out(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "a.zip", class_files("cat", "dog") | {name: picture(1)})
    with pytest.raises(DataError, match="outside of the archive"):
        contents(ImageZip(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zip"]


def test_an_encrypted_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", class_files("cat", "dog"))
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="encrypted") as caught:
        contents(ImageZip(path))
    assert "unpack it" in caught.value.hint


def test_a_zip_that_is_cut_off(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", class_files("cat", "dog"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="can't be read as a zip"):
        contents(ImageZip(path))


def test_a_member_with_a_flipped_bit(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", class_files("cat", "dog", count=9))
    data = bytearray(path.read_bytes())
    data[data.index(b"0.png") + 100] ^= 4
    path.write_bytes(data)
    content, pictures = contents(ImageZip(path))
    assert len(pictures) == 17
    assert content.skipped.listed == [("cat/0.png", "a broken zip member")]


def test_a_member_that_says_it_is_smaller_than_it_is(tmp_path: Path) -> None:
    """It is read as far as it said, so a bomb unpacks to nothing, and its checksum is wrong."""
    files = class_files("cat", "dog", count=9)
    bomb = b"\0" * 50_000_000
    path = write_zip(tmp_path / "a.zip", files | {"cat/bomb.png": bomb})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", len(bomb)), struct.pack("<I", 1000)))
    content, pictures = contents(ImageZip(path))
    assert len(pictures) == 18
    assert content.skipped.listed == [("cat/bomb.png", "a broken zip member")]


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(members, "MAX_FILE_BYTES", 1_000_000)
    files = class_files("cat", "dog", count=9) | {"cat/bomb.png": b"\0" * 1_000_001}
    dataset: Dataset
    if kind == "zip":
        dataset = ImageZip(write_zip(tmp_path / "a.zip", files))
    else:
        dataset = ImageFolder(write_folder(tmp_path / "a", files))
    content, _ = contents(dataset)
    assert content.skipped.listed == [("cat/bomb.png", "over 1.00 MB")]


def test_an_unknown_compression_is_a_broken_member(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", class_files("cat", "dog", count=9))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x03\x04") + 8] = data[data.index(b"PK\x01\x02") + 10] = 9  # Deflate64
    path.write_bytes(data)
    content, _ = contents(ImageZip(path))
    assert content.skipped.listed == [("cat/0.png", "a zip member of an unknown compression")]


def test_names_in_utf8_without_the_sign_for_it(tmp_path: Path) -> None:
    """As macOS writes them: zipfile takes such names for code page 437."""
    path = write_zip(tmp_path / "a.zip", class_files("Köter", "cat"))
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        place = data.find(mark)
        while place >= 0:
            data[place + offset] &= ~0x08
            place = data.find(mark, place + 1)
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert "Köter/0.png" not in archive.namelist()
    content, _ = contents(ImageZip(path))
    assert content.classes == ("Köter", "cat")


def test_names_that_differ_only_in_case_or_spelling_are_all_there(tmp_path: Path) -> None:
    files = {f"{folder}/{name}": picture(n) for n, (folder, name) in enumerate(
        (folder, name) for folder in ("cat", "dog") for name in ("a.png", "A.PNG", "é.png", "e\u0301.png")
    )}  # fmt: skip
    content, pictures = contents(ImageZip(write_zip(tmp_path / "a.zip", files)))
    assert len(pictures) == 8
    assert content.classes == ("cat", "dog")


def test_the_message_names_the_source(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "a", class_files("cat"))
    with pytest.raises(DataError, match=r"a can't be used: it has only the class cat"):
        contents(ImageFolder(root))


@pytest.mark.parametrize(
    ("name", "short"),
    [("My Photos.v2", "my-photos-v2"), ("___", "images"), ("Ä" * 3, "images"), ("x" * 99, "x" * 40)],
)
def test_names_of_packs(tmp_path: Path, name: str, short: str) -> None:
    assert ImageFolder(write_folder(tmp_path / name, {"a/b.png": b""})).name == short
