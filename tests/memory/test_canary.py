"""Whether the system keeps a process under its bound is tried, and not believed."""

from __future__ import annotations

import os
import sys

import pytest

from lowmem_seq.doctor.canaries import try_out
from lowmem_seq.memory.canary import ROOM_BYTES, is_refused
from lowmem_seq.memory.limit import NoLimit
from lowmem_seq.memory.readings import system_reader


class Promises:
    """A system that takes a bound, and does not keep it."""

    name: str | None = "RLIMIT_DATA"

    def __init__(self) -> None:
        self.bounds_bytes: list[int] = []

    def set(self, size_bytes: int) -> bool:
        self.bounds_bytes.append(size_bytes)
        return True

    def raise_by(self, _reserve_bytes: int) -> None:
        raise AssertionError


def test_a_bound_that_is_not_kept_is_found() -> None:
    reader, promises = system_reader(), Promises()
    assert is_refused(promises, reader) is False
    (bound_bytes,) = promises.bounds_bytes
    held_bytes = reader.data_bytes(os.getpid()) or reader.held_bytes(os.getpid())
    assert abs(bound_bytes - held_bytes - ROOM_BYTES) < ROOM_BYTES


def test_a_system_that_bounds_nothing_says_so() -> None:
    assert is_refused(NoLimit(), system_reader()) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no machine was at hand to try it on")
def test_linux_keeps_its_bound() -> None:
    (outcome,) = try_out("lowmem_seq.memory.canary", ["cap"])
    assert outcome.facts == {"refused": True, "enforced_by": "RLIMIT_DATA"}
