from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from filelock import BaseFileLock

from lowmem_seq.errors import RunLockedError, UsageError
from lowmem_seq.files import LARGEST_JSON_BYTES, read_json, write_text
from lowmem_seq.runs import folder as module
from lowmem_seq.runs.folder import RunFolder, create_run, default_run_path, open_run
from tests.builders import (
    NEEDS_LINKS,
    SECONDS_FOR_A_PROCESS,
    end,
    names,
    read_line,
    start_python,
    tiny_config,
)

HOLDING = """
import sys
from pathlib import Path
from lowmem_seq.runs.folder import RunFolder

run = RunFolder(Path(sys.argv[1]))
with run.writing() if sys.argv[2] == "writing" else run.locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["locked", "writing"])
def holder(run: RunFolder, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run, as its supervisor or as its trainer."""
    process = start_python(HOLDING, str(run.path), request.param)
    assert read_line(process) == "held"
    yield process
    process.kill()
    process.communicate()


SUPERVISED = pytest.mark.parametrize("holder", ["locked"], indirect=True)
TRAINED = pytest.mark.parametrize("holder", ["writing"], indirect=True)


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who starts waits less for a reader; a holder doesn't end in that time either."""
    monkeypatch.setattr(module, "SECONDS_FOR_A_READER", 0.1)


@contextlib.contextmanager
def ending(holder: subprocess.Popen[str], after_seconds: float) -> Iterator[None]:
    """The holder ends, by itself, so long after the block began."""
    timer = threading.Timer(after_seconds, end, args=(holder,))
    timer.start()
    yield
    timer.join()


def test_a_new_run_holds_its_settings_and_its_environment(tmp_path: Path) -> None:
    config = tiny_config("seed=7")
    run = create_run(tmp_path / "runs" / "first", config)
    assert names(run.path) == ["config.yaml", "environment.json", "lock"]
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
    assert names(tmp_path) == ["photo.jpg"]


def test_what_a_start_left_that_was_killed_at_once_is_no_run_yet(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "environment.json").write_text("{}")
    (path / "config.yaml.partial-0123abcd").write_text("half")
    run = create_run(path, tiny_config("seed=7"))
    assert run.config.seed == 7
    assert read_json(run.environment_file)["format_version"] == 1


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
    for content, told in (
        ("{", "can't be read"),
        ("[" * 100_000, "can't be read: it is nested too deeply"),
        ("9" * (LARGEST_JSON_BYTES + 1), rf"can't be read: plan\.json has over {LARGEST_JSON_BYTES:,} bytes"),
        ("[1]", "holds no JSON object"),
    ):
        write_text(run.plan_file, content)
        with pytest.raises(UsageError, match=told) as caught:
            run.read_json(run.plan_file)
        assert str(run.plan_file) in caught.value.message
        assert caught.value.hint == "restore it from a copy of the run"


@SUPERVISED
@pytest.mark.usefixtures("short_wait")
def test_a_run_is_held_by_one_process_at_a_time(run: RunFolder, holder: subprocess.Popen[str]) -> None:
    assert run.is_locked()
    with pytest.raises(RunLockedError) as caught, run.locked():
        pass
    assert caught.value.exit_code == 9
    assert caught.value.message == f"{run.path} is being written by another process."
    assert caught.value.hint == "wait for it, or stop it with Ctrl-C in its own terminal"
    assert end(holder)[0] == 0
    assert not run.is_locked()
    with run.locked():
        assert RunFolder(run.path).is_locked()
    assert not run.is_locked()


@SUPERVISED
@pytest.mark.usefixtures("short_wait")
@pytest.mark.parametrize(
    ("told", "named"), [([11, 4321], " (process 4321)"), ([4321, None], ""), ([4321, "$(reboot)"], "")]
)
def test_who_holds_the_run_is_the_last_session_s_supervisor(
    run: RunFolder, holder: subprocess.Popen[str], told: list[object], named: str
) -> None:
    for pid in told:
        run.events.append("session_opened", supervisor_pid=pid)
    run.events.append("train", supervisor_pid=99)
    with pytest.raises(RunLockedError) as caught, run.locked():
        pass
    assert caught.value.message == f"{run.path} is being written by another process{named}."


@TRAINED
@pytest.mark.usefixtures("short_wait")
def test_a_trainer_that_is_left_over_holds_the_run_too(run: RunFolder, holder: subprocess.Popen[str]) -> None:
    assert run.is_locked()
    with run.locked(), pytest.raises(RunLockedError) as caught, run.writing():
        pass
    assert caught.value.exit_code == 9
    assert caught.value.message == f"a trainer of an earlier session of {run.path} is still running."
    assert caught.value.hint == "wait until it has saved and ended, and try again"
    assert end(holder)[0] == 0
    assert not run.is_locked()


@TRAINED
@pytest.mark.usefixtures("short_wait")
def test_a_trainer_that_is_left_over_is_waited_for(run: RunFolder, holder: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    with ending(holder, after_seconds=0.5), run.writing(wait_seconds=SECONDS_FOR_A_PROCESS):
        assert time.monotonic() - began >= 0.45
        assert run.is_locked()


def test_of_two_that_start_in_one_folder_the_second_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_FOR_A_READER", 0.05)
    folder = tmp_path / "run"
    folder.mkdir()
    first = RunFolder(folder)
    with first.locked():
        with pytest.raises(RunLockedError):
            create_run(folder, tiny_config("seed=2"))
        first.write_config(tiny_config("seed=1"))
    with pytest.raises(UsageError, match="is not empty"):
        create_run(folder, tiny_config("seed=2"))
    assert open_run(folder).config.seed == 1


@pytest.mark.parametrize("locking", ["locked", "writing"])
@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.ENOSYS, "knows no locks (Function not implemented), so two processes could write one run."),
        (errno.ENOTSUP, "knows no locks (Operation not supported), so two processes could write one run."),
        (errno.EACCES, "can't be written: Permission denied."),
    ],
)
def test_a_run_that_can_t_be_locked_is_refused(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, locking: str, code: int, told: str
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    fcntl = pytest.importorskip("fcntl", reason="Windows locks otherwise")
    if code == errno.EACCES:  # flock's own EACCES means that another process holds the lock
        monkeypatch.setattr(os, "open", refuse)
    else:
        monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UsageError) as caught, getattr(run, locking)():
        raise AssertionError("it was locked")
    assert str(run.path) in caught.value.message
    assert caught.value.message.endswith(told)


@SUPERVISED
def test_who_looks_whether_a_run_is_held_does_not_keep_a_writer_from_starting(
    run: RunFolder, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_FOR_A_READER", SECONDS_FOR_A_PROCESS)  # the holder is one
    with ending(holder, after_seconds=0.2), run.locked():  # far longer than a look takes
        assert run.is_locked()


def test_writers_start_while_others_look_all_the_time(run: RunFolder) -> None:
    with run.locked(), run.writing():
        pass
    ended = threading.Event()
    starts = looks = 0

    def look() -> None:
        nonlocal looks
        while not ended.is_set():
            RunFolder(run.path).is_locked()
            looks += 1

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        while starts < 30 or looks < 30:
            with run.locked(), run.writing():
                starts += 1
    finally:
        ended.set()
        for reader in readers:
            reader.join()


def test_the_lock_of_a_killed_process_is_free(run: RunFolder, holder: subprocess.Popen[str]) -> None:
    assert run.is_locked()
    holder.kill()
    holder.communicate()
    assert not run.is_locked()
    with run.locked(), run.writing():
        assert run.is_locked()


@pytest.mark.parametrize("content", [b"", b"\x00\xff rubbish {", str(os.getpid()).encode(), b"1\n"])
def test_a_lock_file_that_was_left_behind_holds_nothing(run: RunFolder, content: bytes) -> None:
    before_boot = psutil.boot_time() - 3600
    for name in ("lock", "lock-writer"):
        (run.path / name).write_bytes(content)
        os.utime(run.path / name, (before_boot, before_boot))
    assert not run.is_locked()
    with run.locked(), run.writing():
        assert run.is_locked()
    assert not run.is_locked()


def test_a_copy_of_a_run_that_is_held_is_free(
    run: RunFolder, holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    copy = RunFolder(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    assert run.is_locked()
    assert not copy.is_locked()
    with copy.locked(), copy.writing():
        pass


@pytest.fixture
def read_only(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of somebody else, or on a disk that can't be written: its lock files can't be opened for writing."""

    def refuse(*arguments: object, **details: object) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(BaseFileLock, "acquire", refuse)


@pytest.mark.usefixtures("read_only")
def test_a_run_that_can_only_be_read_is_held_by_nobody_where_nobody_holds_it(run: RunFolder) -> None:
    for name in ("lock", "lock-writer"):
        (run.path / name).touch()
        assert not run.is_locked()


@pytest.mark.usefixtures("read_only")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows doesn't tell")
def test_a_run_that_can_only_be_read_is_seen_to_be_held(run: RunFolder, holder: subprocess.Popen[str]) -> None:
    assert run.is_locked()
    assert end(holder)[0] == 0
    assert not run.is_locked()


def test_two_that_look_at_the_same_moment_do_not_take_each_other_for_a_writer(
    run: RunFolder, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_FOR_AN_INSTANT", SECONDS_FOR_A_PROCESS)
    with ending(holder, after_seconds=0.2):
        assert not run.is_locked()


def test_an_error_inside_lets_go_of_the_run(run: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError), run.locked(), run.writing():
        raise ZeroDivisionError
    assert not run.is_locked()


def test_looking_at_a_run_that_was_never_held_makes_no_file(run: RunFolder) -> None:
    run.lock_file.unlink()
    assert not run.is_locked()
    assert not [name for name in names(run.path) if name.startswith("lock")]


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


IN_A_RUN = [
    "config.yaml",
    "events.jsonl",
    "lock",
    "checkpoints",
    "checkpoints/step-00000001",
    "checkpoints/step-00000001/model.safetensors",
    "checkpoints/step-00000001.partial-0123abcd",
    "report.html",
    "deep/down/anything",
]


@NEEDS_LINKS
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", IN_A_RUN)
def test_a_link_anywhere_in_a_run_is_refused(run: RunFolder, tmp_path: Path, name: str, there: bool) -> None:
    link, target = run.path / name, tmp_path / "elsewhere"
    link.parent.mkdir(parents=True, exist_ok=True)
    if name == "config.yaml":
        link.rename(target)
    elif there:
        target.mkdir()
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    with pytest.raises(UsageError) as caught:
        open_run(run.path)
    assert caught.value.exit_code == 2
    assert caught.value.message == f"{link} is a link, and a run's files must lie in its own folder."
    assert caught.value.hint == "copy the run with its links resolved: cp -rL RUN_DIR COPY"
    assert link.is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
@pytest.mark.parametrize("name", ["plan.json", "events.jsonl", "checkpoints/step-00000001/state.json"])
def test_a_pipe_that_a_read_would_wait_at_is_refused(run: RunFolder, name: str) -> None:
    pipe = run.path / name
    pipe.parent.mkdir(parents=True, exist_ok=True)
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    with pytest.raises(UsageError) as caught:
        open_run(run.path)
    assert caught.value.message == f"{pipe} is a pipe or a device."


@NEEDS_LINKS
def test_a_run_may_be_opened_by_a_link_to_its_folder(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "newest").symlink_to(run.path)
    assert open_run(tmp_path / "newest").config == run.config


@NEEDS_LINKS
def test_leftovers_of_killed_writes_are_removed_and_nothing_else(run: RunFolder, tmp_path: Path) -> None:
    before = names(run.path)
    (tmp_path / "mine").write_text("mine")
    (run.path / "plan.json.partial-0123abcd").write_text("half")
    (run.path / "model.safetensors.partial-0123abcd").mkdir()
    (run.path / "model.safetensors.partial-0123abcd" / "model.safetensors").write_text("half")
    (run.path / "data.json.partial-0123abcd").symlink_to(tmp_path)
    run.remove_leftovers()
    assert names(run.path) == before
    assert (tmp_path / "mine").read_text() == "mine"
