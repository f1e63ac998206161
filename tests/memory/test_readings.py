from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from unittest.mock import MagicMock

import psutil
import pytest

from lowmem_seq.memory.linux import LinuxReader
from lowmem_seq.memory.macos import MacReader
from lowmem_seq.memory.readings import MemoryReader, system_reader
from lowmem_seq.memory.windows import WindowsReader


@pytest.fixture
def any_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The libraries of every system can be loaded, and the readers made with them are forgotten afterwards."""
    system_reader.cache_clear()
    for name in ("CDLL", "WinDLL"):
        monkeypatch.setattr(ctypes, name, MagicMock(), raising=False)
    yield
    system_reader.cache_clear()


@pytest.mark.parametrize(
    ("platform", "kind"), [("linux", LinuxReader), ("darwin", MacReader), ("win32", WindowsReader)]
)
@pytest.mark.usefixtures("any_library")
def test_each_system_has_its_reader(platform: str, kind: type[MemoryReader]) -> None:
    assert type(system_reader(platform)) is kind


def test_a_process_has_one_reader() -> None:
    assert system_reader() is system_reader()


def test_this_system_tells_what_this_process_and_the_machine_hold() -> None:
    reader, pid = system_reader(), os.getpid()
    held, peak, machine = reader.held_bytes(pid), reader.peak_bytes(pid), reader.machine()
    assert peak is not None
    assert 10 * 10**6 < held <= peak + 2**20
    assert peak < machine.total_bytes <= psutil.virtual_memory().total
    assert 0 < machine.available_bytes < machine.total_bytes
    assert reader.reset_peak() is (sys.platform == "linux")
    assert isinstance(reader.release(), bool)
