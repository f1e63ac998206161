from __future__ import annotations

from dataclasses import dataclass, field

import psutil
import pytest

from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor import watch as module
from lowmem_seq.supervisor.child import Message
from lowmem_seq.supervisor.watch import MemoryWatch


@dataclass
class Told:
    """A child that is only told things, and a screen that shows nothing."""

    words: list[str] = field(default_factory=list)
    process: psutil.Process = field(default_factory=psutil.Process)

    def tell(self, word: str) -> None:
        self.words.append(word)

    def show(self, message: Message) -> None:
        raise AssertionError("there is nothing to show")

    def show_memory(self, tree: int, peak: int, cap: int) -> None:
        assert peak >= tree

    def show_stopping(self) -> None:
        raise AssertionError("nobody stops")


def watch(
    run: RunFolder, child: Told, levels: list[int], monkeypatch: pytest.MonkeyPatch, short: bool = False
) -> MemoryWatch:
    """Sample a tree that holds these bytes, ten seconds apart, under a cap of 1000."""
    clock = iter(range(0, 10 * len(levels) + 100, 10))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    held = iter(levels)
    monkeypatch.setattr(module, "tree_bytes", lambda process: next(held))
    monkeypatch.setattr(module, "peak_process_bytes", lambda pid: 0)
    monkeypatch.setattr(module, "is_short_of_memory", lambda: short)
    watching = MemoryWatch(run, 1000, child, child)  # type: ignore[arg-type]
    for _ in levels:
        watching.sample()
    return watching


def test_a_tree_well_under_its_cap_is_left_alone(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    child = Told()
    watch(run, child, [500, 900, 960], monkeypatch)
    assert child.words == []


def test_a_tree_near_its_cap_is_asked_to_shrink_once(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the allocator keeps after a shrink is no reason for the next one."""
    child = Told()
    watch(run, child, [900, 980, 980, 985, 980], monkeypatch)
    assert child.words == ["shrink"]


def test_a_tree_that_grows_on_is_asked_again(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    child = Told()
    watch(run, child, [975, 980, 995, 1000, 1020], monkeypatch)
    assert child.words == ["shrink", "shrink", "shrink"]


def test_the_peak_is_recorded(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(run, Told(), [500, 900, 600, 550], monkeypatch)
    recorded = [event for event in run.events if event["event"] == "memory"]
    assert recorded
    assert recorded[-1]["peak_tree_bytes"] == 900
    assert recorded[-1]["cap_bytes"] == 1000


@pytest.mark.parametrize("short", [True, False])
def test_a_machine_that_is_short_of_memory_is_noticed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    assert watch(run, Told(), [500], monkeypatch, short).machine_is_short is short
