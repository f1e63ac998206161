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
from lowmem_seq.runs import folder as module
from lowmem_seq.runs.folder import RunFolder, create_run, open_run
from tests.builders import SECONDS_FOR_A_PROCESS, end, names, read_line, start_python, tiny_config

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
