from __future__ import annotations

from dataclasses import replace

import pytest

from lowmem_seq.memory import governor as module
from lowmem_seq.memory.governor import (
    CALM_SECONDS,
    Advice,
    Governor,
    SilentGovernor,
)
from lowmem_seq.memory.leak import SPAN_SECONDS, SPANS
from lowmem_seq.memory.readings import MachineMemory
from tests.memory.builders import ROOMY, FakeReader

PID = 7
ROOM = 1_000_000_000


class Reader(FakeReader):
    """A process that a test makes hold more or less; its allocator gives back what the test says."""

    def __init__(self) -> None:
        super().__init__(held={PID: ROOM // 2}, peaks={PID: ROOM // 2})
        self.can_give_back = 0
        self.releases = 0

    def hold(self, held: int, peak: int | None = None) -> None:
        self.held[PID], self.peaks[PID] = held, max(held, peak or 0)

    def release(self) -> bool:
        self.releases += 1
        self.held[PID] -= self.can_give_back
        self.can_give_back = 0
        return True

    def reset_peak(self) -> bool:
        self.peaks[PID] = self.held[PID]
        return True


class World:
    """A governor, the system that it looks at, and its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reader = Reader()
        self.governor = Governor(self.reader, PID, ROOM, lambda: self.now)

    def look(self, seconds: float = 2.0, larger_bytes: int | None = None) -> Advice | None:
        self.now += seconds
        return self.governor.look(larger_bytes)

    def shrink(self) -> Advice:
        advice = self.look(0.0)
        assert advice is not None
        assert advice.what == "shrink"
        self.governor.changed(advice)
        return advice


@pytest.fixture
def world() -> World:
    return World()


def test_while_all_is_well_there_is_nothing_to_do(world: World) -> None:
    assert [world.look() for _ in range(100)] == [None] * 100
    assert world.reader.releases == 0


def test_near_the_cap_caches_are_given_back_first(world: World) -> None:
    world.reader.hold(990_000_000)
    world.reader.can_give_back = 100_000_000
    assert world.look() is None
    assert world.reader.releases == 1
    assert world.look() is None


def test_caches_that_lie_elsewhere_are_given_back_as_well() -> None:
    reader, given_back = Reader(), []
    governor = Governor(reader, PID, ROOM, release=lambda: given_back.append("a GPU's"))
    reader.hold(990_000_000)
    assert governor.look(None) is None
    governor.changed(Advice("shrink", "a test"))
    assert given_back == ["a GPU's"] * 2


def test_where_that_does_not_help_the_run_shrinks(world: World) -> None:
    world.reader.hold(990_000_000)
    assert world.look(0.0) is None
    assert world.look(0.0) == Advice("shrink", "the trainer came to 990 MB of 1.00 GB under the cap")


def test_a_peak_within_a_micro_batch_counts(world: World) -> None:
    world.reader.hold(600_000_000, peak=985_000_000)
    assert world.look() is None
    world.reader.hold(600_000_000, peak=985_000_000)  # again
    advice = world.look()
    assert advice is not None
    assert advice.what == "shrink"


def test_what_the_allocator_keeps_after_a_change_is_not_held_against_it(world: World) -> None:
    world.reader.hold(990_000_000)
    world.look(0.0)
    world.shrink()
    assert [world.look() for _ in range(20)] == [None] * 20
    world.reader.hold(1_000_000_000)  # more than 1 % above what was kept
    advice = Advice("shrink", "the trainer came to 1.00 GB of 1.00 GB under the cap")
    assert [world.look(), world.look()] == [None, advice]


def left(share: float, **more: float) -> MachineMemory:
    return replace(ROOMY, available_bytes=int(share * ROOMY.total_bytes), **more)  # type: ignore[arg-type]


def test_a_machine_that_runs_short_gets_memory_back_at_the_next_look(world: World) -> None:
    world.reader.memory = left(0.04)
    assert world.look(0.3) is None  # just begun: the figures of a start are not acted upon for a second
    assert world.look(1.0) == Advice("shrink", "only 400 MB are left on this machine")


def test_after_a_change_the_machine_s_figures_get_a_second_to_follow(world: World) -> None:
    world.reader.memory = left(0.04)
    advice = world.look(2.0)
    assert advice is not None
    world.governor.changed(advice)
    assert world.look(0.9) is None
    assert world.look(0.2) == advice


def test_the_machine_is_looked_at_four_times_a_second(world: World) -> None:
    world.look(2.0)
    world.reader.memory = left(0.04)
    assert [world.look(0.1), world.look(0.1)] == [None, None]
    assert world.look(0.1) is not None


@pytest.mark.parametrize(
    ("memory", "cause"),
    [
        (left(0.08, swapped_out_bytes=5), "the machine has begun to swap, and 800 MB are left on this machine"),
        (left(0.5, swapped_out_bytes=5), None),
        (left(0.08, pressure=0.2), "tasks of the machine wait for memory 20% of the time, and 800 MB are left on"),
        (left(0.08, pressure=0.05), None),
        (left(0.5, pressure=0.2), None),
        (left(0.08), None),
    ],
)
def test_swapping_and_waiting_count_where_there_is_little_left(
    world: World, memory: MachineMemory, cause: str | None
) -> None:
    world.reader.memory = left(0.5, swapped_out_bytes=0)
    assert world.look() is None
    world.reader.memory = memory
    advice = world.look()
    assert (advice is None) is (cause is None)
    assert advice is None or cause is None or advice.cause.startswith(cause)


def test_a_run_grows_back_after_calm_where_there_is_room(world: World) -> None:
    assert world.look(CALM_SECONDS + 1) is None  # there is nothing larger
    advice = world.look(1.0, larger_bytes=ROOM // 2 + 10**8)
    assert advice is not None
    assert advice.what == "grow"
    world.reader.memory = left(0.13)  # a tenth, 1 GB, must be left
    assert world.look(1.0, larger_bytes=ROOM // 2 + 2 * 10**8) is not None
    assert world.look(1.0, larger_bytes=ROOM // 2 + 4 * 10**8) is None


def test_what_this_process_takes_at_its_peak_is_not_left_on_the_machine(world: World) -> None:
    world.reader.memory = left(0.08)
    world.reader.hold(400_000_000, peak=600_000_000)
    assert world.look() is None
    world.reader.hold(400_000_000, peak=700_000_000)
    assert world.look() == Advice("shrink", "only 500 MB are left on this machine")


def test_calm_is_counted_from_the_last_shortage(world: World) -> None:
    world.look(CALM_SECONDS)
    world.reader.memory = left(0.04)
    assert world.look(1.0, larger_bytes=1) is not None
    world.reader.memory = ROOMY
    assert world.look(CALM_SECONDS - 1, larger_bytes=1) is None
    advice = world.look(2.0, larger_bytes=1)
    assert advice is not None
    assert advice.what == "grow"


def test_who_grew_too_much_waits_twice_as_long_before_the_next_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_CALM_SECONDS", 3 * CALM_SECONDS)
    waits = []
    for _ in range(4):
        before = world.now
        while (advice := world.look(1.0, larger_bytes=1)) is None:
            pass
        assert advice.what == "grow"
        waits.append(round(world.now - before))
        world.governor.changed(advice)
        world.reader.hold(ROOM)
        world.look(0.0)
        world.shrink()
        world.reader.hold(ROOM // 2)
    assert waits == [30, 60, 90, 90]


def test_a_leak_is_told_of_once_and_near_the_cap_the_process_is_to_be_replaced(world: World) -> None:
    told = []
    while world.reader.held[PID] < 0.96 * ROOM:
        world.now += 1.0
        world.reader.hold(world.reader.held[PID] + 10**6)
        words = world.governor.step_ended(10**5)
        told += [words] if words else []
        assert world.governor.look(None) is None
    assert len(told) == 1
    assert world.now >= 100 + SPANS * SPAN_SECONDS
    world.reader.hold(990_000_000)
    advices = [world.look(0.0), world.look(0.0)]
    assert advices == [
        None,
        Advice("restart", "memory grows by 1.00 MB a step, and the trainer came to 990 MB of 1.00 GB"),
    ]


class FakeLimit:
    """Remembers what it was set to."""

    name = "a fake"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def set(self, size_bytes: int, /) -> bool:
        self.sizes.append(size_bytes)
        return True

    def raise_by(self, reserve_bytes: int, /) -> None:
        raise AssertionError("that is for the end")


@pytest.mark.parametrize(
    ("data", "held", "limit"),
    [
        (900_000_000, 400_000_000, [900_000_000 + 600_000_000 - 15_000_000]),
        (900_000_000, 990_000_000, [900_000_000 + 10_000_000 - 5_000_000]),
        (900_000_000, ROOM + 1, [900_000_000]),
        (None, 400_000_000, []),
    ],
)
def test_the_system_s_limit_moves_with_the_addresses_that_the_allocator_keeps(
    data: int | None, held: int, limit: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, bound = Reader(), FakeLimit()
    monkeypatch.setattr(reader, "data_bytes", lambda pid: data)
    governor = Governor(reader, PID, ROOM, limit=bound)
    reader.hold(held)
    governor.changed(Advice("shrink", "a test"))
    assert bound.sizes == limit


def test_a_silent_governor_advises_nothing_whatever_it_sees() -> None:
    reader = Reader()
    governor = SilentGovernor(reader, PID, ROOM)
    reader.hold(2 * ROOM)
    reader.memory = left(0.0)
    assert [governor.look(1) for _ in range(3)] == [None] * 3


class LastingPeak(Reader):
    """A system that keeps a process's highest figure for good (macOS, Windows)."""

    def reset_peak(self) -> bool:
        return False

    def hold(self, held: int, peak: int | None = None) -> None:
        self.held[PID], self.peaks[PID] = held, max(self.peaks[PID], held, peak or 0)


def test_a_peak_that_can_t_be_reset_counts_once(world: World) -> None:
    world.reader = LastingPeak()
    world.governor = Governor(world.reader, PID, ROOM, lambda: world.now)
    world.reader.hold(400_000_000, peak=970_000_000)
    assert [world.look() for _ in range(40)] == [None] * 40
    world.reader.hold(400_000_000, peak=980_000_000)
    advice = world.look()
    assert advice is not None
    assert advice.what == "shrink"
    world.governor.changed(advice)
    assert [world.look() for _ in range(40)] == [None] * 40


def test_a_run_does_not_grow_where_its_own_cap_has_no_room(world: World) -> None:
    assert world.look(CALM_SECONDS + 1, larger_bytes=966_000_000) is None
    assert world.look(1.0, larger_bytes=964_000_000) is not None


def test_a_peak_is_told_before_it_is_set_back() -> None:
    told: list[int] = []
    reader = Reader()
    governor = Governor(reader, PID, ROOM, tell_peak=told.append)
    reader.hold(600_000_000, peak=985_000_000)
    assert governor.look(None) is None  # caches are given back, and the peak is set back
    assert reader.peaks[PID] == 600_000_000
    assert told == [985_000_000]
    reader.hold(650_000_000, peak=700_000_000)
    governor.changed(Advice("grow", "a test"))
    assert told == [985_000_000, 700_000_000]


def test_where_nothing_smaller_is_left_the_limit_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, bound = Reader(), FakeLimit()
    monkeypatch.setattr(reader, "data_bytes", lambda pid: ROOM)
    Governor(reader, PID, ROOM, limit=bound).changed(Advice("shrink", "a test"), has_changed=False)
    assert bound.sizes == []
