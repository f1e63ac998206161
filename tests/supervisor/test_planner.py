"""The planner with children that are made up: what they say is written down, and how they end."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from lowmem_seq.cluster.rank import Rank, take_rank
from lowmem_seq.errors import CapTooSmallError, LowmemSeqError, UsageError
from lowmem_seq.files import read_json, write_json
from lowmem_seq.memory.footprint import Facts
from lowmem_seq.memory.plan import Means, Measurement, Setting, plan_from_json
from lowmem_seq.memory.readings import MachineMemory
from lowmem_seq.memory.remembered import DOES_NOT_FIT, Knowledge, knowledge_from_json
from lowmem_seq.memory.search import next_look
from lowmem_seq.memory.seen import SHARE_OF_BUDGET, allowed_bytes
from lowmem_seq.memory.space import make_space
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor import planner, session
from lowmem_seq.supervisor.child import Message
from lowmem_seq.supervisor.planner import SUPERVISOR_GROWTH_BYTES, data_limit, make_plan
from lowmem_seq.supervisor.signals import StopSignals
from lowmem_seq.units import parse_bytes
from tests.builders import tiny_plan

MB = 10**6
FACTS = Facts("cpu", "fp32", 4, 240 * MB, 5 * MB, 0, 16, 40, 5, 12)
SUPERVISOR = 40 * MB
ALLOCATORS = ("keep", "lean")


class Reader:
    """A system on which every process holds 40 MB."""

    available = 4000 * MB
    launched: ClassVar[dict[int, int]] = {}
    """What a child has started, and what that holds."""

    def held_bytes(self, pid: int) -> int:
        return self.launched.get(pid, SUPERVISOR)

    def descendants(self, _pid: int) -> list[int]:
        return list(self.launched)

    def machine(self) -> MachineMemory:
        return MachineMemory(8000 * MB, self.available)


class Screen:
    def __init__(self) -> None:
        self.shown: list[Message] = []

    def show(self, message: Message) -> None:
        self.shown.append(message)

    def show_memory(self, tree: int, peak: int, cap: int) -> None:
        raise AssertionError("the planner watches nothing")

    def show_stopping(self) -> None:
        raise AssertionError("the planner stops at once")


@dataclass
class World:
    """Where probing children run: each image takes 10 MB, and 5 where all layers are recomputed."""

    looks_each: int = 1000
    """How many looks a child has time for."""
    ends_with: int | None = None
    """How a child ends at its first look; None: as it should."""
    ends_loading_with: int | None = None
    """How a child with a limit ends while it loads its libraries; None: it does not."""
    measures_the_least: bool = False
    """Whether a child that is asked for one setting alone measures it all the same."""
    error: Message | None = None
    stops: StopSignals | None = None
    """Asked for, while the first child measures."""
    room: int | None = None
    """What the machine has left for children; None: more than any takes."""
    children: list[dict[str, Any]] = field(default_factory=list)
    environments: list[dict[str, str]] = field(default_factory=list)

    def peak(self, setting: Setting, allocator: str) -> int:
        image = 10 - 5 * setting.recomputed_layers / FACTS.layers - 2 * (allocator == "lean")
        return round(300 * MB + setting.workers * setting.micro_batch * image * MB)

    def rate(self, setting: Setting) -> float:
        return 1000.0 * setting.micro_batch * setting.workers / (setting.micro_batch * setting.workers + 20)


class FakeChild:
    """A probing child: follows the real search, in a world of its own."""

    world: World
    config: Any

    def __init__(
        self,
        module: str,
        run: str,
        request: str,
        known: str,
        environment: dict[str, str],
        log: Path,
        limit_bytes: int | None,
    ) -> None:
        assert (module, Path(run).is_dir(), log.name) == ("lowmem_seq.training.probe", True, "trainer.log")
        self.request, self.known = json.loads(request), knowledge_from_json(json.loads(known))
        self.limited = limit_bytes is not None
        assert limit_bytes == (None if self.request["only"] else self.request["budget_bytes"])
        self.world.children.append(self.request)
        self.world.environments.append(environment)
        self.process = type("Process", (), {"pid": 1})
        self.code = 0
        self.killed = False

    def messages(self, _wait_seconds: float) -> Iterator[Message | None]:
        world, request = self.world, self.request
        if world.error is not None:
            self.code = UsageError.exit_code
            return
        yield None
        if self.killed:
            self.code = -9
            return
        if self.limited and world.ends_loading_with is not None:
            self.code = world.ends_loading_with
            return
        yield {"event": "facts", **asdict(FACTS)}
        yield None
        self.known.facts = FACTS
        space = make_space(self.config, FACTS, tuple(request["allocators"]))
        count = 0
        while True:
            if request["only"] is not None:
                setting, means = Setting(**request["only"]), Means(request["allocator"], request["lstm_path"])
                assert setting in space.least
            else:
                look = next_look(space, self.known, request["budget_bytes"])
                if count >= world.looks_each and look is not None:
                    yield {"event": "gave_up"}
                    return
                if look is None or look.means.allocator != request["allocator"] or (look.fresh and count):
                    return
                setting, means = look.setting, look.means
            yield {"event": "probing", **asdict(setting), **asdict(means)}
            if world.stops is not None:
                world.stops.count = 1
            peak = world.peak(setting, request["allocator"])
            if world.room is not None and peak > world.room:
                Reader.available, Reader.launched = 7 * MB, {7: world.room}
                yield None
                Reader.available, Reader.launched = 4000 * MB, {}
                yield None
            if self.wait() == -signal.SIGKILL:
                return
            if world.ends_with is not None and not (world.measures_the_least and request["only"]):
                self.code = world.ends_with
                return
            if peak > request["budget_bytes"] and not request["only"]:
                self.code = DOES_NOT_FIT
                return
            point = Measurement(
                **asdict(setting),
                **asdict(means),
                peak_bytes=peak,
                data_bytes=peak + 50 * MB,
                images_per_second=world.rate(setting),
            )
            (self.known.measured if count else self.known.verified).append(point)
            yield {"event": "evaluated", "images_per_second": 2000.0}
            yield {"event": "saved", "seconds": 0.5, "bytes": 3}
            yield {"event": "measured", "fresh": count == 0, **asdict(point)}
            count += 1
            if request["only"]:
                return

    def wait(self) -> int:
        return -signal.SIGKILL if self.killed else self.code

    def kill(self) -> None:
        self.killed = True

    @property
    def told_an_error(self) -> bool:
        return self.world.error is not None

    @property
    def ran_out_of_memory(self) -> bool:
        return False

    @staticmethod
    def was_killed(code: int) -> bool:
        return code == -signal.SIGKILL

    def failure(self, code: int, what: str) -> LowmemSeqError:
        return (
            UsageError(f"the {what} ended with {code}", "-")
            if code == UsageError.exit_code
            else LowmemSeqError(what, "-")
        )


@dataclass
class Bench:
    """Makes plans of one run in one world."""

    run: RunFolder
    world: World
    screen: Screen = field(default_factory=Screen)
    stops: StopSignals = field(default_factory=StopSignals)

    def plan(self, cap: int | None, fresh: bool = False, **settings: Any) -> planner.Planned:
        from msgspec import structs

        config = self.run.config
        machine = structs.replace(config.machine, max_ram_bytes=cap, threads=2, **settings)
        config = structs.replace(config, machine=machine)
        FakeChild.world, FakeChild.config = self.world, config
        self.world.children.clear()
        return make_plan(self.run, config, self.screen, self.stops, fresh)


@pytest.fixture
def bench(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("LOWMEM_SEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(planner, "Child", FakeChild)
    monkeypatch.setattr(planner, "system_reader", Reader)
    monkeypatch.setattr(planner, "usable_allocators", lambda: ALLOCATORS)
    return Bench(run, World())


OTHERS = SUPERVISOR + SUPERVISOR_GROWTH_BYTES


def test_the_plan_is_the_fastest_that_fits_written_down_and_told(bench: Bench) -> None:
    plan = bench.plan(4000 * MB).plan
    assert plan.setting == plan.chosen == Setting(16, 2)  # all of a batch of 32
    assert (plan.device, plan.precision, plan.layers, plan.threads, plan.allocator) == ("cpu", "fp32", 4, 1, "keep")
    assert (plan.cap_bytes, plan.cap_source, plan.others_bytes) == (4000 * MB, "given", OTHERS)
    assert plan.predicted_peak_bytes == plan.footprint.total_bytes == 620 * MB + OTHERS
    assert plan.predicted_images_per_second == pytest.approx(1000 * 32 / 52)
    assert plan.environment["MALLOC_MMAP_THRESHOLD_"] == str(32 * 2**20)
    assert plan_from_json(read_json(bench.run.plan_file)) == plan
    (event,) = [event for event in bench.run.events if event["event"] == "planned"]
    assert event["micro_batch"] == 16
    assert event["chosen"] == asdict(plan.chosen)
    assert bench.world.environments[0]["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(("system", "told"), [("darwin", "0.2700"), ("linux", None)])
def test_torch_starts_in_a_child_on_a_mac_where_the_user_set_one_watermark(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, system: str, told: str | None
) -> None:
    monkeypatch.setenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "0.3")
    monkeypatch.setattr(planner, "sys", SimpleNamespace(platform=system))
    bench.plan(4000 * MB)
    assert bench.world.environments[0].get("PYTORCH_MPS_LOW_WATERMARK_RATIO") == told


def test_without_a_cap_a_share_of_what_is_available_is_taken(bench: Bench) -> None:
    plan = bench.plan(None).plan
    assert (plan.cap_bytes, plan.cap_source) == (2800 * MB, "machine")


def test_a_child_that_met_its_limit_makes_room_for_one_that_goes_on(bench: Bench) -> None:
    cap = 470 * MB
    plan = bench.plan(cap).plan
    assert len(bench.world.children) > 1
    assert plan.predicted_peak_bytes <= cap
    assert plan.measurements
    peaks = [point.peak_bytes for point in plan.measurements if point.setting == plan.setting]
    assert max(peaks) <= SHARE_OF_BUDGET * (cap - OTHERS)
    assert bench.world.children[0]["budget_bytes"] == cap - OTHERS


@pytest.mark.parametrize("code", [-signal.SIGSEGV, -signal.SIGABRT])
def test_a_child_that_dies_at_its_limit_without_a_word_counts_as_one_that_met_it(bench: Bench, code: int) -> None:
    bench.world.ends_with = code
    with pytest.raises(LowmemSeqError):  # the last one, which measures without a limit, dies too
        bench.plan(4000 * MB)
    tried = {child["allocator"] for child in bench.world.children}
    assert tried == set(ALLOCATORS)
    assert bench.world.children[-1]["only"] == asdict(Setting(1, 1, 4))


def test_what_a_child_says_is_wrong_is_raised(bench: Bench) -> None:
    bench.world.error = {"event": "error"}
    with pytest.raises(UsageError, match="the planner ended with 2"):
        bench.plan(4000 * MB)


def test_a_stop_ends_the_planning(bench: Bench) -> None:
    bench.world.stops = bench.stops
    with pytest.raises(KeyboardInterrupt):
        bench.plan(4000 * MB)
    assert not bench.run.events.path.exists()


def test_what_was_measured_is_remembered_for_the_next_run(bench: Bench) -> None:
    first = bench.plan(4000 * MB).plan
    assert bench.plan(4000 * MB).plan == first
    assert bench.world.children == []
    assert bench.screen.shown[-1]["event"] == "remembered"


@pytest.mark.parametrize("settings", [{"lstm_path": "torch"}, {"precision": "fp32"}, {"micro_batch": 4}])
def test_what_was_measured_with_other_settings_is_not_remembered(bench: Bench, settings: dict[str, Any]) -> None:
    bench.plan(4000 * MB)
    bench.plan(4000 * MB, **settings)
    assert bench.world.children
    bench.plan(4000 * MB)
    assert bench.world.children == []


def test_what_was_measured_with_other_instructions_is_not_remembered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.plan(4000 * MB)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    bench.plan(4000 * MB)
    assert bench.world.children


def test_another_cap_asks_what_is_remembered_other_questions(bench: Bench) -> None:
    bench.plan(4000 * MB)
    assert bench.plan(3900 * MB).plan.cap_bytes == 3900 * MB
    assert bench.world.children == []
    tight = bench.plan(600 * MB).plan
    assert bench.world.children
    assert tight.predicted_peak_bytes <= 600 * MB


def test_on_request_all_is_measured_anew(bench: Bench) -> None:
    bench.plan(4000 * MB)
    bench.plan(4000 * MB, fresh=True)
    assert bench.world.children


def test_another_setting_of_the_machine_is_measured_by_itself(bench: Bench) -> None:
    bench.plan(4000 * MB)
    plan = bench.plan(4000 * MB, micro_batch=4).plan
    assert bench.world.children
    assert plan.micro_batch == 4


def test_a_search_that_ran_out_of_time_is_not_begun_again_for_the_same_cap(bench: Bench) -> None:
    bench.world.looks_each = 2
    first = bench.plan(4000 * MB).plan
    assert len(first.measurements) == 2
    assert bench.plan(4000 * MB).plan == first
    assert bench.world.children == []


def test_a_cap_that_can_t_work_is_refused_with_the_smallest_that_would(bench: Bench) -> None:
    with pytest.raises(CapTooSmallError) as caught:
        bench.plan(340 * MB)
    assert bench.world.children[-1]["only"] == asdict(Setting(1, 1, 0))
    assert (bench.world.children[-1]["allocator"], caught.value.exit_code) == ("lean", 3)
    assert (
        "the cap of 340 MB is too small for this model: micro-batch 1 with every layer recomputed holds 303 MB"
        in (caught.value.message)
    )
    cap = parse_bytes(caught.value.hint.rpartition("--max-ram ")[2])
    plan = bench.plan(cap).plan  # measured, not guessed: it does
    assert plan.predicted_peak_bytes <= cap
    with pytest.raises(CapTooSmallError):
        bench.plan(cap - 2 * 10 * MB)


def test_a_child_that_passes_the_cap_while_it_loads_is_ended_and_a_cap_named_all_the_same(bench: Bench) -> None:
    with pytest.raises(CapTooSmallError) as caught:
        bench.plan(60 * MB)  # the made-up child holds 40, and the supervisor 44
    assert [child["only"] is None for child in bench.world.children] == [True, False, False]
    cap = parse_bytes(caught.value.hint.rpartition("--max-ram ")[2])
    assert bench.plan(cap).plan.predicted_peak_bytes <= cap


def test_what_a_child_launched_counts_while_it_loads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a virtual environment on Windows, whose python.exe only starts the interpreter."""
    monkeypatch.setattr(Reader, "launched", {7: 300 * MB})
    with pytest.raises(CapTooSmallError):
        bench.plan(340 * MB)  # the launcher holds 40, the supervisor 44
    assert [child["only"] is None for child in bench.world.children] == [True, False, False]
    bench.plan(400 * MB)
    assert bench.world.children[0]["only"] is None
    assert len(bench.world.children) > 1


def test_a_later_child_is_ended_too_that_passes_the_cap_while_it_loads(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.plan(4000 * MB)
    monkeypatch.setattr(Reader, "launched", {7: 600 * MB})
    bench.plan(600 * MB)
    limited = [child for child in bench.world.children if child["only"] is None]
    assert len(limited) == 1  # and it was ended before it measured anything, since nothing was learned


@pytest.mark.parametrize("code", [1, 127, -signal.SIGABRT, -signal.SIGSEGV, DOES_NOT_FIT])
def test_a_child_whose_libraries_met_its_limit_is_followed_by_one_without_and_a_cap_is_named(
    bench: Bench, code: int
) -> None:
    bench.world.ends_loading_with = code
    with pytest.raises(CapTooSmallError) as caught:
        bench.plan(300 * MB)
    assert [child["only"] is None for child in bench.world.children] == [True, False, False]
    bench.world.ends_loading_with = None
    cap = parse_bytes(caught.value.hint.rpartition("--max-ram ")[2])
    assert bench.plan(cap).plan.predicted_peak_bytes <= cap


def test_a_defect_while_a_child_loads_is_told_by_the_child_without_a_limit(bench: Bench) -> None:
    bench.world.ends_loading_with = bench.world.ends_with = 1
    with pytest.raises(LowmemSeqError, match=r"^planner$"):
        bench.plan(4000 * MB)
    assert [child["only"] is None for child in bench.world.children] == [True, False]


def test_where_the_machine_itself_runs_short_no_cap_can_be_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reader, "available", 0)
    with pytest.raises(CapTooSmallError, match="the machine was short of memory"):
        bench.plan(60 * MB)  # the made-up child holds 40, and the supervisor 44
    monkeypatch.setattr(Reader, "available", 4000 * MB)
    assert bench.plan(4000 * MB).plan.micro_batch == 16  # nothing of it was remembered


@pytest.mark.parametrize(
    ("room", "setting", "recomputed", "later_budget"),
    [(500 * MB, Setting(8, 2), {0, 4}, 540 * MB), (350 * MB, Setting(8, 1), {0}, 4000 * MB - OTHERS)],
    ids=["some settings fit", "not even the first one, which is tried all the same"],
)
def test_where_the_machine_runs_short_the_search_goes_on_within_what_it_had(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    setting: Setting,
    recomputed: set[int],
    later_budget: int,
) -> None:
    for name in ("available", "launched"):
        monkeypatch.setattr(Reader, name, getattr(Reader, name))  # as it was, when the test is over
    for name in ("CHILD_MACHINE_SECONDS", "CHILD_SEARCH_SECONDS"):
        monkeypatch.setattr(planner, name, 0.0)
    bench.world.room = room
    plan = bench.plan(4000 * MB).plan
    assert plan.setting == setting
    assert plan.predicted_peak_bytes - OTHERS <= max(room, 380 * MB)
    assert plan.data_limit_bytes == data_limit(plan.measured[0], 4000 * MB - OTHERS)  # the cap is as it was
    assert {point.recomputed_layers for point in plan.measurements} == recomputed  # so it was looked on
    first, *later = [child["budget_bytes"] for child in bench.world.children]
    assert (first, set(later)) == (4000 * MB - OTHERS, {later_budget})
    (told,) = [event for event in bench.run.events if event["event"] == "planning_cut"]
    assert told["available_bytes"] == 7 * MB  # as it was, not as it is once the child has ended
    assert told in bench.screen.shown
    bench.world.room = None
    assert bench.plan(4000 * MB).plan.setting == Setting(16, 2)  # nothing of it was remembered
    assert len(bench.world.children) == 1


def test_an_apple_gpu_is_bounded_to_what_the_cap_leaves_beside_the_libraries(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = replace(FACTS, device="mps", recommended_bytes=4000 * MB)
    monkeypatch.setattr(sys.modules[__name__], "FACTS", facts)
    plan = bench.plan(2000 * MB, device="mps").plan
    room = 2000 * MB - OTHERS - facts.libraries_bytes
    assert plan.environment["PYTORCH_MPS_HIGH_WATERMARK_RATIO"] == f"{room / (4000 * MB):.4f}"
    assert plan.data_limit_bytes is None


def test_the_bound_on_the_data_segment_leaves_what_the_cap_still_allows() -> None:
    best = Measurement(8, 1, 0, "keep", 400 * MB, 520 * MB, 9.0)
    assert data_limit(best, 410 * MB) == 520 * MB + 5 * MB  # half of the room is kept for file pages
    assert data_limit(best, 900 * MB) == 520 * MB + 500 * MB - 13.5 * MB
    assert data_limit(best, 300 * MB) == 520 * MB  # never below what was seen
    unseen = Measurement(8, 1, 0, "keep", 400 * MB, 0, 9.0)
    assert data_limit(unseen, 900 * MB, "linux") is None
    assert data_limit(unseen, 900 * MB, "win32") == 900 * MB


def test_what_is_chosen_keeps_a_share_of_the_budget_free() -> None:
    assert allowed_bytes(1000) == 950
    assert Knowledge().points() == []


@pytest.mark.parametrize(("planned_for", "is_kept"), [("", True), ("this machine", True), ("another one", False)])
def test_a_plan_of_another_machine_is_not_taken_up(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, planned_for: str, is_kept: bool
) -> None:
    stored, new = replace(tiny_plan(), planned_for=planned_for), replace(tiny_plan(4), planned_for="this machine")
    write_json(run.plan_file, stored.to_json())
    monkeypatch.setattr(session, "planned_for", lambda described: "this machine")
    monkeypatch.setattr(session, "make_plan", lambda *_: SimpleNamespace(plan=new))
    plan = session.read_or_make_plan(run, run.config, Screen(), StopSignals(), anew=False)
    assert plan.micro_batch == (stored if is_kept else new).micro_batch


@pytest.mark.parametrize(
    ("path", "there", "is_kept"), [("native", True, True), ("native", False, False), ("function", False, True)]
)
def test_a_plan_that_needs_compiled_code_is_not_taken_up_without_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, path: str, there: bool, is_kept: bool
) -> None:
    stored, new = replace(tiny_plan(), lstm_path=path), tiny_plan(4)
    write_json(run.plan_file, stored.to_json())
    monkeypatch.setattr(session, "library", lambda: "one" if there else None)
    monkeypatch.setattr(session, "make_plan", lambda *_: SimpleNamespace(plan=new))
    plan = session.read_or_make_plan(run, run.config, Screen(), StopSignals(), anew=False)
    assert plan.micro_batch == (stored if is_kept else new).micro_batch


@pytest.mark.parametrize(
    ("planned", "rank", "is_kept"),
    [
        ({"part": "rank", "ranks": 3, "neighbours": 2}, Rank(0, 3, 0, 2, "10.0.0.7", 4000), True),
        ({"part": "rank", "ranks": 3, "neighbours": 2}, Rank(0, 2, 0, 2, "10.0.0.7", 4000), False),
        ({"part": "rank", "ranks": 3, "neighbours": 2}, Rank(0, 3, 0, 1, "10.0.0.7", 4000), False),
        ({"part": "host", "ranks": 2}, Rank(0, 2, 0, 1, "10.0.0.7", 4000), True),
        ({}, Rank(0, 2, 0, 1, "10.0.0.7", 4000), False),
        ({"part": "rank", "ranks": 2}, None, False),
    ],
)
def test_a_plan_for_another_number_of_ranks_is_not_taken_up(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, planned: dict[str, Any], rank: Rank | None, is_kept: bool
) -> None:
    stored, new = replace(tiny_plan(), **planned), tiny_plan(4)
    write_json(run.plan_file, stored.to_json())
    if rank is not None:
        take_rank(run, rank)
    monkeypatch.setattr(session, "make_plan", lambda *_: SimpleNamespace(plan=new))
    plan = session.read_or_make_plan(run, run.config, Screen(), StopSignals(), anew=False)
    assert plan.micro_batch == (stored if is_kept else new).micro_batch


def test_a_cap_is_not_refused_because_time_was_short(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "SECONDS_FOR_SMALL_IMAGES", 0.0)
    bench.world.ends_with, bench.world.measures_the_least = DOES_NOT_FIT, True
    assert bench.plan(4000 * MB).plan.micro_batch == 1
