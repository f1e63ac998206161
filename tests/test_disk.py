from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lowmem_seq.disk import RENAME_WAITS_SECONDS, SystemDisk, errno_of, free_bytes, is_link, is_trouble
from tests.builders import NEEDS_LINKS, names

F_FULLFSYNC = 51


class Descriptors:
    """Hears what is synced: the size that the file has then, or the error that it raises instead."""

    def __init__(self, refusal: int | None = None) -> None:
        self.sizes: list[int] = []
        self.descriptors: list[int] = []
        self._refusal = refusal

    def __call__(self, descriptor: int, request: int | None = None) -> None:
        assert request in (None, F_FULLFSYNC)
        status = os.fstat(descriptor)
        self.sizes.append(status.st_size)
        self.descriptors.append(descriptor)
        if self._refusal is not None:
            raise OSError(self._refusal, os.strerror(self._refusal))


@pytest.fixture
def fsync(monkeypatch: pytest.MonkeyPatch) -> Descriptors:
    """The plain sync, that every system has."""
    heard = Descriptors()
    monkeypatch.setattr(os, "fsync", heard)
    return heard


def fake_fcntl(monkeypatch: pytest.MonkeyPatch, refusal: int | None = None) -> Descriptors:
    """macOS's module in the place of this system's; its sync refuses with an error where one is given."""
    heard = Descriptors(refusal)
    module: Any = SimpleNamespace(fcntl=heard, F_FULLFSYNC=F_FULLFSYNC)
    monkeypatch.setitem(sys.modules, "fcntl", module)
    return heard


def sync_five_bytes(path: Path, platform: str) -> None:
    with path.open("wb") as file:
        file.write(b"12345")
        SystemDisk(platform).sync_file(file)


def test_on_macos_the_drive_itself_is_asked_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Descriptors
) -> None:
    full = fake_fcntl(monkeypatch)
    sync_five_bytes(tmp_path / "file", "darwin")
    assert full.sizes == [5]
    assert fsync.sizes == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOTTY])
def test_a_network_volume_of_macos_that_does_not_know_it_gets_the_plain_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Descriptors, code: int
) -> None:
    full = fake_fcntl(monkeypatch, code)
    sync_five_bytes(tmp_path / "file", "darwin")
    assert full.sizes == fsync.sizes == [5]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_on_macos_other_errors_of_a_sync_pass_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Descriptors, code: int
) -> None:
    fake_fcntl(monkeypatch, code)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        sync_five_bytes(tmp_path / "file", "darwin")
    assert caught.value.errno == code
    assert fsync.sizes == []


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_elsewhere_the_plain_sync_comes_after_all_bytes_are_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Descriptors, platform: str
) -> None:
    full = fake_fcntl(monkeypatch)
    sync_five_bytes(tmp_path / "file", platform)
    assert fsync.sizes == [5]
    assert full.sizes == []


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL])
def test_a_plain_sync_that_fails_is_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", Descriptors(code))
    with pytest.raises(OSError, match=os.strerror(code)):
        sync_five_bytes(tmp_path / "file", "linux")


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="Windows can't open folders")
@pytest.mark.parametrize(
    ("code", "raised"), [(None, False), (errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)]
)
def test_a_folder_is_synced_where_that_is_known_and_its_errors_pass_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None, raised: bool
) -> None:
    synced: list[os.stat_result] = []
    heard = Descriptors(code)

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor))
        heard(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    error = None
    try:
        SystemDisk("linux").sync_folder(tmp_path)
    except OSError as caught:
        error = caught.errno
    assert error == (code if raised else None)
    assert [os.path.samestat(one, tmp_path.stat()) for one in synced] == [True]
    assert [is_open(descriptor) for descriptor in heard.descriptors] == [False]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows can't open folders")
@pytest.mark.parametrize(
    ("refusal", "plain_syncs", "raised"),
    [(None, 0, None), (errno.ENOTSUP, 1, None), (errno.EIO, 0, errno.EIO)],
)
def test_on_macos_the_drive_itself_is_asked_to_write_a_folder_s_names_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fsync: Descriptors,
    refusal: int | None,
    plain_syncs: int,
    raised: int | None,
) -> None:
    full = fake_fcntl(monkeypatch, refusal)
    error = None
    try:
        SystemDisk("darwin").sync_folder(tmp_path)
    except OSError as caught:
        error = caught.errno
    assert (len(full.descriptors), len(fsync.descriptors), error) == (1, plain_syncs, raised)
    assert [is_open(descriptor) for descriptor in full.descriptors] == [False]


def test_windows_can_not_sync_a_folder_and_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Descriptors
) -> None:
    SystemDisk("win32").sync_folder(tmp_path / "not even there")
    assert fsync.sizes == []


class Refusals:
    """`Path.replace` that refuses so many times, and the waits between two tries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, error: OSError) -> None:
        self.tries = 0
        self.waits: list[float] = []
        replace: Callable[[Path, Path], Path] = Path.replace

        def refuse(source: Path, target: Path) -> Path:
            self.tries += 1
            if self.tries <= count:
                raise error
            return replace(source, target)

        monkeypatch.setattr(Path, "replace", refuse)
        monkeypatch.setattr(time, "sleep", self.waits.append)


SCANNED = PermissionError(errno.EACCES, "a scanner has it open")


@pytest.mark.parametrize("count", [0, 1, len(RENAME_WAITS_SECONDS)])
def test_on_windows_a_refused_rename_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "file").write_text("old")
    refusals = Refusals(monkeypatch, count, SCANNED)
    SystemDisk("win32").rename(tmp_path / "new", tmp_path / "file")
    assert refusals.waits == list(RENAME_WAITS_SECONDS[:count])
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "new"


def test_on_windows_a_rename_that_stays_refused_raises_after_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_text("new")
    refusals = Refusals(monkeypatch, 1000, SCANNED)
    with pytest.raises(PermissionError, match="a scanner has it open"):
        SystemDisk("win32").rename(tmp_path / "new", tmp_path / "file")
    assert refusals.tries == len(RENAME_WAITS_SECONDS) + 1
    assert 1.5 < sum(refusals.waits) < 2
    assert names(tmp_path) == ["new"]


@pytest.mark.parametrize(
    ("platform", "error"),
    [("win32", OSError(errno.ENOSPC, "full")), ("linux", SCANNED), ("darwin", SCANNED)],
)
def test_what_waiting_can_not_mend_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, error: OSError
) -> None:
    refusals = Refusals(monkeypatch, 1, error)
    with pytest.raises(OSError, match=r"full|scanner") as caught:
        SystemDisk(platform).rename(tmp_path / "new", tmp_path / "file")
    assert caught.value is error
    assert (refusals.tries, refusals.waits) == (1, [])


def test_bytes_are_added_to_the_end_in_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    write = os.write

    def recorded(descriptor: int, data: bytes) -> int:
        written.append(bytes(data))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", recorded)
    path = tmp_path / "log"
    for line in (b"first\r\n", b"x" * 300_000):
        SystemDisk().append(path, line)
    assert written == [b"first\r\n", b"x" * 300_000]
    assert path.read_bytes() == b"first\r\n" + b"x" * 300_000


def test_a_write_that_took_a_part_goes_on_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    SystemDisk().append(tmp_path / "log", b"0123456789")
    assert (tmp_path / "log").read_bytes() == b"0123456789"


def test_an_append_that_fails_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def refuse(descriptor: int, data: bytes) -> int:
        opened.append(descriptor)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(OSError, match="full"):
        SystemDisk().append(tmp_path / "log", b"line")
    assert [is_open(descriptor) for descriptor in opened] == [False]


@NEEDS_LINKS
@pytest.mark.parametrize("there", [True, False])
def test_append_refuses_a_link_and_never_writes_where_it_leads(tmp_path: Path, there: bool) -> None:
    target, link = tmp_path / "somebody's file", tmp_path / "log"
    if there:
        target.write_bytes(b"mine")
    link.symlink_to(target)
    with pytest.raises(OSError, match="log") as caught:
        SystemDisk().append(link, b"line")
    assert caught.value.errno == errno.ELOOP
    assert target.exists() == there
    assert not there or target.read_bytes() == b"mine"


@NEEDS_LINKS
def test_what_is_removed_is_the_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "photo.jpg").write_bytes(b"mine")
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    (doomed / "inside").symlink_to(kept)
    (tmp_path / "link").symlink_to(kept / "photo.jpg")
    SystemDisk().remove_tree(doomed)
    SystemDisk().remove_file(tmp_path / "link")
    assert names(tmp_path) == ["kept"]
    assert (kept / "photo.jpg").read_bytes() == b"mine"


def test_a_file_that_is_gone_already_is_as_good_as_removed(tmp_path: Path) -> None:
    SystemDisk().remove_file(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        SystemDisk().remove_tree(tmp_path / "folder")


def test_one_folder_is_made_at_a_time_and_none_twice(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SystemDisk().make_folder(tmp_path / "a" / "b")
    SystemDisk().make_folder(tmp_path / "a")
    with pytest.raises(FileExistsError):
        SystemDisk().make_folder(tmp_path / "a")


@NEEDS_LINKS
def test_a_link_is_one_wherever_it_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert is_link(tmp_path / "link")
    assert not is_link(tmp_path)
    assert not is_link(tmp_path / "gone")


@pytest.mark.parametrize(("tag", "leads"), [(0xA0000003, True), (0x9000001A, False), (0, False)])
def test_a_junction_of_windows_is_a_link_and_a_file_in_the_cloud_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: int, leads: bool
) -> None:
    status = SimpleNamespace(st_mode=tmp_path.stat().st_mode, st_reparse_tag=tag)
    monkeypatch.setattr(os, "lstat", lambda path: status)
    assert is_link(tmp_path) is leads


def test_free_bytes_are_what_this_user_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(total=100, used=60, free=35)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert free_bytes(tmp_path) == 35
    assert asked == [tmp_path]


@pytest.mark.parametrize(
    ("code", "passes"),
    [
        *((code, True) for code in (errno.ENOSPC, errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV)),
        *((code, False) for code in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ELOOP, errno.EISDIR, None)),
    ],
)
def test_trouble_is_what_room_or_waiting_may_mend(code: int | None, passes: bool) -> None:
    error = OSError("without a number") if code is None else OSError(code, os.strerror(code))
    assert is_trouble(error, "linux") == is_trouble(error, "darwin") == passes


class WindowsError(OSError):
    """An error with the code that Windows gave, beside the errno that Python makes of it."""

    def __init__(self, code: int, errno_: int) -> None:
        super().__init__(errno_, "what Windows said")
        self.told = code

    @property
    def winerror(self) -> int:  # type: ignore[override, unused-ignore]
        return self.told


@pytest.mark.parametrize("code", [39, 112, 23, 21, 55, 59, 64, 1117, 5, 32, 33])
def test_on_windows_its_own_codes_of_a_disk_are_trouble_and_nowhere_else(code: int) -> None:
    error = WindowsError(code, errno.EINVAL)
    assert [is_trouble(error, platform) for platform in ("win32", "linux", "darwin")] == [True, False, False]


@pytest.mark.parametrize("code", [2, 3, 87, 123, 145])
def test_on_windows_what_waiting_can_not_mend_is_no_trouble(code: int) -> None:
    assert not is_trouble(WindowsError(code, errno.EINVAL), "win32")


def test_a_refused_access_is_trouble_on_windows_only() -> None:
    assert [is_trouble(SCANNED, platform) for platform in ("win32", "linux", "darwin")] == [True, False, False]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        *((code, errno.ENOSPC) for code in (39, 112)),
        *((code, errno.EACCES) for code in (5, 32, 33)),
        *((code, errno.EIO) for code in (21, 23, 55, 59, 64, 1117)),
        *((code, errno.EINVAL) for code in (0, 1, 28, 87)),
    ],
)
def test_a_code_is_windows_own_there_and_an_errno_elsewhere(code: int, found: int) -> None:
    assert errno_of(code, "win32") == found
    assert errno_of(code, "linux") == errno_of(code, "darwin") == code


@pytest.mark.skipif(not hasattr(errno, "EDQUOT"), reason="this system has no quotas")
def test_a_quota_that_is_used_up_is_trouble_too() -> None:
    assert is_trouble(OSError(errno.EDQUOT, "quota"))
