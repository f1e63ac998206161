from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from lowmem_seq.memory.cgroups import ControlGroups, GroupMemory, cpu_quota
from tests.builders import end, start_python
from tests.memory.builders import write_files

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="the folders of Linux' groups have colons and the like"
)

UNLIMITED = {1: "9223372036854771712\n", 2: "max\n"}
NAMES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}
FIGURES = {
    1: ("total_inactive_file", "total_active_file", "total_mapped_file"),
    2: ("inactive_file", "active_file", "file_mapped"),
}
PRESSURE = "some avg10=12.50 avg60=1.00 avg300=0.00 total=5\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=1\n"


class System:
    """A machine with control groups of one version, mounted at a folder of the test's."""

    def __init__(
        self, folder: Path, version: int, root: str = "/", own: str = "/user/session", at: str = "groups"
    ) -> None:
        self.proc, self.mount, self.version = folder / "proc", folder / at, version
        self.mount.mkdir(parents=True)
        point = str(self.mount).replace(" ", r"\040")
        options = {1: "cgroup cgroup rw,memory", 2: "cgroup2 cgroup2 rw,nsdelegate"}[version]
        write_files(
            self.proc / "self",
            {
                "cgroup": {1: f"8:pids:/elsewhere\n4:cpu,memory:{own}\n", 2: f"0::{own}\n"}[version],
                "mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
                f"30 22 0:29 {root} {point} rw,relatime shared:9 - {options}\n",
            },
        )

    def group(
        self,
        name: str,
        limit: str,
        used: int = 0,
        file_pages: tuple[int, int, int] = (0, 0, 0),
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Make a group; `file_pages` are inactive, active and mapped ones, of the groups below it too."""
        limit_name, used_name = NAMES[self.version]
        told = zip(FIGURES[self.version], file_pages, strict=True)
        stat = "cache 7\nhierarchical_inactive_file 13\n" + "".join(f"{label} {size}\n" for label, size in told)
        texts = {limit_name: limit, used_name: f"{used}\n", "memory.stat": stat, **(files or {})}
        write_files(self.mount / name, texts)

    def read(self) -> list[GroupMemory]:
        return ControlGroups(self.proc).read()


@pytest.fixture(params=[1, 2], ids=["version 1", "version 2"])
def system(request: pytest.FixtureRequest, tmp_path: Path) -> System:
    return System(tmp_path, request.param)


def test_a_group_leaves_its_limit_less_what_it_uses(system: System) -> None:
    system.group("user/session", "1000\n", used=600)
    assert system.read() == [GroupMemory(limit_bytes=1000, available_bytes=400, pressure=None)]


@pytest.mark.parametrize(
    ("file_pages", "available"),
    [((250, 0, 0), 650), ((0, 250, 0), 650), ((50, 200, 60), 590), ((50, 200, 300), 450), ((50, 0, 30), 450)],
    ids=["read once", "read again and again", "some mapped", "shared memory is mapped too", "nobody knows which"],
)
def test_pages_of_files_that_can_be_dropped_count_as_available(
    system: System, file_pages: tuple[int, int, int], available: int
) -> None:
    system.group("user/session", "1000\n", used=600, file_pages=file_pages)
    assert system.read() == [GroupMemory(1000, available, None)]


def test_of_version_1_the_pages_of_the_groups_below_count_too(tmp_path: Path) -> None:
    system = System(tmp_path, 1)
    own = "inactive_file 1\nactive_file 2\nmapped_file 2\n"
    all_below = "total_inactive_file 100\ntotal_active_file 50\ntotal_mapped_file 10\n"
    system.group("user/session", "1000\n", used=600, files={"memory.stat": own + all_below})
    assert system.read() == [GroupMemory(1000, 540, None)]


def test_the_groups_around_one_are_read_too_up_to_the_root(system: System) -> None:
    system.group("user/session", "1000\n", used=100)
    system.group("user", "5000\n", used=4800)
    system.group("", "7000\n", used=5000)
    assert system.read() == [
        GroupMemory(1000, 900, None),
        GroupMemory(5000, 200, None),
        GroupMemory(7000, 2000, None),
    ]


def test_groups_without_a_limit_are_left_out(system: System) -> None:
    system.group("user/session", UNLIMITED[system.version], used=100)
    system.group("user", "5000\n", used=1000)
    system.group("", UNLIMITED[system.version], used=5000)
    assert system.read() == [GroupMemory(5000, 4000, None)]


def test_a_group_above_its_limit_leaves_nothing(system: System) -> None:
    system.group("user/session", "1000\n", used=1200)
    assert system.read() == [GroupMemory(1000, 0, None)]


def test_more_than_the_limit_is_never_available(system: System) -> None:
    """The kernel's figures are not all of one moment."""
    system.group("user/session", "1000\n", used=100, file_pages=(300, 0, 0))
    assert system.read() == [GroupMemory(1000, 1000, None)]


def test_a_group_that_tells_its_limit_alone_leaves_that_at_the_most(system: System) -> None:
    write_files(system.mount / "user/session", {NAMES[system.version][0]: "1000\n"})
    assert system.read() == [GroupMemory(1000, 1000, None)]


@pytest.mark.parametrize("text", ["", "nonsense\n", "-1\n"])
def test_a_limit_that_can_not_be_understood_is_none(system: System, text: str) -> None:
    system.group("user/session", text, used=100)
    assert system.read() == []


def test_a_limit_that_can_not_be_read_is_none(system: System) -> None:
    (system.mount / "user" / "session" / NAMES[system.version][0]).mkdir(parents=True)
    assert system.read() == []


def test_the_lower_of_the_two_limits_of_version_2_counts(tmp_path: Path) -> None:
    system = System(tmp_path, 2)
    system.group("user/session", "max\n", used=100, files={"memory.high": "800\n"})
    system.group("user", "1000\n", used=100, files={"memory.high": "2000\n"})
    assert system.read() == [GroupMemory(800, 700, None), GroupMemory(1000, 900, None)]


def test_the_pressure_of_a_group_is_a_share(tmp_path: Path) -> None:
    system = System(tmp_path, 2)
    system.group("user/session", "1000\n", files={"memory.pressure": PRESSURE})
    assert system.read() == [GroupMemory(1000, 1000, 0.125)]


@pytest.mark.parametrize(
    ("root", "own"),
    [
        ("/docker/abc", "/docker/abc"),
        ("/", "/"),
        ("/docker/abc", "/"),
        ("/", "/../other"),
        ("/docker/abc", "/docker/abcd"),
    ],
    ids=["the same name", "a name space", "a mount from outside", "moved out of the name space", "another's name"],
)
def test_inside_a_container_the_mount_point_is_the_group(tmp_path: Path, root: str, own: str) -> None:
    system = System(tmp_path, 2, root=root, own=own)
    system.group("", "1000\n", used=300)
    for not_ours in ("d", "../other"):
        system.group(not_ours, "500\n")
    assert system.read() == [GroupMemory(1000, 700, None)]


def test_a_group_below_a_containers_is_found_from_its_root(tmp_path: Path) -> None:
    system = System(tmp_path, 1, root="/docker/abc", own="/docker/abc/job")
    system.group("job", "1000\n", used=300)
    system.group("", "2000\n", used=300)
    assert system.read() == [GroupMemory(1000, 700, None), GroupMemory(2000, 1700, None)]


def test_a_mount_point_with_a_blank_is_found(tmp_path: Path) -> None:
    system = System(tmp_path, 2, at="my groups")
    system.group("user/session", "1000\n")
    assert system.read() == [GroupMemory(1000, 1000, None)]


def test_both_versions_side_by_side_are_read(tmp_path: Path) -> None:
    """As systemd's hybrid layout has them: memory is counted by version 1, and version 2 has no such files."""
    first, second = System(tmp_path / "1", 1), System(tmp_path / "2", 2)
    for name in ("cgroup", "mountinfo"):
        file = first.proc / "self" / name
        file.write_text(file.read_text() + (second.proc / "self" / name).read_text())
    second.group("user", "max\n")
    first.group("user/session", "1000\n", used=1)
    assert first.read() == [GroupMemory(1000, 999, None)]


def test_a_system_without_groups_has_none(tmp_path: Path) -> None:
    assert ControlGroups(tmp_path).read() == []
    write_files(tmp_path / "self", {"cgroup": "0::/\n"})
    assert ControlGroups(tmp_path).read() == []


def test_a_limit_set_later_and_a_group_entered_later_count(system: System) -> None:
    groups = ControlGroups(system.proc)
    system.group("user/session", UNLIMITED[system.version])
    system.group("other", "500\n")
    assert groups.read() == []
    system.group("user/session", "1000\n")
    assert groups.read() == [GroupMemory(1000, 1000, None)]
    membership = system.proc / "self" / "cgroup"
    membership.write_text(membership.read_text().replace("/user/session", "/other"))
    assert groups.read() == [GroupMemory(500, 500, None)]


# The real thing.

LIMIT = 300 * 10**6
BLOCK = 100 * 10**6
SLACK = 12 * 10**6
INSIDE = f"""
import os, sys
group, file = sys.argv[1:]
open(group + "/cgroup.procs", "w").write(str(os.getpid()))
from lowmem_seq.memory.readings import system_reader
machine = system_reader().machine
before = machine()
block = b"\\1" * {BLOCK}
holding = machine()
del block
with open(file, "wb") as written:
    for _ in range({BLOCK} // 10**6):
        written.write(b"\\1" * 10**6)
    written.flush()
    os.fsync(written.fileno())
for _ in range(3):
    with open(file, "rb", buffering=0) as again:
        while again.read(10**6):
            pass
print(before.total_bytes, before.available_bytes, holding.available_bytes, machine().available_bytes)
"""


@pytest.fixture(params=[1, 2], ids=["version 1", "version 2"])
def real_group(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A group of this machine's, with a limit, made for the test and removed after it."""
    places = {1: ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), 2: ("/sys/fs/cgroup", "memory.max")}
    place, limit_name = places[request.param]
    group = Path(place, f"lowmem-seq-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs the right to make a control group in {place} ({error.strerror})")
    try:
        if not (group / limit_name).exists():
            pytest.skip(f"version {request.param} of control groups doesn't count memory on this machine")
        (group / limit_name).write_text(str(LIMIT))
        yield group
    finally:
        with suppress(FileNotFoundError):
            group.rmdir()


def test_available_memory_follows_a_real_group(real_group: Path, tmp_path: Path) -> None:
    code, out, err = end(start_python(INSIDE, str(real_group), str(tmp_path / "file")))
    assert (code, err) == (0, "")
    total, before, holding, with_file = map(int, out.split())
    assert abs(total - LIMIT) < 4096
    assert LIMIT - 50 * 10**6 < before < LIMIT
    assert BLOCK - SLACK < before - holding < BLOCK + SLACK
    assert abs(before - with_file) < SLACK


@pytest.mark.parametrize(
    ("inner", "outer", "least"), [(150_000, 400_000, 1.5), (400_000, 50_000, 0.5), (None, None, None)]
)
def test_the_least_share_of_the_processors_counts(
    inner: int | None, outer: int | None, least: float | None, system: System
) -> None:
    for name, quota in (("user/session", inner), ("user", outer)):
        if system.version == 1:
            files = {"cpu.cfs_quota_us": f"{quota or -1}\n", "cpu.cfs_period_us": "100000\n"}
        else:
            files = {"cpu.max": f"{quota or 'max'} 100000\n"}
        write_files(system.mount / name, files)
    (system.proc / "self" / "mountinfo").write_text(
        (system.proc / "self" / "mountinfo").read_text().replace("rw,memory", "rw,cpu,memory")
    )
    assert cpu_quota(system.proc) == least


def test_where_no_group_is_told_of_all_processors_may_be_used(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
