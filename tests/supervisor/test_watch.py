from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import pytest

from lowmem_seq.memory.readings import MachineMemory
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.watch import MemoryWatch
from tests.memory.builders import ROOMY, FakeReader

CHILD = 2**22 + 7
"""A number that Linux gives to no process."""
SWAPPING = MachineMemory(total_bytes=1000, available_bytes=700, swapped_out_bytes=5000, pressure=0.25, oom_kills=3)


@dataclass(frozen=True)
class ProcessNumber:
    """As much of psutil's Process as the watch uses."""

    pid: int


@dataclass
class ChildAndScreen:
    """A child that can't be told anything, and a screen that keeps the figures it was shown."""

    process: ProcessNumber = ProcessNumber(CHILD)
    shown: list[tuple[int, int, int]] = field(default_factory=list)

    def show_memory(self, tree: int, peak: int, cap: int) -> None:
        self.shown.append((tree, peak, cap))


class Watched:
    """A tree under a cap of 1000, at a time that the test sets."""

    def __init__(self, run: RunFolder, monkeypatch: pytest.MonkeyPatch, memory: MachineMemory = ROOMY) -> None:
        self.run, self.reader, self.seconds = run, FakeReader(memory=memory), 1000.0
        self.screen = child = ChildAndScreen()
        monkeypatch.setattr("time.monotonic", lambda: self.seconds)
        self.watch = MemoryWatch(run, 1000, child, self.screen, self.reader, memory)  # type: ignore[arg-type]

    def hold(self, *levels: int, seconds_apart: float = 10.0) -> None:
        """Sample the tree while it holds these bytes, most of them in the child."""
        for level in levels:
            self.seconds += seconds_apart
            self.reader.held = {os.getpid(): 100, CHILD: level - 100}
            self.watch.sample()

    def recorded(self) -> list[Event]:
        return [event for event in self.run.events if event["event"] == "memory"]


@pytest.fixture
def watched(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(run, monkeypatch)


def test_each_sample_is_shown(watched: Watched) -> None:
    watched.hold(500, 900, 600)
    assert watched.screen.shown == [(500, 500, 1000), (900, 900, 1000), (600, 900, 1000)]


def test_the_peak_is_recorded(watched: Watched) -> None:
    watched.hold(500, 900, 600, 550)
    assert watched.recorded()[-1]["tree_bytes"] == 600
    watched.watch.record()
    last = watched.recorded()[-1]
    assert (last["tree_bytes"], last["peak_tree_bytes"], last["cap_bytes"]) == (550, 900, 1000)


def test_a_peak_between_two_samples_is_recorded(watched: Watched) -> None:
    watched.reader.peaks = {os.getpid(): 120, CHILD: 850}
    watched.hold(500)
    watched.reader.peaks = {}
    watched.hold(600)
    watched.watch.record()
    assert watched.recorded()[-1]["peak_tree_bytes"] == 970


def test_a_peak_that_the_trainer_set_back_between_two_samples_is_recorded(watched: Watched) -> None:
    watched.reader.peaks = {os.getpid(): 120}
    watched.hold(500)
    watched.watch.hear_peak(830)
    watched.watch.hear_peak(700)
    watched.hold(600)
    watched.watch.record()
    assert watched.recorded()[-1]["peak_tree_bytes"] == 950


def test_the_child_counts_from_the_first_sample_without_a_search(watched: Watched) -> None:
    watched.hold(500, 600, 700, seconds_apart=0.2)
    assert watched.reader.searches == 1
    watched.watch.record()
    assert watched.recorded()[-1]["tree_bytes"] == 700


def test_the_tree_is_sampled_ten_times_a_second_at_the_most(watched: Watched) -> None:
    watched.hold(500)
    watched.hold(999, seconds_apart=0.05)
    watched.watch.record()
    assert watched.recorded()[-1]["tree_bytes"] == 500
    watched.hold(600, seconds_apart=0.1)
    watched.watch.record()
    assert watched.recorded()[-1]["tree_bytes"] == 600


def test_the_machine_is_recorded_with_what_it_swapped_out_in_this_session(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(run, monkeypatch, SWAPPING)
    watched.reader.memory = replace(SWAPPING, available_bytes=650, swapped_out_bytes=5900)
    watched.hold(500)
    last = watched.recorded()[-1]
    assert (last["available_bytes"], last["swapped_out_bytes"], last["pressure"]) == (650, 900, 0.25)


def test_what_the_system_does_not_count_is_null_and_not_left_out(watched: Watched) -> None:
    watched.hold(500)
    last = watched.recorded()[-1]
    assert (last["swapped_out_bytes"], last["pressure"]) == (None, None)


@pytest.mark.parametrize(("available", "short"), [(59, True), (61, False)])
def test_a_machine_that_is_short_of_memory_is_noticed(watched: Watched, available: int, short: bool) -> None:
    watched.reader.memory = replace(SWAPPING, available_bytes=available)
    watched.hold(500)
    assert watched.watch.machine_is_short is short


def test_a_machine_that_has_room_again_is_not_short(watched: Watched) -> None:
    watched.reader.memory = replace(SWAPPING, available_bytes=1)
    watched.hold(500)
    watched.reader.memory = SWAPPING
    watched.hold(500, seconds_apart=0.5)
    assert watched.watch.machine_is_short
    watched.hold(500, seconds_apart=0.6)
    assert not watched.watch.machine_is_short


@pytest.mark.parametrize(("kills", "short"), [(3, False), (4, True)])
def test_a_process_that_the_system_ended_for_memory_tells_that_it_is_short(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, kills: int, short: bool
) -> None:
    """What it held is free again by the time somebody looks; those ended before the watch began don't count."""
    watched = Watched(run, monkeypatch, SWAPPING)
    watched.hold(500)
    watched.reader.memory = replace(SWAPPING, oom_kills=kills)
    watched.watch.record()
    assert watched.watch.machine_is_short is short
    watched.hold(500)
    assert not watched.watch.machine_is_short


def test_a_machine_that_has_room_once_the_trainer_has_ended_was_short_before(watched: Watched) -> None:
    watched.reader.memory = replace(SWAPPING, available_bytes=1)
    watched.hold(500)
    watched.reader.memory = SWAPPING
    watched.watch.record()
    assert watched.watch.machine_is_short
