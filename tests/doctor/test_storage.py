"""Disks and clouds: each made to fail."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq import files
from lowmem_seq.disk import SystemDisk
from lowmem_seq.doctor import storage
from lowmem_seq.doctor.storage import RUNS_HERE, Place, check_place, look_at
from lowmem_seq.doctor.synced import synced_by
from tests.builders import names
from tests.doctor.builders import the_only, verdicts

GOOD = Place("/home/ann/runs", 50 * 10**9, "ext4")


def test_a_place_where_all_is_well_passes() -> None:
    finding = the_only(check_place(*RUNS_HERE, GOOD))
    assert (finding.verdict, finding.told) == (
        "pass",
        "/home/ann/runs: 50.0 GB free, ext4, can be written and locked",
    )
    assert finding.figures["free_bytes"] == 50 * 10**9


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"write_trouble": "Read-only file system"}, "fail", "can't be written: Read-only file system"),
        ({"lock_trouble": "Function not implemented"}, "fail", "knows no locks (Function not implemented)"),
        ({"free_bytes": 900_000_000}, "fail", "900 MB are free at /home/ann/runs"),
        ({"free_bytes": 3 * 10**9}, "note", "3.00 GB are free"),
        ({"synced_by": "OneDrive"}, "note", "copied to a cloud by OneDrive"),
        ({"file_system": "tmpfs"}, "note", "lies in memory (tmpfs)"),
        ({"file_system": "nfs4"}, "note", "lies on another machine (nfs4)"),
        ({"file_system": "exfat"}, "note", "is on exfat, which a power cut may damage"),
    ],
)
def test_what_is_wrong_with_a_place_is_told(changes: dict[str, Any], verdict: str, words: str) -> None:
    finding = the_only(check_place(*RUNS_HERE, replace(GOOD, **changes)))
    assert finding.verdict == verdict
    assert words in finding.told
    assert "--run-dir DIR" in finding.fix


def test_all_that_is_wrong_is_told() -> None:
    place = replace(GOOD, file_system="tmpfs", synced_by="Dropbox", write_trouble="Permission denied")
    assert verdicts(check_place(*RUNS_HERE, place)) == [
        ("runs folder", "fail"),
        ("runs folder", "note"),
        ("runs folder", "note"),
    ]


def test_a_folder_that_is_not_there_yet_is_tried_where_it_would_be_and_nothing_is_left(tmp_path: Path) -> None:
    place = look_at(tmp_path / "not" / "yet")
    assert (place.path, place.write_trouble, place.lock_trouble) == (str(tmp_path / "not" / "yet"), "", "")
    assert place.free_bytes > 0
    assert place.file_system
    assert names(tmp_path) == []


def test_a_disk_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda _: False)
    assert look_at(tmp_path).write_trouble == "there is no such disk"


class ReadOnlyDisk(SystemDisk):
    def rename(self, source: Path, target: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")


def test_a_disk_that_refuses_a_checkpoint_s_rename_is_found(tmp_path: Path) -> None:
    with files.using(ReadOnlyDisk()):
        assert look_at(tmp_path).write_trouble == "Read-only file system"
    assert names(tmp_path) == []


class Lock:
    """A lock of a disk: one that is refused, or one that is given to everybody."""

    trouble: OSError | None = None

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    @contextmanager
    def acquire(self, timeout: float) -> Iterator[None]:
        if self.trouble is not None:
            raise self.trouble
        yield


def test_a_disk_without_locks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FileLock", Lock)
    assert look_at(tmp_path).lock_trouble == "a second one was given to the same file"
    monkeypatch.setattr(Lock, "trouble", OSError(errno.ENOSYS, "Function not implemented"))
    assert look_at(tmp_path).lock_trouble == "Function not implemented"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("OneDrive/runs", "OneDrive"),
        ("OneDrive - State University/thesis", "OneDrive"),
        ("Dropbox (Personal)/x", "Dropbox"),
        ("Google Drive/My Drive/x", "Google Drive"),
        ("iCloudDrive/x", "iCloud Drive"),
        ("Nextcloud", "Nextcloud"),
        ("megapixels/runs", None),
        ("dropboxes/runs", None),
        ("runs", None),
        (".", None),
    ],
)
def test_a_cloud_s_folder_is_known_by_its_name(tmp_path: Path, path: str, name: str | None) -> None:
    assert synced_by(tmp_path / path, tmp_path, {}, "win32") == name


def test_a_folder_outside_of_the_home_is_no_cloud_s(tmp_path: Path) -> None:
    assert synced_by(tmp_path / "Dropbox", tmp_path / "home", {}, "linux") is None


def test_onedrive_tells_of_its_folder_by_a_variable(tmp_path: Path) -> None:
    environment = {"OneDriveCommercial": str(tmp_path / "work"), "OneDrive": ""}
    assert synced_by(tmp_path / "work" / "runs", tmp_path / "home", environment, "win32") == "OneDrive"


@pytest.mark.parametrize(
    ("told", "name"), [({"personal": {"path": "PLACE"}}, "Dropbox"), ({"personal": 3}, None), ([], None)]
)
def test_dropbox_tells_of_its_folder_by_a_file(tmp_path: Path, told: Any, name: str | None) -> None:
    home = tmp_path / "home"
    (home / ".dropbox").mkdir(parents=True)
    text = json.dumps(told).replace("PLACE", (tmp_path / "box").as_posix())
    (home / ".dropbox" / "info.json").write_text(text, encoding="utf-8")
    assert synced_by(tmp_path / "box" / "runs", home, {}, "linux") == name


def test_icloud_may_have_taken_documents_and_desktop(tmp_path: Path) -> None:
    icloud = tmp_path / "Library/Mobile Documents/com~apple~CloudDocs"
    icloud.mkdir(parents=True)
    assert synced_by(icloud / "runs", tmp_path, {}, "darwin") == "iCloud Drive"
    assert synced_by(tmp_path / "Documents" / "runs", tmp_path, {}, "darwin") is None
    (icloud / "Documents").mkdir()
    assert synced_by(tmp_path / "Documents" / "runs", tmp_path, {}, "darwin") == "iCloud Drive"
    assert synced_by(tmp_path / "Library/CloudStorage/Box-Box", tmp_path, {}, "darwin") == "a cloud's program"
