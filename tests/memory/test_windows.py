from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from lowmem_seq.memory.readings import MachineMemory
from lowmem_seq.memory.windows import WindowsReader
from tests.memory.builders import Function

HEAP = 0x7FF0_0000_0000
"""Larger than an int of C, which ctypes would take a handle for without being told."""


def process(pid: int) -> SimpleNamespace:
    """A machine with one process, number 7, that has one child and one grandchild."""
    if pid != 7:
        raise psutil.NoSuchProcess(pid)
    figures = SimpleNamespace(rss=11, vms=500, wset=13, peak_wset=14, pagefile=500, peak_pagefile=600, private=500)
    family = {True: [8, 9], False: [8]}
    return SimpleNamespace(
        memory_info=lambda: figures,
        children=lambda recursive: [SimpleNamespace(pid=one) for one in family[recursive]],
    )


class Kernel32:
    """The two functions of kernel32, as ctypes shows them."""

    def __init__(self, largest_free_block: int = 4096) -> None:
        self.GetProcessHeap, self.HeapCompact = Function(lambda: HEAP), Function(self._compact)
        self.compacted: list[tuple[int, int]] = []
        self._largest_free_block = largest_free_block

    def _compact(self, heap: int, flags: int) -> int:
        self.compacted.append((heap, flags))
        return self._largest_free_block


def has_no_counters() -> None:
    raise RuntimeError("PdhAddEnglishCounterW failed. Performance counters may be disabled.")


SYSTEM = SimpleNamespace(
    virtual_memory=lambda: SimpleNamespace(total=8000, available=3000),
    swap_memory=has_no_counters,
    Process=process,
)


@pytest.fixture
def reader() -> WindowsReader:
    return WindowsReader(Kernel32(), SYSTEM)


def test_a_process_holds_its_private_bytes(reader: WindowsReader) -> None:
    assert reader.held_bytes(7) == 500
    assert reader.peak_bytes(7) == 600


def test_a_process_holds_as_much_by_the_names_of_psutil_8() -> None:
    figures = SimpleNamespace(rss=11, vms=500, peak_rss=14, peak_vms=600)
    system = SimpleNamespace(Process=lambda pid: SimpleNamespace(memory_info=lambda: figures))
    reader = WindowsReader(Kernel32(), system)
    assert (reader.held_bytes(7), reader.peak_bytes(7)) == (500, 600)


def test_a_process_that_is_gone_holds_nothing(reader: WindowsReader) -> None:
    assert reader.held_bytes(8) == 0
    assert reader.peak_bytes(8) is None
    assert reader.descendants(8) == []


def test_what_windows_does_not_count_is_not_known(reader: WindowsReader) -> None:
    assert reader.reset_peak() is False
    assert reader.data_bytes(7) is None


def test_no_swapping_is_claimed_where_windows_counts_none_nor_asked_what_may_not_answer(
    reader: WindowsReader,
) -> None:
    assert reader.machine() == MachineMemory(
        total_bytes=8000, available_bytes=3000, swapped_out_bytes=None, pressure=None
    )


@pytest.mark.parametrize(("largest_free_block", "done"), [(4096, True), (0, False)])
def test_the_heap_of_the_process_is_compacted(largest_free_block: int, done: bool) -> None:
    kernel32 = Kernel32(largest_free_block)
    assert WindowsReader(kernel32, SYSTEM).release() is done
    assert kernel32.compacted == [(HEAP, 0)]


def test_descendants_are_all_of_them(reader: WindowsReader) -> None:
    assert reader.descendants(7) == [8, 9]
