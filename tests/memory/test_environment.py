from __future__ import annotations

import os
import sys

import pytest

from lowmem_seq.memory.environment import training_environment

VARIABLES = ("OMP_WAIT_POLICY", "GLIBC_TUNABLES", "OMP_NUM_THREADS")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_threads_wait_passively_and_linux_gets_huge_pages(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    huge_pages = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if system == "linux" else {}
    assert training_environment(3) == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "3", **huge_pages}
    assert not set(VARIABLES) & os.environ.keys()


def test_what_the_user_set_stays_but_for_the_plan_s_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in VARIABLES:
        monkeypatch.setenv(name, "mine")
    assert training_environment(2) == {"OMP_WAIT_POLICY": "mine", "GLIBC_TUNABLES": "mine", "OMP_NUM_THREADS": "2"}
