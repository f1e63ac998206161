from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest

from lowmem_seq.memory.tree import (
    available_bytes,
    peak_process_bytes,
    reset_peak,
    tree_bytes,
)
from tests.builders import end, read_line, start_python

BLOCK = 50 * 10**6
SLACK = 12 * 10**6
"""What an interpreter and the allocator may add to a block."""

HOLDING = """
import sys
block = b"\\1" * int(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {HOLDING!r}, sys.argv[1]], stdin=subprocess.PIPE)
sys.stdin.read()
child.communicate()
"""

Holder = Callable[[str, int], subprocess.Popen[str]]


@pytest.fixture
def holder() -> Iterator[Holder]:
    """Starts a process that holds so many bytes until its input ends."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, size: int) -> subprocess.Popen[str]:
        started.append(start_python(code, str(size)))
        assert read_line(started[-1]) == "held"
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            end(process)


@pytest.mark.parametrize(("code", "processes"), [(HOLDING, 1), (PARENT, 2)], ids=["child", "grandchild"])
def test_the_tree_counts_what_its_descendants_hold(holder: Holder, code: str, processes: int) -> None:
    small, large = (tree_bytes(psutil.Process(holder(code, size).pid)) for size in (1, BLOCK))
    assert BLOCK - SLACK < large - small < BLOCK + SLACK
    assert small < processes * 40 * 10**6


def test_the_tree_of_this_process_grows_and_falls_with_a_child(holder: Holder) -> None:
    before = tree_bytes(psutil.Process())
    process = holder(HOLDING, BLOCK)
    assert tree_bytes(psutil.Process()) - before > BLOCK
    end(process)
    assert tree_bytes(psutil.Process()) - before < SLACK


def test_a_process_that_is_gone_holds_nothing(holder: Holder) -> None:
    process = holder(HOLDING, 1)
    about = psutil.Process(process.pid)
    end(process)
    assert tree_bytes(about) == 0
    assert peak_process_bytes(process.pid) is None


PEAK = f"""
from lowmem_seq.memory.tree import peak_process_bytes, reset_peak
before = peak_process_bytes()
block = b"\\1" * {BLOCK}
held = peak_process_bytes()
del block
after = peak_process_bytes()
done = reset_peak()
print(before, held, after, done, peak_process_bytes())
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS keeps no peak of a process")
def test_the_peak_stays_when_memory_is_given_back_and_falls_when_it_is_reset() -> None:
    code, out, err = end(start_python(PEAK))
    assert (code, err) == (0, "")
    before, held, after, done, reset = out.split()
    assert int(held) - int(before) > BLOCK - SLACK
    assert int(after) > int(held) - SLACK
    if sys.platform == "linux":
        assert done == "True"
    if done == "True":
        assert int(reset) < int(held) - BLOCK + SLACK
        assert int(reset) >= int(before) - SLACK


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS keeps no peak of a process")
def test_the_peak_of_another_process_is_read(holder: Holder) -> None:
    process = holder(HOLDING, BLOCK)
    peak = peak_process_bytes(process.pid)
    assert peak is not None
    assert peak >= psutil.Process(process.pid).memory_info().rss - SLACK
    assert peak > BLOCK


def test_resetting_says_whether_the_system_can() -> None:
    assert reset_peak() is (sys.platform == "linux")


def test_what_is_available_is_part_of_the_machine() -> None:
    assert 0 < available_bytes() <= psutil.virtual_memory().total
