from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lowmem_seq import files
from lowmem_seq.files import (
    append_line,
    is_temporary,
    make_folder,
    name_wanted,
    remove_folder,
    remove_leftover,
    temporary_beside,
    write_text,
)
from tests.builders import NEEDS_LINKS, names
from tests.disks import RefusingDisk
from tests.test_files import build, place, rebuild

WRITERS: dict[str, Callable[[Path, str], None]] = {
    "write_text": write_text,
    "placing": place,
    "building_folder": build,
    "building_folder, replacing": rebuild,
}


def found(path: Path) -> str | None:
    """The content of a file, or of the files in a folder; None where there is nothing."""
    if path.is_dir():
        return "".join(inside.read_text() for inside in path.iterdir())
    return path.read_text() if path.exists() else None


@pytest.mark.parametrize("to_the_end", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("kind", WRITERS)
def test_wherever_the_disk_refuses_the_old_or_the_new_is_there_and_the_rest_has_temporary_names(
    tmp_path: Path, kind: str, old: str | None, to_the_end: bool
) -> None:
    write = WRITERS[kind]

    def attempt(refuse_at: int | None) -> tuple[Path, int, bool]:
        """The folder after a write that was refused there, the requests, and whether it succeeded all the same."""
        folder = tmp_path / f"refused at {refuse_at}"
        folder.mkdir()
        if old is not None:
            write(folder / "x", old)
        disk = RefusingDisk(refuse_at, to_the_end)
        try:
            with files.using(disk):
                write(folder / "x", "new")
        except OSError:
            return folder, len(disk.asked), False
        return folder, len(disk.asked), True

    undisturbed, requests, _ = attempt(None)
    assert names(undisturbed) == ["x"]
    for number in range(requests):
        folder, _, done = attempt(number)
        assert {path.name for path in folder.iterdir() if not is_temporary(path)} <= {"x"}
        if done:
            assert found(folder / "x") == found(undisturbed / "x")
        elif not to_the_end:
            assert found(folder / "x") in {old, "new"}
        else:  # nobody could give the old one its name back; it is there all the same
            assert found(folder / "x") in {old, "new", None}
            assert old is None or {found(path) for path in folder.iterdir()} & {old, "new"}


@pytest.mark.parametrize("refuse_at", [0, 1])
def test_a_write_that_is_refused_leaves_nothing_behind(tmp_path: Path, refuse_at: int) -> None:
    write_text(tmp_path / "plan.json", "old")
    disk = RefusingDisk(refuse_at)
    with pytest.raises(OSError, match="error"), files.using(disk):
        write_text(tmp_path / "plan.json", "new")
    assert disk.asked[-1] == "remove file plan.json~"
    assert names(tmp_path) == ["plan.json"]
    assert (tmp_path / "plan.json").read_text() == "old"


def test_where_the_new_folder_can_not_take_the_name_the_old_one_gets_it_back(tmp_path: Path) -> None:
    rebuild(tmp_path / "pack", "old")
    disk = RefusingDisk(refuse_at=3)
    with pytest.raises(OSError, match="error"), files.using(disk):
        rebuild(tmp_path / "pack", "new")
    assert disk.asked[2:] == [
        "rename pack to pack~",
        "rename pack~ to pack",
        "rename pack~ to pack",
        "remove tree pack~",
    ]
    assert names(tmp_path) == ["pack"]
    assert found(tmp_path / "pack") == "old"


def test_a_replaced_folder_that_can_not_be_deleted_is_left_under_a_temporary_name(tmp_path: Path) -> None:
    rebuild(tmp_path / "pack", "old")
    disk = RefusingDisk(refuse_at=5)
    with files.using(disk):
        rebuild(tmp_path / "pack", "new")
    assert disk.asked[5:] == ["remove tree pack~"]
    assert found(tmp_path / "pack") == "new"
    assert {name_wanted(path) for path in tmp_path.iterdir()} == {"pack"}
    assert [found(path) for path in tmp_path.iterdir() if is_temporary(path)] == ["old"]


def test_a_removal_that_is_refused_leaves_the_folder_or_a_temporary_name(tmp_path: Path) -> None:
    for refuse_at, left in ((0, False), (1, True), (2, True)):
        build(tmp_path / "pack", "old")
        with pytest.raises(OSError, match="error"), files.using(RefusingDisk(refuse_at)):
            remove_folder(tmp_path / "pack")
        assert [is_temporary(path) for path in tmp_path.iterdir()] == [left]
        remove_leftover(next(tmp_path.iterdir()))


@pytest.mark.parametrize("refuse_at", range(4))
def test_folders_that_are_refused_may_be_made_again(tmp_path: Path, refuse_at: int) -> None:
    with pytest.raises(OSError, match="error"), files.using(RefusingDisk(refuse_at)):
        make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a").exists() == (refuse_at > 0)
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_line_that_is_refused_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    append_line(tmp_path / "log", b"one")
    with pytest.raises(OSError, match="error"), files.using(RefusingDisk(refuse_at=0)):
        append_line(tmp_path / "log", b"two")
    assert (tmp_path / "log").read_bytes() == b"one\n"


@NEEDS_LINKS
def test_a_leftover_of_any_kind_is_removed_and_a_refusal_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "mine").write_text("mine")
    leftovers = [temporary_beside(folder / name) for name in ("file", "folder", "link", "gone")]
    leftovers[0].write_text("half")
    leftovers[1].mkdir()
    (leftovers[1] / "inside").write_text("half")
    leftovers[2].symlink_to(tmp_path)
    for leftover in leftovers:
        with files.using(RefusingDisk(refuse_at=0)):
            remove_leftover(leftover)
    assert len(names(folder)) == 3
    for leftover in leftovers:
        remove_leftover(leftover)
    assert names(folder) == []
    assert (tmp_path / "mine").read_text() == "mine"
