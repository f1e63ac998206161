from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lowmem_seq import files
from lowmem_seq.files import (
    REMOVED_MARK,
    append_line,
    building_folder,
    is_temporary,
    make_folder,
    make_folder_in_place,
    name_wanted,
    needing,
    placing,
    remove_folder,
    rename,
    sync_written,
    temporary_beside,
    write_text,
    writing,
)
from tests.builders import end, names, read_line, start_python
from tests.disks import RefusingDisk


class DiskFullError(OSError):
    """What a full disk would say."""


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, "old")
    write_text(path, "new: ä\n")
    assert path.read_bytes() == "new: ä\n".encode()
    assert names(tmp_path) == ["config.yaml"]


@pytest.mark.parametrize("error", [DiskFullError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, "old")

    def write_half() -> None:
        with writing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["config.yaml"]


def test_the_file_is_not_there_before_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with placing(path) as temporary:
        temporary.write_bytes(b"all of it")
        assert not path.exists()
        assert is_temporary(temporary.parent)
        assert temporary.parent.parent == tmp_path
    assert path.read_bytes() == b"all of it"
    assert names(tmp_path) == ["weights"]


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), placing(path):
        pass
    assert path.read_bytes() == b"old"


def place(path: Path, content: str) -> None:
    with placing(path) as temporary:
        temporary.write_text(content)


def build(path: Path, content: str, replacing: bool = False) -> None:
    with building_folder(path, replacing) as building:
        (building / "inside").write_text(content)


def rebuild(path: Path, content: str) -> None:
    build(path, content, replacing=True)


def asked_for(act: Callable[..., object], *arguments: object) -> list[str]:
    """What the disk is asked for by `act(*arguments)`, in order."""
    disk = RefusingDisk()
    with files.using(disk):
        act(*arguments)
    return disk.asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_bytes_are_synced_before_the_rename_and_the_name_after_it(folder: Path) -> None:
    order = ["sync file plan.json~", "rename plan.json~ to plan.json", "sync folder run"]
    for text in ("{}", "[]"):
        assert asked_for(write_text, folder / "plan.json", text) == order


def test_what_a_library_wrote_is_synced_before_it_gets_its_name(folder: Path) -> None:
    for content in ("old", "new"):
        assert asked_for(place, folder / "weights", content) == [
            "make folder weights~",
            "sync file weights~/weights",
            "rename weights~/weights to weights",
            "remove tree weights~",
            "sync folder run",
        ]


NEW_FOLDER = ["make folder pack~", "sync folder pack~", "rename pack~ to pack", "sync folder run"]


@pytest.mark.parametrize("replacing", [False, True])
def test_a_new_folder_s_names_are_synced_before_it_gets_its_own(folder: Path, replacing: bool) -> None:
    assert asked_for(build, folder / "pack", "new", replacing) == NEW_FOLDER


def test_a_folder_that_came_second_is_removed_under_its_temporary_name(folder: Path) -> None:
    build(folder / "pack", "old")
    assert asked_for(build, folder / "pack", "new") == [
        *NEW_FOLDER[:3],
        "remove tree pack~",
        "sync folder run",
    ]


def test_a_folder_is_replaced_when_the_new_one_is_whole_and_removed_when_the_names_are_safe(folder: Path) -> None:
    build(folder / "pack", "old")
    assert asked_for(rebuild, folder / "pack", "new") == [
        "make folder pack~",
        "sync folder pack~",
        "rename pack to pack~",
        "rename pack~ to pack",
        "sync folder run",
        "remove tree pack~",
    ]
    assert names(folder) == ["pack"]
    assert (folder / "pack" / "inside").read_text() == "new"


def test_a_folder_is_removed_under_a_temporary_name(folder: Path) -> None:
    build(folder / "pack", "old")
    assert asked_for(remove_folder, folder / "pack") == [
        "rename pack to pack!",
        "sync folder run",
        "remove tree pack!",
    ]
    assert names(folder) == []


def test_folders_are_made_from_the_top_each_with_its_name_synced(folder: Path) -> None:
    order = ["make folder a", "sync folder run", "make folder b", "sync folder a"]
    assert asked_for(make_folder, folder / "a" / "b") == order
    assert asked_for(make_folder, folder / "a" / "b") == []
    assert (folder / "a" / "b").is_dir()


def test_where_not_even_the_root_is_there_no_folder_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows with a drive that was pulled out: Z: is its own parent, and there is no end above it."""
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    disk = RefusingDisk(refuse_at=0)
    with pytest.raises(OSError, match="there is no such disk") as caught, files.using(disk):
        make_folder(Path("runs").absolute())
    assert caught.value.errno == errno.ENODEV
    assert caught.value.filename == Path.cwd().anchor
    assert disk.asked == []


def test_a_folder_in_another_is_made_without_those_above_it(folder: Path) -> None:
    assert asked_for(make_folder_in_place, folder / "a") == ["make folder a", "sync folder run"]
    assert asked_for(make_folder_in_place, folder / "a") == []
    with pytest.raises(FileNotFoundError):
        make_folder_in_place(folder / "b" / "c")
    assert names(folder) == ["a"]


def fail_in_need_of(folder: Path, error: Exception) -> None:
    with needing(folder, "the run folder"):
        raise error


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "no such file"), OSError(errno.EIO, "error")])
def test_an_error_where_a_needed_folder_is_gone_says_so(folder: Path, error: OSError) -> None:
    with pytest.raises(OSError, match=r"error|no such file") as caught:
        fail_in_need_of(folder, error)
    assert caught.value is error
    folder.rmdir()
    with pytest.raises(OSError, match="the run folder is gone") as caught:
        fail_in_need_of(folder, error)
    assert (caught.value.errno, caught.value.filename) == (errno.ENODEV, str(folder))
    with pytest.raises(ValueError, match="a defect"):
        fail_in_need_of(folder, ValueError("a defect"))


def test_a_folder_that_can_not_be_looked_at_is_as_good_as_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stat(path: Path) -> os.stat_result:
        raise PermissionError(errno.EACCES, "denied", str(path))

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(OSError, match="the run folder is gone") as caught:
        fail_in_need_of(folder, PermissionError(errno.EACCES, "denied"))
    assert caught.value.errno == errno.ENODEV


def test_a_line_for_a_folder_that_is_gone_is_the_disk_s_trouble(folder: Path) -> None:
    with pytest.raises(OSError, match="the folder is gone") as caught:
        append_line(folder / "gone" / "log", b"one")
    assert caught.value.errno == errno.ENODEV
    assert names(folder) == []


def test_a_folder_that_another_process_makes_at_the_same_moment_is_as_good(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def late(path: Path) -> None:
        mkdir(path)
        mkdir(path)

    monkeypatch.setattr(Path, "mkdir", late)
    assert asked_for(make_folder, folder / "a") == ["make folder a", "sync folder run"]


def test_a_renamed_file_s_new_name_is_synced(folder: Path) -> None:
    (folder / "a").write_text("content")
    assert asked_for(rename, folder / "a", folder / "b") == ["rename a to b", "sync folder run"]
    assert (folder / "b").read_text() == "content"


def test_what_somebody_else_wrote_is_synced_and_stays_as_it_is(folder: Path) -> None:
    (folder / "a").write_bytes(b"content")
    assert asked_for(sync_written, folder / "a") == ["sync file a"]
    assert (folder / "a").read_bytes() == b"content"


def test_a_line_is_one_append_and_begins_afresh_after_a_torn_one(folder: Path) -> None:
    path = folder / "log"
    assert asked_for(append_line, path, b"one") == ["append b'one\\n' to log"]
    assert asked_for(append_line, path, b"two") == ["append b'two\\n' to log"]
    with path.open("ab") as file:
        file.write(b"tor")
    assert asked_for(append_line, path, b"three") == ["append b'\\nthree\\n' to log"]
    assert path.read_bytes() == b"one\ntwo\ntor\nthree\n"


def test_the_disk_before_is_used_again_after_a_block_also_after_an_error(folder: Path) -> None:
    outer, inner = RefusingDisk(), RefusingDisk()
    with files.using(outer):
        with pytest.raises(ZeroDivisionError), files.using(inner):
            raise ZeroDivisionError
        write_text(folder / "a", "a")
    write_text(folder / "b", "b")
    assert (len(outer.asked), len(inner.asked)) == (3, 0)


KILLED_WHILE_WRITING = """
import sys
from pathlib import Path
from lowmem_seq.files import writing

with writing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("half is written", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is not known to Windows")
def test_a_kill_in_the_middle_leaves_the_old_file_and_a_temporary_name(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "old")
    process = start_python(KILLED_WHILE_WRITING, str(path))
    assert read_line(process) == "half is written"
    process.kill()
    assert end(process)[0] == -signal.SIGKILL
    assert path.read_text() == "old"
    leftovers = [entry for entry in tmp_path.iterdir() if entry != path]
    assert [is_temporary(entry) for entry in leftovers] == [True]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    with building_folder(path) as building:
        write_text(building / "a", "a")
        assert not path.exists()
    assert (path / "a").read_text() == "a"
    assert names(path.parent) == ["pack"]


def test_the_folder_above_a_new_one_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), building_folder(tmp_path / "gone" / "pack"):
        pass
    assert names(tmp_path) == []


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build_half() -> None:
        with building_folder(tmp_path / "pack") as building:
            write_text(building / "a", "a")
            raise DiskFullError

    with pytest.raises(DiskFullError):
        build_half()
    assert names(tmp_path) == []


def test_the_folder_that_came_first_stays(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    with building_folder(path) as slow:
        write_text(slow / "a", "late")
        with building_folder(path) as fast:
            write_text(fast / "a", "first")
    assert (path / "a").read_text() == "first"
    assert names(tmp_path) == ["pack"]


def test_a_file_in_the_folder_s_place_is_an_error_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    path.write_text("a file")
    with pytest.raises(OSError, match="pack"), building_folder(path) as building:
        write_text(building / "a", "a")
    assert path.read_text() == "a file"
    assert names(tmp_path) == ["pack"]


def test_temporary_names_differ_and_are_recognised(tmp_path: Path) -> None:
    drawn = {temporary_beside(tmp_path / "a") for _ in range(50)}
    assert len(drawn) == 50
    assert all(is_temporary(path) for path in drawn)
    assert not is_temporary(tmp_path / "step-00000200")
    assert {name_wanted(path) for path in drawn} == {"a"}


def test_what_is_removed_has_a_temporary_name_and_wants_none(tmp_path: Path) -> None:
    removed = temporary_beside(tmp_path / "step-00000200", REMOVED_MARK)
    assert is_temporary(removed)
    assert name_wanted(removed) == removed.name != "step-00000200"
