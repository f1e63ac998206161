from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowmem_seq.errors import RunLockedError, UsageError
from lowmem_seq.files import read_json, write_text
from lowmem_seq.runs.folder import RunFolder, create_run, default_run_path, open_run
from tests.builders import end, read_line, start_python, tiny_config

LOCKING = """
import sys
from pathlib import Path
from lowmem_seq.runs.folder import RunFolder

with RunFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(run: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run."""
    process = start_python(LOCKING, str(run.path))
    assert read_line(process) == "locked"
    yield process
    process.kill()
    process.communicate()


def test_a_new_run_holds_its_settings_and_its_environment(tmp_path: Path) -> None:
    config = tiny_config("seed=7")
    run = create_run(tmp_path / "runs" / "first", config)
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "environment.json"]
    assert run.config == config
    assert read_json(run.environment_file)["format_version"] == 1
    assert open_run(run.path).config == config


def test_an_empty_folder_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert create_run(tmp_path / "mine", tiny_config()).config_file.is_file()


def test_a_folder_with_a_run_is_refused_with_the_way_to_go_on(run: RunFolder) -> None:
    with pytest.raises(UsageError) as caught:
        create_run(run.path, tiny_config())
    assert caught.value.message == f"the run folder {run.path} is not empty."
    assert caught.value.hint == f"lowmem-seq resume {run.path}"


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="is not empty") as caught:
        create_run(tmp_path, tiny_config())
    assert caught.value.hint == "choose another: --run-dir DIR"
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_file_in_the_folder_s_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="can't be made") as caught:
            create_run(path, tiny_config())
        assert caught.value.hint == "choose another: --run-dir DIR"


@pytest.mark.parametrize(("made", "told"), [(False, "there is no folder"), (True, "there is no run in")])
def test_opening_what_is_no_run_is_refused(tmp_path: Path, made: bool, told: str) -> None:
    path = tmp_path / "nothing"
    if made:
        path.mkdir()
    with pytest.raises(UsageError) as caught:
        open_run(path)
    assert caught.value.message == f"{told} {path}."
    assert "lowmem-seq report" in caught.value.hint


def test_opening_a_run_checks_its_settings(run: RunFolder) -> None:
    write_text(run.config_file, run.config_file.read_text().replace("epochs: 4", "epochs: -4"))
    with pytest.raises(UsageError, match=r"recipe\.epochs"):
        open_run(run.path)


def test_json_of_a_run_is_an_object_or_not_there_yet(run: RunFolder) -> None:
    assert run.read_json(run.path / "nothing.json") is None
    for content, told in (("{", "can't be read"), ("[1]", "holds no JSON object")):
        write_text(run.plan_file, content)
        with pytest.raises(UsageError, match=told) as caught:
            run.read_json(run.plan_file)
        assert str(run.plan_file) in caught.value.message
        assert caught.value.hint == "restore it from a copy of the run"


def test_a_run_is_held_by_one_process_at_a_time(run: RunFolder, holder: subprocess.Popen[str]) -> None:
    assert run.is_locked()
    with pytest.raises(RunLockedError) as caught, run.locked():
        pass
    assert caught.value.exit_code == 9
    assert caught.value.message == f"{run.path} is being written by another process."
    assert "Ctrl-C" in caught.value.hint
    assert end(holder)[0] == 0
    assert not run.is_locked()
    with run.locked():
        assert RunFolder(run.path).is_locked()
    assert not run.is_locked()


def test_the_lock_of_a_killed_process_is_free(run: RunFolder, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.communicate()
    assert not run.is_locked()
    with run.locked():
        pass


def test_an_error_inside_lets_go_of_the_run(run: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError), run.locked():
        raise ZeroDivisionError
    assert not run.is_locked()


def test_looking_at_a_run_that_was_never_held_makes_no_file(run: RunFolder) -> None:
    assert not run.is_locked()
    assert not (run.path / "lock").exists()


def test_a_run_s_default_name_says_preset_and_time_and_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda pattern: "20260102-030405")
    taken = []
    for _ in range(3):
        path = default_run_path("small", tmp_path)
        path.mkdir()
        taken.append(path.name)
    stem = "small-20260102-030405"
    assert taken == [stem, f"{stem}-2", f"{stem}-3"]
