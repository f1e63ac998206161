from __future__ import annotations

import ctypes
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq.memory.cores import linux_cores, mac_fast_cores, usable_cores, windows_fast_cores
from tests.memory.builders import write_files


def devices(folder: Path, siblings: list[str], **files: str) -> Path:
    """A /sys/devices with one processor for each list of those that share its core."""
    for number, shared in enumerate(siblings):
        write_files(folder / f"system/cpu/cpu{number}", {"topology/thread_siblings_list": f"{shared}\n"})
    write_files(folder, {name.replace("__", "/"): text for name, text in files.items()})
    return folder


FOUR_CORES = ["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"]
INTEL = ["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"]
"""Two cores with two threads each, and four efficiency cores."""


def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    place = devices(tmp_path, FOUR_CORES)
    assert linux_cores(set(range(8)), None, place) == 4
    assert linux_cores({0, 4, 5}, None, place) == 2  # as taskset bounds it


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.0, 1), (1.5, 2), (2.0, 2), (64.0, 4)])
def test_a_container_s_share_of_the_processors_counts(quota: float, cores: int, tmp_path: Path) -> None:
    assert linux_cores(set(range(8)), quota, devices(tmp_path, FOUR_CORES)) == cores


def test_efficiency_cores_are_left_out(tmp_path: Path) -> None:
    place = devices(tmp_path, INTEL, cpu_core__cpus="0-3\n", cpu_atom__cpus="4-7\n")
    assert linux_cores(set(range(8)), None, place) == 2
    assert linux_cores({4, 5, 6}, None, place) == 3  # where it may use no others


def test_little_cores_are_left_out(tmp_path: Path) -> None:
    place = devices(tmp_path, [str(number) for number in range(6)])
    for number, capacity in enumerate((446, 446, 446, 800, 1000, 1024)):
        write_files(place / f"system/cpu/cpu{number}", {"cpu_capacity": f"{capacity}\n"})
    assert linux_cores(set(range(6)), None, place) == 3
    assert linux_cores({0, 1}, None, place) == 2


def test_a_system_that_tells_nothing_is_not_guessed_at(tmp_path: Path) -> None:
    assert linux_cores({0, 1}, None, tmp_path) is None
    assert linux_cores({0, 1}, None, devices(tmp_path, ["nonsense", ""])) is None


class FakeSysctl:
    """macOS's C library with made-up figures."""

    def __init__(self, **figures: int) -> None:
        self.figures = {name.replace("__", "."): figure for name, figure in figures.items()}

    def sysctlbyname(self, name: bytes, value: Any, size: Any, new: None, new_size: Any) -> int:
        if name.decode() not in self.figures:
            return -1
        assert size._obj.value == ctypes.sizeof(value._obj) == 4
        assert (new, new_size.value) == (None, 0)
        value._obj.value = self.figures[name.decode()]
        return 0


@pytest.mark.parametrize(
    ("figures", "cores"),
    [
        ({"hw__nperflevels": 2, "hw__perflevel0__physicalcpu": 4}, 4),  # M1
        ({"hw__nperflevels": 1, "hw__perflevel0__physicalcpu": 8}, None),
        ({}, None),  # Intel
    ],
)
def test_a_mac_s_performance_cores(figures: dict[str, int], cores: int | None) -> None:
    assert mac_fast_cores(FakeSysctl(**figures)) == cores


class FakeKernel32:
    """Windows with cores of these efficiency classes, each with `more` bytes of groups behind the first."""

    def __init__(self, classes: list[int], more: int = 16) -> None:
        size = 32 + more
        records = [struct.pack("<IIBB", 0, size, 1, one).ljust(size, b"\0") for one in classes]
        self.told = b"".join(records)

    def GetLogicalProcessorInformationEx(self, relation: int, told: Any, size: Any) -> int:  # noqa: N802
        assert relation == 0
        if told is None:
            size._obj.value = len(self.told)
            return 0
        ctypes.memmove(told, self.told, len(self.told))
        return len(self.told)


@pytest.mark.parametrize(("classes", "cores"), [([1, 1, 0, 0, 0, 0], 2), ([0, 0, 0, 0], 4), ([], None)])
def test_windows_cores_of_the_highest_class(classes: list[int], cores: int | None) -> None:
    assert windows_fast_cores(FakeKernel32(classes)) == cores


def test_as_many_cores_as_are_asked_for() -> None:
    assert usable_cores(7) == 7
    assert usable_cores(None) >= 1
    if sys.platform == "linux":
        assert usable_cores(None, platform="plan9") >= usable_cores(None)


@pytest.mark.parametrize(("fast", "left"), [(4, 3), (1, 1)])
def test_in_the_background_a_core_is_left_free_unless_it_is_the_only_one(
    monkeypatch: pytest.MonkeyPatch, fast: int, left: int
) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: fast)
    assert usable_cores(None, platform="plan9") == fast
    assert usable_cores(None, background=True, platform="plan9") == left
    assert usable_cores(7, background=True) == 7
