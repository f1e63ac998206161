from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lowmem_seq.errors import DataError, LowmemSeqError
from lowmem_seq.memory.out_of_memory import died_for_memory
from lowmem_seq.supervisor import child as module
from lowmem_seq.supervisor.child import LAST_LINES, Child, Message
from tests.builders import SECONDS_FOR_A_PROCESS

Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a child that runs these lines of Python; one that does not end is ended, so that no test waits on."""
    patience: list[threading.Timer] = []

    def begin(*lines: str, log: Path | None = None, **environment: str) -> Child:
        (tmp_path / "one_child.py").write_text("\n".join(["import json, os, sys", *lines]), encoding="utf-8")
        child = Child("one_child", "argument", environment={"PYTHONPATH": str(tmp_path), **environment}, log=log)
        patience.append(threading.Timer(SECONDS_FOR_A_PROCESS, child.kill))
        patience[-1].start()
        return child

    yield begin
    for timer in patience:
        timer.cancel()


def soft_limit() -> int:
    """This process's own bound on its data segment."""
    import resource

    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def said(child: Child) -> list[Message | None]:
    """All that a child says until its end, silences left out."""
    return [message for message in child.messages(0.05) if message is not None]


def test_a_child_says_json_and_everything_else_is_passed_over(start: Start) -> None:
    child = start('print(\'{"event": "ä"}\\nno JSON\\n[1]\\n\\n{"event": 2}\', sys.argv[1:] == ["argument"])')
    assert said(child) == [{"event": "ä"}]  # the last line goes on after its JSON
    assert child.wait() == 0


def test_a_silent_child_is_noticed(start: Start) -> None:
    child = start("sys.stdin.readline()", 'print(json.dumps({"event": "heard"}))')
    messages = child.messages(0.01)
    assert next(messages) is None
    child.tell("anything")
    assert {"event": "heard"} in messages
    assert child.wait() == 0


def test_a_child_that_has_ended_hears_nothing_and_can_be_killed(start: Start) -> None:
    child = start("sys.stdin.close()")
    assert said(child) == []
    child.tell("stop")
    child.kill()
    assert child.wait() == 0
    child.tell("stop")
    child.kill()


def test_a_child_has_its_environment_and_none_of_accelerates(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("KEPT", "1")
    names = "ACCELERATE_USE_CPU", "KEPT", "OMP_NUM_THREADS", "PYTHONUTF8"
    child = start(f"print(json.dumps({{name: os.environ.get(name) for name in {names}}}))", OMP_NUM_THREADS="7")
    values = {"ACCELERATE_USE_CPU": None, "KEPT": "1", "OMP_NUM_THREADS": "7", "PYTHONUTF8": "1"}
    assert said(child) == [values]
    assert child.wait() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups of this kind")
def test_a_child_stands_in_a_group_of_its_own_that_ctrl_c_does_not_reach(start: Start) -> None:
    child = start('print(json.dumps({"pid": os.getpid(), "group": os.getpgid(0), "session": os.getsid(0)}))')
    (told,) = said(child)
    assert told is not None
    assert told["pid"] == told["group"] == told["session"] == child.process.pid
    assert os.getpgid(0) != told["group"]
    assert child.wait() == 0


def test_a_killed_child_has_died(start: Start) -> None:
    child = start("sys.stdin.read()")
    child.kill()
    assert said(child) == []
    code = child.wait()
    assert child.died(code)
    if sys.platform != "win32":
        assert code == -signal.SIGKILL
        assert child.was_killed(code)
        assert child.describe_end(code) == "was ended by SIGKILL"


def test_a_told_error_is_raised_again_as_what_it_was(start: Start) -> None:
    message = {"event": "error", "exit_code": 5, "message": "3 files are missing", "hint": "look for them"}
    child = start(f"print(json.dumps({message}), flush=True)", "sys.exit(5)")
    assert said(child) == [message]
    code = child.wait()
    assert code == 5
    assert not child.died(code)
    error = child.failure(code, "packer")
    assert type(error) is DataError
    assert (error.message, error.hint) == ("3 files are missing", "look for them")
    assert child.describe_end(code) == "said: 3 files are missing"


def test_an_error_of_python_is_a_defect_and_told_with_the_last_words(start: Start) -> None:
    child = start("json.loads('no')")
    assert said(child) == []
    code = child.wait()
    assert not child.died(code)
    error = child.failure(code, "packer")
    assert type(error) is LowmemSeqError
    assert error.message.startswith("the packer ended with code 1. Its last words:\n")
    assert error.message.endswith("json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)")
    assert len(error.message.splitlines()) == 1 + LAST_LINES


def test_a_child_that_ends_without_a_word_has_died(start: Start) -> None:
    child = start("os._exit(3)")
    assert said(child) == []
    code = child.wait()
    assert child.died(code)
    assert child.failure(code, "planner").message == "the planner ended with code 3."


@pytest.mark.parametrize(("words", "short"), [("x: Out of Memory", True), ("it remembers", False)])
def test_the_want_of_memory_shows_in_the_last_words(start: Start, words: str, short: bool) -> None:
    child = start(f"print({words!r}, file=sys.stderr)", "os._exit(1)" if not short else "sys.exit(1)")
    said(child)
    child.wait()
    assert child.ran_out_of_memory is short


def test_what_a_child_logs_is_kept_and_only_its_end_is_told(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "trainer.log"
    child = start("for number in range(30): print('line', number, file=sys.stderr)", "sys.exit(1)", log=log)
    said(child)
    assert child.failure(child.wait(), "trainer").message.splitlines()[1:] == [f"line {n}" for n in range(18, 30)]
    assert log.read_text(encoding="utf-8").splitlines() == [f"line {number}" for number in range(30)]


def test_a_log_stays_small_over_many_children(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_LOG", 100)
    log = tmp_path / "trainer.log"
    for _ in range(4):
        child = start("for number in range(30): print('line', number, file=sys.stderr)", log=log)
        said(child)
        assert child.wait() == 0
    kept = [log, log.with_name("trainer.log.old")]
    assert all(100 <= file.stat().st_size <= 220 for file in kept)
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("trainer.log")]) == 2


def test_a_log_that_cannot_be_written_holds_no_child_up(start: Start, tmp_path: Path) -> None:
    child = start("for number in range(9999): print('line', number, file=sys.stderr)", log=tmp_path / "no" / "log")
    began = time.monotonic()
    said(child)
    assert child.wait() == 0
    assert time.monotonic() - began < SECONDS_FOR_A_PROCESS


LAUNCHER = """
import subprocess
real = "import os, time; print(json.dumps({'pid': os.getpid()}), flush=True); time.sleep(600)"
sys.exit(subprocess.call([sys.executable, "-c", "import json;" + real]))
"""


def test_what_a_child_only_launched_is_ended_with_it(start: Start) -> None:
    """As the python.exe of a virtual environment on Windows; it would hold the pipes open for ever."""
    child = start(LAUNCHER)
    (told,) = [message for message in [next(child.messages(SECONDS_FOR_A_PROCESS))] if message is not None]
    assert told["pid"] != child.process.pid
    real = psutil.Process(told["pid"])
    child.kill()
    assert psutil.wait_procs([real], timeout=SECONDS_FOR_A_PROCESS)[1] == []
    assert child.was_killed(child.wait()) is (sys.platform != "win32")


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_a_child_is_bounded_before_it_loads_its_libraries(tmp_path: Path) -> None:
    words = "import json, resource; print(json.dumps({'soft': resource.getrlimit(resource.RLIMIT_DATA)[0]}))"
    (tmp_path / "one_child.py").write_text(words)
    for limit_bytes, soft in ((150 * 10**6, 150 * 10**6), (None, soft_limit())):
        child = Child("one_child", environment={"PYTHONPATH": str(tmp_path)}, limit_bytes=limit_bytes)
        assert said(child) == [{"soft": soft}]
        assert child.wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
@pytest.mark.parametrize("megabytes", [50, 80, 150])
def test_libraries_that_pass_the_bound_are_not_loaded_for_want_of_memory(tmp_path: Path, megabytes: int) -> None:
    (tmp_path / "one_child.py").write_text("import torch")
    child = Child("one_child", environment={"PYTHONPATH": str(tmp_path)}, limit_bytes=megabytes * 10**6)
    assert said(child) == []
    code = child.wait()
    assert code != 0
    assert child.ran_out_of_memory or died_for_memory(code, limited=True)


@pytest.mark.parametrize("name", ["lowmem_seq/__init__.py", "filelock.py", "json.py", "sitecustomize.py"])
def test_nothing_in_the_current_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Somebody may stand in another's run folder: `lowmem-seq resume .`."""
    program = tmp_path / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    child = Child("lowmem_seq.data", "cifr10", "32")
    (told,) = said(child)
    assert told is not None
    assert (told["event"], child.wait()) == ("error", 2)
    assert not (tmp_path / "ran").exists()
