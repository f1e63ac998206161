from __future__ import annotations

import ctypes
import sys
from typing import Any

import pytest

from lowmem_seq.memory.limit import DataLimit, ExtendedLimits, JobLimit, system_limit
from tests.builders import end, start_python

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")

AT_THE_LIMIT = """
import torch
from pathlib import Path
from lowmem_seq.memory.limit import system_limit
from lowmem_seq.memory.readings import system_reader
import os

limit = system_limit()
held = system_reader().data_bytes(os.getpid())
assert limit.set(held + 100 * 2**20)
blocks = []
try:
    while True:
        blocks.append(torch.ones(10 * 2**20, dtype=torch.uint8))
except RuntimeError as error:
    print(len(blocks), "can't allocate" in str(error))
more = len(blocks)
limit.raise_by(50 * 2**20)
try:
    while True:
        blocks.append(torch.ones(10 * 2**20, dtype=torch.uint8))
except RuntimeError:
    print(len(blocks) - more)
"""


@LINUX
def test_the_limit_holds_to_the_block_and_can_be_raised() -> None:
    code, out, err = end(start_python(AT_THE_LIMIT))
    assert code == 0, err
    first, then = out.splitlines()
    assert first in ("9 True", "10 True")
    assert then in ("4", "5")


@LINUX
def test_this_system_has_a_limit() -> None:
    limit = system_limit()
    assert isinstance(limit, DataLimit)
    assert limit.name == "RLIMIT_DATA"


class FakeResource:
    RLIMIT_DATA, RLIM_INFINITY = 2, -1

    def __init__(self, soft: int, hard: int) -> None:
        self.now = (soft, hard)

    def getrlimit(self, which: int) -> tuple[int, int]:
        assert which == self.RLIMIT_DATA
        return self.now

    def setrlimit(self, which: int, pair: tuple[int, int]) -> None:
        assert which == self.RLIMIT_DATA
        self.now = pair


def test_only_the_soft_bound_is_set_and_a_lower_hard_one_stays() -> None:
    free, bound = FakeResource(-1, -1), FakeResource(-1, 500)
    assert DataLimit(free).set(1000)
    assert free.now == (1000, -1)
    assert DataLimit(bound).set(1000)
    assert bound.now == (500, 500)
    DataLimit(bound).raise_by(100)
    assert bound.now == (500, 500)


def test_what_has_no_bound_is_not_bounded_by_raising_it() -> None:
    free = FakeResource(-1, -1)
    DataLimit(free).raise_by(100)
    assert free.now == (-1, -1)


class FakeKernel32:
    """The four functions of Windows, with what they were called with."""

    def __init__(self, assigns: bool = True, sets: bool = True) -> None:
        self.assigns, self.sets = assigns, sets
        self.limits: list[tuple[int, int]] = []

    def CreateJobObjectW(self, attributes: None, name: None) -> int:  # noqa: N802 (Windows' name)
        return 77

    def GetCurrentProcess(self) -> int:  # noqa: N802
        return -1

    def AssignProcessToJobObject(self, job: int, process: int) -> bool:  # noqa: N802
        assert (job, process) == (77, -1)
        return self.assigns

    def SetInformationJobObject(self, job: int, kind: int, pointer: Any, size: int) -> bool:  # noqa: N802
        assert (job, kind, size) == (77, 9, ctypes.sizeof(ExtendedLimits))
        limits = ctypes.cast(pointer, ctypes.POINTER(ExtendedLimits)).contents
        self.limits.append((limits.basic.flags, limits.process_memory))
        return self.sets


def test_windows_bounds_the_process_by_a_job_of_its_own_which_is_made_once() -> None:
    kernel32 = FakeKernel32()
    limit = JobLimit(kernel32)
    limit.raise_by(5)  # there is nothing to raise yet
    assert limit.set(1000)
    limit.raise_by(100)
    assert kernel32.limits == [(0x100, 1000), (0x100, 1100)]
    assert limit.name == "job object"


def test_a_windows_that_refuses_enforces_nothing() -> None:
    assert not JobLimit(FakeKernel32(assigns=False)).set(1000)
    assert not JobLimit(FakeKernel32(sets=False)).set(1000)


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="the sizes of 64 bits")
def test_the_structure_is_as_large_as_windows_says() -> None:
    assert ctypes.sizeof(ExtendedLimits) == 144


def test_a_process_has_one_limit() -> None:
    """A second job of Windows could only be tighter than the first."""
    assert system_limit() is system_limit()


def test_macos_enforces_nothing_and_says_so() -> None:
    limit = system_limit("darwin")
    assert limit.name is None
    assert not limit.set(1000)
    limit.raise_by(100)
