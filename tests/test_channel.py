from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lowmem_seq.channel import STOP_SIGNALS, Channel
from lowmem_seq.errors import DataError, StoppedError
from tests.builders import SECONDS_FOR_A_PROCESS, end, read_line, start_python

CHILD = """
import sys, time
from lowmem_seq import channel as module
from lowmem_seq.channel import Channel

saves = "saves nothing" not in sys.argv
module.SECONDS_TO_SAVE = 0.2 if saves else 1000.0
channel = Channel(saves=saves)
print("a library's print")
channel.say({"event": "ready", "name": "ä"})
while not channel.stop_requested or "deaf" in sys.argv:
    time.sleep(0.005)
channel.say({"event": "stopped"})
"""

FAILING = """
import sys
from lowmem_seq.channel import Channel
from lowmem_seq.errors import DataError

channel = Channel()
error = DataError("3 files are missing", "lowmem-seq data add ä")
channel.say_error(error)
sys.exit(error.exit_code)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    process = start_python(CHILD)
    assert json.loads(read_line(process)) == {"event": "ready", "name": "ä"}
    yield process
    process.kill()
    process.communicate()


def tell(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdin is not None
    process.stdin.write(words + "\n")
    process.stdin.flush()


def test_stop_is_heard_while_the_line_stays_open(child: subprocess.Popen[str]) -> None:
    tell(child, "stop")
    assert json.loads(read_line(child)) == {"event": "stopped"}
    assert child.wait(SECONDS_FOR_A_PROCESS) == 0


def test_other_words_are_passed_over(child: subprocess.Popen[str]) -> None:
    tell(child, "stop it\nsTop\n\nhurry")
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=0.3)
    tell(child, "stop")
    assert json.loads(read_line(child)) == {"event": "stopped"}


def test_the_end_of_the_line_counts_as_stop_and_prints_go_to_the_log(child: subprocess.Popen[str]) -> None:
    code, out, err = end(child)
    assert (code, json.loads(out)) == (0, {"event": "stopped"})
    assert err.splitlines() == ["a library's print"]


def test_a_child_that_goes_on_after_its_supervisor_is_ended_as_stopped() -> None:
    process = start_python(CHILD, "deaf")
    assert json.loads(read_line(process))["event"] == "ready"
    assert end(process)[:2] == (StoppedError.exit_code, "")


def test_a_child_that_saves_nothing_ends_with_its_supervisor_at_once() -> None:
    process = start_python(CHILD, "deaf", "saves nothing")
    assert json.loads(read_line(process))["event"] == "ready"
    assert end(process)[:2] == (StoppedError.exit_code, "")


POSIX_SIGNALS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")


@POSIX_SIGNALS
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_that_reaches_the_child_is_a_wish_to_stop_also_when_it_comes_twice(
    child: subprocess.Popen[str], number: signal.Signals
) -> None:
    for _ in range(2):
        child.send_signal(number)
    assert json.loads(read_line(child)) == {"event": "stopped"}
    assert child.wait(SECONDS_FOR_A_PROCESS) == 0


@POSIX_SIGNALS
def test_a_signal_ends_a_child_that_saves_nothing() -> None:
    process = start_python(CHILD, "saves nothing")
    assert json.loads(read_line(process))["event"] == "ready"
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS_FOR_A_PROCESS) == -signal.SIGTERM
    assert end(process)[1] == ""


def test_an_error_goes_over_the_line_whole() -> None:
    code, out, _ = end(start_python(FAILING))
    assert code == DataError.exit_code == 5
    assert json.loads(out) == {
        "event": "error",
        "exit_code": 5,
        "message": "3 files are missing",
        "hint": "lowmem-seq data add ä",
    }


def test_a_supervisor_that_is_gone_hears_nothing_and_breaks_nothing() -> None:
    process = start_python(CHILD)
    read_line(process)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    code, _, err = end(process, "hurry\n")
    assert (code, err.splitlines()) == (0, ["a library's print"])


def test_without_a_line_nothing_is_said_and_nothing_asked(capfd: pytest.CaptureFixture[str]) -> None:
    channel = Channel(listen=False)
    channel.say({"event": "ready"})
    assert not channel.stop_requested
    assert capfd.readouterr().out == ""
