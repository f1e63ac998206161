from __future__ import annotations

import hashlib
import json
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowmem_seq import files
from lowmem_seq.files import (
    building_folder,
    is_temporary,
    placing,
    read_json,
    sha256_of,
    temporary_beside,
    write_json,
    write_text,
    writing,
)
from tests.builders import end, read_line, start_python


class DiskFullError(OSError):
    """What a full disk would say."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
        assert is_temporary(temporary)
        assert temporary.parent == tmp_path
    assert path.read_bytes() == b"all of it"
    assert names(tmp_path) == ["weights"]


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), placing(path):
        pass
    assert path.read_bytes() == b"old"


def test_bytes_are_synced_before_the_rename_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    replace, sync_file, sync_folder = Path.replace, files.sync_file, files.sync_folder

    def recorded_replace(self: Path, target: Path) -> Path:
        happened.append(f"rename to {target.name}")
        return replace(self, target)

    def recorded_sync_file(file: IO[Any]) -> None:
        happened.append("sync file")
        sync_file(file)

    def recorded_sync_folder(folder: Path) -> None:
        happened.append(f"sync {folder.name}")
        sync_folder(folder)

    monkeypatch.setattr(Path, "replace", recorded_replace)
    monkeypatch.setattr(files, "sync_file", recorded_sync_file)
    monkeypatch.setattr(files, "sync_folder", recorded_sync_folder)
    folder = tmp_path / "run"
    folder.mkdir()
    write_text(folder / "plan.json", "{}")
    assert happened == ["sync file", "rename to plan.json", "sync run"]


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
    path = tmp_path / "deeper" / "pack"
    with building_folder(path) as building:
        write_text(building / "a", "a")
        assert not path.exists()
    assert (path / "a").read_text() == "a"
    assert names(path.parent) == ["pack"]


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON)
def test_json_comes_back_as_it_went(tmp_path: Path, value: object) -> None:
    path = tmp_path / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert path.read_bytes().endswith(b"\n")


def test_json_that_others_could_not_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": math.nan})
    assert read_json(path) == {"loss": 1.0}


@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        (lambda path: None, FileNotFoundError),
        (lambda path: path.write_bytes(b"{"), json.JSONDecodeError),
        (lambda path: path.write_bytes(b"\xff"), UnicodeDecodeError),
    ],
)
def test_what_is_no_json_raises(tmp_path: Path, prepare: Callable[[Path], object], error: type[Exception]) -> None:
    prepare(tmp_path / "value.json")
    with pytest.raises(error):
        read_json(tmp_path / "value.json")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_sha256_is_that_of_the_bytes(tmp_path: Path, size: int) -> None:
    content = b"ab" * size
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
