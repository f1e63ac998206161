"""Free memory, swap, groups and the cap: each made to fail."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lowmem_seq.doctor.canaries import Outcome
from lowmem_seq.doctor.memory import check_cap, check_free, check_group, check_swap, read_swap
from lowmem_seq.memory.cgroups import GroupMemory
from lowmem_seq.memory.readings import MachineMemory
from tests.doctor.builders import the_only, tried

GB = 10**9
LAPTOP = MachineMemory(8 * GB, 4 * GB)


@pytest.mark.parametrize(
    ("available_bytes", "verdict", "words"),
    [
        (500_000_000, "fail", "500 MB of 8.00 GB; Small needs 600 MB at the least"),
        (GB, "note", "1.00 GB of 8.00 GB: enough for Small, which is faster with 1.50 GB"),
        (4 * GB, "pass", "4.00 GB of 8.00 GB"),
    ],
)
def test_too_little_free_memory_is_told(available_bytes: int, verdict: str, words: str) -> None:
    finding = the_only(check_free(MachineMemory(8 * GB, available_bytes)))
    assert (finding.verdict, finding.told) == (verdict, words)


@pytest.mark.parametrize(
    ("total_bytes", "swap_bytes", "used_bytes", "platform", "verdict"),
    [
        (8 * GB, 0, 0, "linux", "note"),
        (8 * GB, 0, 0, "win32", "pass"),
        (16 * GB, 0, 0, "linux", "pass"),
        (8 * GB, 4 * GB, GB, "linux", "pass"),
        (8 * GB, 4 * GB, 3 * GB, "linux", "note"),
        (8 * GB, 4 * GB, 3 * GB, "darwin", "note"),
    ],
)
def test_swap_that_is_missing_on_a_small_machine_or_much_used_is_told(
    total_bytes: int, swap_bytes: int, used_bytes: int, platform: str, verdict: str
) -> None:
    memory = MachineMemory(total_bytes, GB)
    assert the_only(check_swap(memory, (swap_bytes, used_bytes), platform)).verdict == verdict


def test_swap_that_is_not_told_is_no_defect() -> None:
    def refuses() -> None:
        raise RuntimeError("PdhAddEnglishCounterW failed. Performance counters may be disabled.")

    assert read_swap(SimpleNamespace(swap_memory=refuses)) is None
    assert read_swap(SimpleNamespace(swap_memory=lambda: SimpleNamespace(total=7, used=5))) == (7, 5)
    finding = the_only(check_swap(LAPTOP, None))
    assert (finding.verdict, finding.told.split(":")[0]) == ("note", "not known")


def test_a_group_that_allows_too_little_fails() -> None:
    groups = [GroupMemory(4 * GB, 3 * GB, None), GroupMemory(512 * 10**6, 400 * 10**6, None)]
    finding = the_only(check_group(groups))
    assert (finding.verdict, finding.told) == ("fail", "this process's group may hold 512 MB; Small needs 600 MB")


def test_a_group_that_allows_enough_passes_and_none_is_not_spoken_of() -> None:
    assert the_only(check_group([GroupMemory(4 * GB, 3 * GB, None)])).verdict == "pass"
    assert list(check_group([])) == []


@pytest.mark.parametrize(
    ("facts", "verdict", "words"),
    [
        ({"refused": True, "enforced_by": "RLIMIT_DATA"}, "pass", "enforced by the system (RLIMIT_DATA), tried"),
        ({"refused": None, "enforced_by": None}, "pass", "best effort"),
        ({"refused": False, "enforced_by": "RLIMIT_DATA"}, "note", "does not keep it"),
    ],
)
def test_what_keeps_the_cap_is_told(facts: dict[str, Any], verdict: str, words: str) -> None:
    finding = the_only(check_cap(tried(Outcome("cap", facts))))
    assert finding.verdict == verdict
    assert words in finding.told


def test_a_process_that_dies_of_its_bound_is_told() -> None:
    finding = the_only(check_cap(tried(Outcome("cap", trouble="its process was ended by SIGKILL"))))
    assert (finding.verdict, "SIGKILL" in finding.told) == ("note", True)


def test_a_laptop_with_room_has_nothing_to_mend() -> None:
    assert the_only(check_free(LAPTOP)).fix == ""
