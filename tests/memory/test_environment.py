from __future__ import annotations

import os
import re
import sys

import pytest

from lowmem_seq.errors import UsageError
from lowmem_seq.memory.environment import (
    ALLOCATORS,
    HIGH_WATERMARK,
    LOW_WATERMARK,
    MOST_WATERMARK,
    VARIABLES,
    mps_environment,
    mps_environment_as_usual,
    told_allocator,
    training_environment,
    usable_allocators,
)

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
LARGE_THRESHOLDS = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20)}
SMALL_THRESHOLDS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "added"),
    [("keep", LARGE_THRESHOLDS), ("default", {}), ("lean", SMALL_THRESHOLDS), ("huge", HUGE_PAGES)],
)
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


def test_what_a_plan_may_not_hold_is_left_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active, please")
    assert training_environment(2, "default") == {"OMP_NUM_THREADS": "2"}


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is of Linux")
def test_glibc_can_be_fast_or_lean_unless_the_user_chose() -> None:
    assert usable_allocators() == ("keep", "lean")


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
    assert watermarks(60 * 10**9) == ("1.7000", "1.4000")
    for no_room in (1, 0, -5):  # 0 would be no bound at all
        assert watermarks(no_room) == ("0.0001", "0.0001")


def watermarks(room_bytes: int) -> tuple[str, str]:
    """The high and the low one that a trainer is started with, on a GPU whose recommended size is 6 GB."""
    told = mps_environment(room_bytes, 6 * 10**9)
    assert set(told) == {HIGH_WATERMARK, LOW_WATERMARK}
    assert all(VARIABLES[name].fullmatch(text) for name, text in told.items())
    return told[HIGH_WATERMARK], told[LOW_WATERMARK]


@pytest.mark.parametrize(
    ("high", "low", "told"),
    [
        ("0.3", None, ("0.3000", "0.2700")),
        ("1", None, ("1.0000", "0.4500")),  # given back as if the bound were ours, which lies below
        ("0", None, ("0.0000", "0.4500")),
        ("0.0", "0", ("0.0000", "0.0000")),
        ("0.0", "1.9", ("0.0000", "1.9000")),
        (None, "0.2", ("0.5000", "0.2000")),
        (None, "0", ("0.5000", "0.0000")),
        (None, "1.4", ("0.5000", "0.5000")),
        ("1.4", "1.2", ("1.4000", "1.2000")),
        ("0.7", "1.4", ("0.7000", "0.7000")),
        (" 2 ", "2", ("2.0000", "2.0000")),
        ("1e-9", None, ("0.0001", "0.0001")),
    ],
)
def test_what_the_user_set_of_the_watermarks_stays_and_torch_takes_both(
    monkeypatch: pytest.MonkeyPatch, high: str | None, low: str | None, told: tuple[str, str]
) -> None:
    for name, text in ((HIGH_WATERMARK, high), (LOW_WATERMARK, low)):
        if text is not None:
            monkeypatch.setenv(name, text)
    assert watermarks(3 * 10**9) == told
    assert float(told[1]) <= (float(told[0]) or MOST_WATERMARK)  # what setLowWatermarkRatio asks for


@pytest.mark.parametrize(
    ("high", "low", "told"),
    [
        (None, None, ("1.7000", "1.4000")),  # torch's own
        ("0.7", None, ("0.7000", "0.6300")),
        (None, "1.9", ("1.7000", "1.7000")),
        ("0", None, ("0.0000", "1.4000")),
    ],
)
def test_torch_starts_with_what_the_user_set_before_the_gpu_is_known(
    monkeypatch: pytest.MonkeyPatch, high: str | None, low: str | None, told: tuple[str, str]
) -> None:
    for name, text in ((HIGH_WATERMARK, high), (LOW_WATERMARK, low)):
        if text is not None:
            monkeypatch.setenv(name, text)
    assert mps_environment_as_usual() == dict(zip((HIGH_WATERMARK, LOW_WATERMARK), told, strict=True))


@pytest.mark.parametrize("name", [HIGH_WATERMARK, LOW_WATERMARK])
@pytest.mark.parametrize("text", ["", "all", "-1", "2.1", "nan", "inf"])
def test_a_watermark_that_torch_would_not_take_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(UsageError, match=re.escape(f"{name} is {text!r}, and torch takes a number from 0 to 2")):
        mps_environment(3 * 10**9, 6 * 10**9)


@pytest.mark.parametrize("name", [HIGH_WATERMARK, LOW_WATERMARK])
@pytest.mark.parametrize(("text", "is_one"), [("0", True), ("1", True), ("1.4", True), ("x", False), ("1.", False)])
def test_a_plan_may_hold_any_plain_number_for_a_watermark(name: str, text: str, is_one: bool) -> None:
    assert (VARIABLES[name].fullmatch(text) is not None) is is_one
