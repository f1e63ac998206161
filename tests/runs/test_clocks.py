from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from lowmem_seq.runs.clocks import awake_seconds, clocks_of, slept_seconds


class FakeTime(SimpleNamespace):
    """A system's clocks after so long awake and asleep."""

    def clock_gettime(self, which: str) -> float:
        return float({"boottime": 150.0, "mac": 150.0}[which])


def monotonic() -> float:
    return 100.0


class FakeKernel32:
    def QueryUnbiasedInterruptTime(self, units: Any) -> int:  # noqa: N802  Windows' name
        ctypes.cast(units, ctypes.POINTER(ctypes.c_uint64))[0] = 100 * 10**7
        return 1


@pytest.mark.parametrize(
    ("platform", "system"),
    [
        ("linux", FakeTime(monotonic=monotonic, CLOCK_BOOTTIME="boottime", CLOCK_MONOTONIC="wrong")),
        ("darwin", FakeTime(monotonic=monotonic, CLOCK_MONOTONIC="mac")),
        ("win32", FakeTime(monotonic=lambda: 150.0)),
    ],
    ids=["linux", "darwin", "win32"],
)
def test_each_system_tells_time_awake_from_time_asleep(platform: str, system: FakeTime) -> None:
    clocks = clocks_of(platform, system, FakeKernel32())
    assert clocks.awake() == 100.0
    assert clocks.through_sleep() == 150.0


def test_a_system_that_can_t_tell_never_sleeps() -> None:
    clocks = clocks_of("plan9", FakeTime(monotonic=monotonic))
    assert clocks.awake() == clocks.through_sleep() == 100.0


def test_this_system_s_clocks_go() -> None:
    awake, slept = awake_seconds(), slept_seconds()
    assert awake_seconds() >= awake
    assert abs(slept_seconds() - slept) < 1.0
