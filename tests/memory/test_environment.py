from __future__ import annotations

import os
import sys

import pytest

from lowmem_seq.memory.environment import (
    ALLOCATORS,
    VARIABLES,
    mps_environment,
    told_allocator,
    training_environment,
    usable_allocators,
)

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
SMALL_THRESHOLDS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("name", "added"), [("huge", HUGE_PAGES), ("default", {}), ("lean", SMALL_THRESHOLDS)])
def test_threads_wait_passively_and_the_allocator_is_set(name: str, added: dict[str, str]) -> None:
    assert training_environment(3, name) == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "3", **added}
    assert not set(VARIABLES) & os.environ.keys()
    assert told_allocator(training_environment(3, name)) == name


def test_all_that_is_set_may_be_read_back_from_a_plan() -> None:
    of_mps = mps_environment(3 * 10**9, 5_726_623_061)
    for environment in (*(training_environment(1024, name) for name in ALLOCATORS), of_mps):
        assert all(VARIABLES[name].fullmatch(text) for name, text in environment.items())


def test_what_the_user_set_stays_but_for_the_plan_s_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GLIBC_TUNABLES", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "mine")
    kept = {"OMP_WAIT_POLICY": "mine", "GLIBC_TUNABLES": "mine", "OMP_NUM_THREADS": "2"}
    assert training_environment(2, "huge") == kept


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is of Linux")
def test_glibc_can_be_fast_or_lean_unless_the_user_chose() -> None:
    assert usable_allocators() == ("huge", "lean")


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_an_allocator_that_the_user_set_up_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert usable_allocators() == ("default",)


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_have_their_own_allocator(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert usable_allocators() == ("default",)


def test_another_c_library_has_its_own_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError(name)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "confstr", unknown)
    assert usable_allocators() == ("default",)


def test_an_apple_gpu_is_bounded_by_both_watermarks() -> None:
    assert mps_environment(3 * 10**9, 6 * 10**9) == {
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO": "0.5000",
        "PYTORCH_MPS_LOW_WATERMARK_RATIO": "0.4500",
    }
    assert mps_environment(60 * 10**9, 6 * 10**9)["PYTORCH_MPS_HIGH_WATERMARK_RATIO"] == "1.7000"
