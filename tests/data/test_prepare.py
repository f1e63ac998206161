from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lowmem_seq.data import prepare as prepare_module
from lowmem_seq.data.cache import cache_folder, one_at_a_time, packs_folder, remove_leftovers
from lowmem_seq.data.fingerprint import quick_key
from lowmem_seq.data.pack import Pack
from lowmem_seq.data.prepare import find_dataset, find_pack, packs, prepare
from lowmem_seq.data.sources import ImageFolder, ImageZip
from lowmem_seq.errors import DataError, UsageError
from tests.data.builders import class_files, picture, write_folder, write_zip

Told = list[tuple[str, int, "int | None"]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", class_files("cat", "dog", count=10))


def test_a_pack_is_built_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: Told = []
    pack = prepare(str(photos), 8, lambda *said: told.append(said))
    assert pack.folder.name == f"photos-8px-{pack.fingerprint[:12]}"
    assert pack.folder.parent == packs_folder()
    assert (pack.size("train"), pack.size("test")) == (16, 4)
    assert pack.description.source == str(photos)
    assert "15 % of each class" in pack.description.test_part
    assert {what for what, _, _ in told} == {"listing files", "checking files", "reading images"}
    assert told[-1] == ("reading images", 20, 20)
    monkeypatch.setattr(ImageFolder, "opened", None)  # nothing is read again
    assert prepare(str(photos), 8).folder == pack.folder
    found = find_pack(str(photos), 8)
    assert found is not None
    assert found.folder == pack.folder


def test_a_changed_folder_is_packed_anew(photos: Path) -> None:
    before = prepare(str(photos), 8)
    (photos / "cat/0.png").write_bytes(picture(77))
    assert find_pack(str(photos), 8) is None
    after = prepare(str(photos), 8)
    assert after.fingerprint != before.fingerprint
    assert len(packs()) == 2


def test_a_touched_folder_is_hashed_but_not_packed_anew(photos: Path) -> None:
    before = prepare(str(photos), 8)
    os.utime(photos / "cat/0.png", (1, 1))
    told: Told = []
    assert prepare(str(photos), 8, lambda *said: told.append(said)).folder == before.folder
    assert "reading images" not in {what for what, _, _ in told}


def test_another_size_is_another_pack(photos: Path) -> None:
    assert prepare(str(photos), 8).fingerprint != prepare(str(photos), 12).fingerprint
    assert sorted(pack.image_size for pack in packs()) == [8, 12]


def test_skipped_files_stand_in_the_pack(photos: Path) -> None:
    (photos / "cat/notes.txt").write_text("x")
    (photos / "cat/3.png").write_bytes(b"x")
    skipped = prepare(str(photos), 8).description.skipped
    assert skipped.total == 2
    assert dict(skipped.listed) == {"cat/notes.txt": "not an image file", "cat/3.png": "not a readable image"}


@pytest.mark.parametrize("damage", ["torn", "no description"])
def test_a_damaged_pack_is_replaced(photos: Path, damage: str) -> None:
    pack = prepare(str(photos), 8)
    if damage == "torn":
        (pack.folder / "train.images").write_bytes(b"")
    else:
        (pack.folder / "pack.json").unlink()
    assert packs() == []
    told: Told = []
    again = prepare(str(photos), 8, lambda *said: told.append(said))
    again.verify()
    assert again.folder == pack.folder
    assert "replacing a damaged pack" in {what for what, _, _ in told}
    assert [path.name for path in packs_folder().iterdir()] == [pack.folder.name]


def test_a_dataset_that_fails_leaves_nothing(photos: Path) -> None:
    for number in range(6):
        (photos / f"cat/{number}.png").write_bytes(b"x")
    with pytest.raises(DataError, match="6 of the 10 images"):
        prepare(str(photos), 8)
    assert list(packs_folder().iterdir()) == []


def test_two_processes_at_once(photos: Path) -> None:
    command = [sys.executable, "-m", "lowmem_seq.data", str(photos), "8"]
    pipe = subprocess.PIPE  # an input that ends would tell of a supervisor that died
    children = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(3)]
    outputs = [child.stdout.readlines()[-1].rstrip() for child in children if child.stdout is not None]
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert len(list(packs_folder().iterdir())) == 1
    packs()[0].verify()


def test_what_another_process_packs_is_waited_for(photos: Path) -> None:
    dataset = find_dataset(str(photos))
    told: Told = []
    with ThreadPoolExecutor(1) as pool:
        with one_at_a_time(quick_key(dataset.source, dataset.stamps(), 8), lambda: None):
            other = pool.submit(prepare, str(photos), 8, lambda *said: told.append(said))
            while not told:
                time.sleep(0.001)
            assert told == [("waiting for the same images to be packed", 0, None)]
            assert not other.done()
        assert other.result().folder.is_dir()


def test_leftovers_older_than_a_day_are_removed() -> None:
    old, new = (packs_folder() / f"a-8px-0.partial-{n}" for n in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "train.images").write_bytes(b"x")
    kept = packs_folder() / "a-8px-0"
    kept.mkdir()
    note = cache_folder() / "remembered/x.json.partial-1"
    note.parent.mkdir()
    note.touch()
    two_days_ago = time.time() - 2 * 86400
    for path in (old / "train.images", old, kept, new, note):
        os.utime(path, (two_days_ago, two_days_ago))
    remove_leftovers()
    assert {path.name for path in packs_folder().iterdir()} == {new.name, kept.name}
    assert not note.exists()


def test_too_little_space_is_said_before_writing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(DataError, match=r"needs 3\.84 KB, and 1\.00 MB are free") as caught:
        prepare(str(photos), 8)
    assert "LOWMEM_SEQ_CACHE" in caught.value.hint


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fills_up_or_cannot_be_written(
    photos: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("lowmem_seq.data.pack._PartWriter.flush", fails)
    match = "the disk is full: .* are free in" if number == errno.ENOSPC else "can't be written"
    with pytest.raises(DataError, match=match):
        prepare(str(photos), 8)
    assert list(packs_folder().iterdir()) == []


def test_what_a_source_can_be(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_dataset("shapes").source == "shapes"
    assert isinstance(find_dataset(str(photos)), ImageFolder)
    assert isinstance(find_dataset(str(write_zip(tmp_path / "a.zip", class_files("cat", "dog")))), ImageZip)
    monkeypatch.chdir(tmp_path)
    assert find_dataset("photos").source == str(photos)
    (tmp_path / "shapes").mkdir()
    assert not isinstance(find_dataset("shapes"), ImageFolder)
    assert isinstance(find_dataset("./shapes"), ImageFolder)


def test_the_images_of_a_host_can_only_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "host").mkdir()
    with pytest.raises(DataError, match="only a run that joins it can fetch") as caught:
        find_dataset("host")
    assert "--data PATH" in caught.value.hint
    assert isinstance(find_dataset("./host"), ImageFolder)


def test_sources_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'cifar-10'") as misspelt:
        find_dataset("cifar-10")
    assert "did you mean 'cifar10'?" in misspelt.value.hint
    with pytest.raises(UsageError) as unlike:
        find_dataset("qqqq")
    assert "the catalogue has cifar10" in unlike.value.hint
    with pytest.raises(DataError, match="there is nothing at") as gone:
        find_dataset(str(tmp_path / "gone.zip"))
    assert gone.value.exit_code == 5
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="neither a folder nor a zip"):
        find_dataset(str(tmp_path / "a.tar.gz"))


@pytest.mark.parametrize(
    ("typed", "meant"), [("photo", "photos"), ("holdiay.zip", "holiday.zip"), ("x/phtos", "x/photos")]
)
def test_a_folder_or_zip_that_is_nearly_named_is_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str
) -> None:
    for folder in ("photos", "x/photos"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "holiday.zip").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, DataError)) as refused:
        find_dataset(typed)
    assert refused.value.hint.startswith(f"did you mean {str(Path(meant))!r}?")


def test_a_broken_note_is_as_good_as_none(photos: Path) -> None:
    pack = prepare(str(photos), 8)
    for note in (cache_folder() / "remembered").iterdir():
        for text in ("{", "[]", '{"pack": 3, "format_version": 1}', '{"pack": "../x", "format_version": 1}'):
            note.write_text(text)
            assert prepare(str(photos), 8).folder == pack.folder


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOWMEM_SEQ_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("LOWMEM_SEQ_CACHE")
    assert "lowmem-seq" in cache_folder().parts


def test_packing_a_folder_holds_no_dataset(tmp_path: Path) -> None:
    """Peak memory of a child that packs 40 MB of pictures lies within 25 MB of one that packs a tenth."""
    code = (
        "import sys, resource\n"
        "from lowmem_seq.data.prepare import prepare\n"
        "prepare(sys.argv[1], 128)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    if sys.platform == "win32":
        pytest.skip("the module resource is not there on Windows")
    peaks = []
    for count in (40, 400):
        root = write_folder(tmp_path / str(count), {})
        data = picture(1, 128)
        write_folder(root, {f"{name}/{n}.png": data for name in ("cat", "dog") for n in range(count)})
        child = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
        peaks.append(int(child.stdout) * (1 if sys.platform == "darwin" else 1024))
    assert peaks[1] - peaks[0] < 25e6


def test_the_pack_can_be_read_while_the_source_is_gone(photos: Path) -> None:
    folder = prepare(str(photos), 8).folder
    shutil.rmtree(photos)
    assert Pack.open(folder).read("train", np.arange(3)).shape == (3, 8, 8, 3)
    with pytest.raises(DataError, match="there is nothing at"):
        prepare_module.prepare(str(photos), 8)
