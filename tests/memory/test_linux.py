from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lowmem_seq.memory.linux import PAGE_BYTES, LinuxReader
from lowmem_seq.memory.readings import MachineMemory
from tests.builders import end, read_line, start_python
from tests.memory.builders import write_files

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
STATUS = """Name:\tpython
State:\tR (running)
VmPeak:\t  900000 kB
VmHWM:\t   45678 kB
VmRSS:\t   40000 kB
RssAnon:\t   30000 kB
VmData:\t  123456 kB
VmStk:\t     132 kB
Threads:\t3
"""
MEMINFO = """MemTotal:        8000000 kB
MemFree:          500000 kB
MemAvailable:    3000000 kB
SwapCached:           77 kB
SwapTotal:       2000000 kB
SwapFree:        1900000 kB
"""
VMSTAT = "nr_free_pages 5\npswpin 3\npswpout 250\noom_kill 2\n"
PRESSURE = "some avg10=1.25 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=0\n"


def reader(proc: Path, **library: object) -> LinuxReader:
    return LinuxReader(proc, SimpleNamespace(**library))


def test_a_process_holds_its_resident_pages(tmp_path: Path) -> None:
    write_files(tmp_path, {"7/statm": "765 418 390 5 0 123 0\n"})
    assert reader(tmp_path).held_bytes(7) == 418 * PAGE_BYTES


def test_peak_and_data_segment_are_those_of_the_status(tmp_path: Path) -> None:
    write_files(tmp_path, {"7/status": STATUS})
    assert reader(tmp_path).peak_bytes(7) == 45678 * 1024
    assert reader(tmp_path).data_bytes(7) == 123456 * 1024


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"7/statm": "0 0 0 0 0 0 0\n", "7/status": "Name:\tpython\nState:\tZ (zombie)\n"},
        {"7/statm": "", "7/status": ""},
    ],
    ids=["no folder", "a zombie", "ended while it was read"],
)
def test_a_process_that_has_ended_holds_nothing(tmp_path: Path, files: dict[str, str]) -> None:
    write_files(tmp_path, files)
    gone = reader(tmp_path)
    assert gone.held_bytes(7) == 0
    assert gone.peak_bytes(7) is None
    assert gone.data_bytes(7) is None


def test_the_peak_is_reset_with_a_5(tmp_path: Path) -> None:
    assert reader(tmp_path).reset_peak() is False
    write_files(tmp_path, {"self/clear_refs": ""})
    assert reader(tmp_path).reset_peak() is True
    assert (tmp_path / "self" / "clear_refs").read_text() == "5"


def test_only_glibc_can_be_asked_to_give_memory_back(tmp_path: Path) -> None:
    asked: list[int] = []
    assert reader(tmp_path, malloc_trim=asked.append).release() is True
    assert asked == [0]
    assert reader(tmp_path).release() is False


def test_the_machine_is_read_from_the_kernels_files(tmp_path: Path) -> None:
    write_files(tmp_path, {"meminfo": MEMINFO, "vmstat": VMSTAT, "pressure/memory": PRESSURE})
    assert reader(tmp_path).machine() == MachineMemory(
        total_bytes=8_000_000 * 1024,
        available_bytes=3_000_000 * 1024,
        swapped_out_bytes=250 * PAGE_BYTES,
        pressure=0.0125,
        oom_kills=2,
    )


def test_what_the_kernel_does_not_count_is_not_known(tmp_path: Path) -> None:
    write_files(tmp_path, {"meminfo": MEMINFO, "vmstat": "nr_free_pages 5\n"})
    machine = reader(tmp_path).machine()
    assert (machine.swapped_out_bytes, machine.pressure, machine.oom_kills) == (None, None, None)


def write_group(folder: Path, limit: int, used: int, **files: str) -> None:
    """A machine whose process stands in a group of version 2."""
    (folder / "groups").mkdir()
    write_files(
        folder,
        {
            "meminfo": MEMINFO,
            "pressure/memory": PRESSURE,
            "self/cgroup": "0::/job\n",
            "self/mountinfo": f"30 22 0:29 / {folder / 'groups'} rw - cgroup2 cgroup2 rw\n",
            "groups/job/memory.max": str(limit),
            "groups/job/memory.current": str(used),
            **{f"groups/job/{name}": text for name, text in files.items()},
        },
    )


@pytest.mark.skipif(sys.platform == "win32", reason="its paths don't stand in Linux' table of mounts")
def test_a_group_with_less_than_the_machine_is_what_counts(tmp_path: Path) -> None:
    write_group(tmp_path, 10**9, 4 * 10**8, **{"memory.pressure": PRESSURE.replace("1.25", "50.00")})
    machine = reader(tmp_path).machine()
    assert (machine.total_bytes, machine.available_bytes, machine.pressure) == (10**9, 6 * 10**8, 0.5)


@pytest.mark.skipif(sys.platform == "win32", reason="its paths don't stand in Linux' table of mounts")
def test_a_group_without_a_pressure_of_its_own_has_the_machines(tmp_path: Path) -> None:
    write_group(tmp_path, 10**9, 4 * 10**8)
    assert reader(tmp_path).machine().pressure == 0.0125


@pytest.mark.skipif(sys.platform == "win32", reason="its paths don't stand in Linux' table of mounts")
def test_a_group_with_room_in_a_machine_without_leaves_what_the_machine_does(tmp_path: Path) -> None:
    write_group(tmp_path, 5 * 10**9, 0, **{"memory.pressure": PRESSURE.replace("1.25", "50.00")})
    machine = reader(tmp_path).machine()
    assert machine.total_bytes == 5 * 10**9
    assert machine.available_bytes == 3_000_000 * 1024
    assert machine.pressure == 0.0125


def test_descendants_are_the_children_of_every_thread_and_theirs(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "1/task/1/children": "2 3 ",
            "1/task/9/children": "4 ",
            "3/task/3/children": "5 ",
            "5/task/5/children": "",
        },
    )
    assert sorted(reader(tmp_path).descendants(1)) == [2, 3, 4, 5]


def test_without_lists_of_children_the_whole_table_is_searched(tmp_path: Path) -> None:
    child = start_python("import sys; sys.stdin.read()")
    try:
        assert child.pid in reader(tmp_path).descendants(os.getpid())
    finally:
        end(child)
    assert reader(tmp_path).descendants(child.pid) == []


# The real thing.


@ON_LINUX
def test_this_process_is_read_as_psutil_reads_it() -> None:
    pid, real = os.getpid(), LinuxReader()
    with psutil.Process().oneshot():
        told = psutil.Process().memory_info()
    assert abs(real.held_bytes(pid) - told.rss) < 10**6
    machine = real.machine()
    if machine.total_bytes == psutil.virtual_memory().total:  # no group is smaller than the machine
        assert abs(machine.available_bytes - psutil.virtual_memory().available) < 2 * 10**8


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.read()
child.communicate()
"""


@ON_LINUX
def test_children_and_grandchildren_are_found() -> None:
    parent = start_python(PARENT)
    try:
        grandchild = int(read_line(parent))
        assert {parent.pid, grandchild} <= set(LinuxReader().descendants(os.getpid()))
    finally:
        end(parent)
    assert parent.pid not in LinuxReader().descendants(os.getpid())


MAPPING = """
import mmap, os, resource, sys
from lowmem_seq.memory.linux import LinuxReader
room, size = int(sys.argv[1]), int(sys.argv[2])
data = LinuxReader().data_bytes(os.getpid())
resource.setrlimit(resource.RLIMIT_DATA, (data + room, resource.RLIM_INFINITY))
try:
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    print("mapped")
except OSError as error:
    print(os.strerror(error.errno))
"""


@ON_LINUX
@pytest.mark.parametrize(("size", "outcome"), [(19, "mapped"), (21, os.strerror(12))])
def test_the_data_segment_is_what_the_systems_limit_counts(size: int, outcome: str) -> None:
    """With room for 20 MiB above what is read, one less can be mapped, and one more can't."""
    code, out, err = end(start_python(MAPPING, str(20 * 2**20), str(size * 2**20)))
    assert (code, out.strip(), err) == (0, outcome, "")


@ON_LINUX
def test_a_zombie_holds_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert LinuxReader().held_bytes(child.pid) == 0
    assert LinuxReader().peak_bytes(child.pid) is None
    child.wait()
