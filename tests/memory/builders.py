"""What tests of memory are made of: a reader that tells what it was given, and folders like /proc."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowmem_seq.memory.readings import MachineMemory

ROOMY = MachineMemory(total_bytes=10**10, available_bytes=8 * 10**9)


@dataclass
class FakeReader:
    """A system whose figures stand here; a test changes them as it goes."""

    held: dict[int, int] = field(default_factory=dict)
    peaks: dict[int, int] = field(default_factory=dict)
    family: list[int] = field(default_factory=list)
    memory: MachineMemory = ROOMY
    searches: int = 0

    def held_bytes(self, pid: int) -> int:
        return self.held.get(pid, 0)

    def peak_bytes(self, pid: int) -> int | None:
        return self.peaks.get(pid)

    def reset_peak(self) -> bool:
        return False

    def data_bytes(self, pid: int) -> int | None:
        return None

    def machine(self) -> MachineMemory:
        return self.memory

    def release(self) -> bool:
        return False

    def descendants(self, pid: int) -> list[int]:
        self.searches += 1
        return list(self.family)


class Function:
    """A C function, which ctypes lets give types to."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.argtypes: tuple[Any, ...] = ()
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


def write_files(folder: Path, texts: Mapping[str, str]) -> None:
    """Write small files, with the folders that they lie in."""
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii", newline="")
