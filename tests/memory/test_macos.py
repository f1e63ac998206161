from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lowmem_seq.memory.macos import MacReader
from lowmem_seq.memory.readings import MachineMemory
from tests.memory.builders import Function

FIELDS = (
    *("user_time", "system_time", "pkg_idle_wkups", "interrupt_wkups", "pageins", "wired_size", "resident_size"),
    *("phys_footprint", "proc_start_abstime", "proc_exit_abstime", "child_user_time", "child_system_time"),
    *("child_pkg_idle_wkups", "child_interrupt_wkups", "child_pageins", "child_elapsed_abstime"),
    *("diskio_bytesread", "diskio_byteswritten", "cpu_time_qos_default", "cpu_time_qos_maintenance"),
    *("cpu_time_qos_background", "cpu_time_qos_utility", "cpu_time_qos_legacy", "cpu_time_qos_user_initiated"),
    *("cpu_time_qos_user_interactive", "billed_system_time", "serviced_system_time", "logical_writes"),
    *("lifetime_max_phys_footprint", "instructions", "cycles", "billed_energy", "serviced_energy"),
    *("interval_max_phys_footprint", "runnable_time"),
)
"""Of rusage_info_v4, in the order of Apple's sys/resource.h, without the prefix ri_."""


class RusageInfoV4(ctypes.Structure):
    """As Apple's header has it."""

    _fields_ = (("uuid", ctypes.c_uint8 * 16), *((name, ctypes.c_uint64) for name in FIELDS))


class Library:
    """The two functions of libSystem, for a machine with one process, number 7."""

    def __init__(self) -> None:
        self.relieved: list[tuple[object, int]] = []
        self.proc_pid_rusage = Function(self._rusage)
        self.malloc_zone_pressure_relief = Function(self._relieve)

    def _relieve(self, zone: object, goal: int) -> int:
        self.relieved.append((zone, goal))
        return 0

    @staticmethod
    def _rusage(pid: int, flavor: int, buffer: Any) -> int:
        if pid != 7 or flavor != 4:
            return -1
        info = RusageInfoV4.from_buffer(buffer)
        info.uuid[:] = [255] * 16
        for number, name in enumerate(FIELDS):
            setattr(info, name, 1000 + number)
        info.phys_footprint, info.lifetime_max_phys_footprint = 2**33 + 5, 2**34 + 6
        return 0


def gone(pid: int) -> None:
    raise psutil.NoSuchProcess(pid)


SYSTEM = SimpleNamespace(
    virtual_memory=lambda: SimpleNamespace(total=8000, available=3000),
    Process=gone,
)


@pytest.fixture
def library() -> Library:
    return Library()


def test_a_process_holds_its_footprint(library: Library) -> None:
    reader = MacReader(library, SYSTEM)
    assert reader.held_bytes(7) == 2**33 + 5
    assert reader.peak_bytes(7) == 2**34 + 6


def test_the_call_has_the_types_of_the_header(library: Library) -> None:
    MacReader(library, SYSTEM)
    assert library.proc_pid_rusage.argtypes == (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
    assert library.malloc_zone_pressure_relief.argtypes == (ctypes.c_void_p, ctypes.c_size_t)


def test_a_process_that_is_gone_or_anothers_holds_nothing(library: Library) -> None:
    reader = MacReader(library, SYSTEM)
    assert reader.held_bytes(8) == 0
    assert reader.peak_bytes(8) is None
    assert reader.descendants(8) == []


def test_what_macos_does_not_count_is_not_known(library: Library) -> None:
    reader = MacReader(library, SYSTEM)
    assert reader.reset_peak() is False
    assert reader.data_bytes(7) is None


def test_the_pages_that_psutil_calls_swapped_out_are_not_taken_for_swap(library: Library) -> None:
    assert MacReader(library, SYSTEM).machine() == MachineMemory(
        total_bytes=8000, available_bytes=3000, swapped_out_bytes=None, pressure=None
    )


def test_every_zone_is_asked_for_all_that_it_can_give(library: Library) -> None:
    assert MacReader(library, SYSTEM).release() is True
    assert library.relieved == [(None, 0)]


def test_descendants_are_all_of_them(library: Library) -> None:
    def process(pid: int) -> SimpleNamespace:
        assert pid == 7
        family = {True: [8, 9], False: [8]}
        return SimpleNamespace(children=lambda recursive: [SimpleNamespace(pid=one) for one in family[recursive]])

    assert MacReader(library, SimpleNamespace(Process=process)).descendants(7) == [8, 9]
