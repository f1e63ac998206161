from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest

from lowmem_seq.memory.readings import LARGEST_SHORT_BYTES, SHORT, MachineMemory, system_reader
from lowmem_seq.memory.tree import (
    SECONDS_BETWEEN_SEARCHES,
    ProcessTree,
)
from tests.builders import end, read_line, start_python
from tests.memory.builders import FakeReader

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


def held_by(pid: int) -> int:
    """What a process and its descendants hold now."""
    return ProcessTree(pid, system_reader()).held_bytes()


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
    small, large = (held_by(holder(code, size).pid) for size in (1, BLOCK))
    assert BLOCK - SLACK < large - small < BLOCK + SLACK
    assert small < processes * 40 * 10**6


def test_the_tree_of_this_process_grows_and_falls_with_a_child(holder: Holder) -> None:
    before = held_by(os.getpid())
    process = holder(HOLDING, BLOCK)
    assert held_by(os.getpid()) - before > BLOCK
    end(process)
    assert held_by(os.getpid()) - before < SLACK


def test_a_process_that_is_gone_holds_nothing(holder: Holder) -> None:
    process = holder(HOLDING, 1)
    end(process)
    assert held_by(process.pid) == 0
    assert system_reader().peak_bytes(process.pid) is None


PEAK = f"""
import os
from lowmem_seq.memory.readings import system_reader
reader, pid = system_reader(), os.getpid()
before = reader.peak_bytes(pid)
block = b"\\1" * {BLOCK}
held = reader.peak_bytes(pid)
del block
after = reader.peak_bytes(pid)
done = reader.reset_peak()
print(before, held, after, done, reader.peak_bytes(pid))
"""


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


def test_the_peak_of_another_process_is_read(holder: Holder) -> None:
    process = holder(HOLDING, BLOCK)
    peak = system_reader().peak_bytes(process.pid)
    assert peak is not None
    assert peak >= psutil.Process(process.pid).memory_info().rss - SLACK
    assert peak > BLOCK


def test_resetting_says_whether_the_system_can() -> None:
    assert system_reader().reset_peak() is (sys.platform == "linux")


def test_what_is_available_is_part_of_the_machine() -> None:
    assert 0 < system_reader().machine().available_bytes <= psutil.virtual_memory().total


@pytest.mark.parametrize(("left", "short"), [(SHORT - 0.001, True), (SHORT + 0.001, False)])
def test_a_machine_is_short_when_little_of_it_is_left(left: float, short: bool) -> None:
    assert MachineMemory(10**9, int(left * 10**9)).is_short is short


def test_what_must_stay_free_is_bounded_on_a_large_machine() -> None:
    assert MachineMemory(10**10, 0).short_bytes == 512 * 2**20 == LARGEST_SHORT_BYTES
    assert MachineMemory(10**9, 0).short_bytes == 60_000_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_the_allocator_can_be_asked_to_give_memory_back() -> None:
    assert system_reader().release() is True


# A tree, by its numbers.


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_tree_is_its_root_what_was_found_and_what_was_told() -> None:
    reader = FakeReader(held={1: 100, 2: 20, 3: 3, 9: 7000}, family=[2])
    tree = ProcessTree(1, reader, Clock())
    assert tree.held_bytes() == 120
    tree.add(3)
    assert tree.held_bytes() == 123


def test_a_process_found_and_told_counts_once() -> None:
    tree = ProcessTree(1, FakeReader(held={1: 100, 2: 20}, family=[2]), Clock())
    tree.add(2)
    assert tree.held_bytes() == 120


def test_new_processes_are_looked_for_every_few_seconds_only() -> None:
    clock, reader = Clock(), FakeReader(held={1: 100, 2: 20})
    tree = ProcessTree(1, reader, clock)
    assert tree.held_bytes() == 100
    reader.family = [2]
    clock.seconds += SECONDS_BETWEEN_SEARCHES - 0.1
    assert [tree.held_bytes() for _ in range(10)] == [100] * 10
    assert reader.searches == 1
    clock.seconds += 0.2
    assert [tree.held_bytes() for _ in range(10)] == [120] * 10
    assert reader.searches == 2


def test_a_tree_can_be_searched_more_often() -> None:
    clock, reader = Clock(), FakeReader(held={1: 100, 2: 20})
    tree = ProcessTree(1, reader, clock, seconds_between_searches=0.25)
    assert tree.held_bytes() == 100
    reader.family = [2]
    clock.seconds += 0.2
    assert tree.held_bytes() == 100
    clock.seconds += 0.1
    assert tree.held_bytes() == 120


def test_a_process_that_has_ended_is_forgotten() -> None:
    """Its number may be given to a process of somebody else's."""
    reader = FakeReader(held={1: 100, 2: 20}, family=[2])
    tree = ProcessTree(1, reader, Clock())
    assert tree.held_bytes() == 120
    del reader.held[2]
    assert tree.held_bytes() == 100
    reader.held[2] = 5000
    assert tree.held_bytes() == 100


def test_a_process_whose_parent_has_ended_still_counts() -> None:
    clock, reader = Clock(), FakeReader(held={1: 100, 2: 20, 3: 3}, family=[2, 3])
    tree = ProcessTree(1, reader, clock)
    assert tree.held_bytes() == 123
    del reader.held[2]
    reader.family = []
    clock.seconds += 2 * SECONDS_BETWEEN_SEARCHES
    assert tree.held_bytes() == 103


def test_the_peaks_of_those_that_live_are_summed() -> None:
    reader = FakeReader(held={1: 100, 2: 20, 3: 3}, peaks={1: 150, 2: 40}, family=[2, 3])
    tree = ProcessTree(1, reader, Clock())
    assert tree.peak_bytes() == 190
    del reader.peaks[2]
    assert tree.peak_bytes() == 150


def test_a_tree_that_is_gone_holds_nothing() -> None:
    tree = ProcessTree(1, FakeReader(), Clock())
    assert (tree.held_bytes(), tree.peak_bytes()) == (0, 0)
