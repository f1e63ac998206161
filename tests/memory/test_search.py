from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.memory.footprint import Facts
from lowmem_seq.memory.plan import Means, Measurement, Setting, threads_each
from lowmem_seq.memory.remembered import Knowledge, Look, Unfit
from lowmem_seq.memory.search import fitting, next_look
from lowmem_seq.memory.seen import COMFORTABLE, SHARE_OF_BUDGET, allowed_bytes, measures_on
from lowmem_seq.memory.space import Space, candidate_sizes, even_sizes, worker_counts

MB = 10**6
BATCH = 128
PATHS = ("function", "torch")
SMALL = Facts("cpu", "bf16", 7, 240 * MB, 30 * MB, 0, 32, 7200, 800, 2000)
LARGE = Facts("cpu", "bf16", 36, 240 * MB, 216 * MB, 0, 224, 7200, 800, 2000)


@dataclass
class Machine:
    """A machine whose memory and speed follow simple laws, and the processes that measure on it."""

    facts: Facts
    image_bytes: int
    """What an image keeps for backward."""
    kept_when_recomputed: float
    """The share of it that is kept where all layers are recomputed."""
    recomputing: float
    """The speed of recomputing, as a share of that of keeping."""
    one_worker: float
    """The speed of one worker on all cores, as a share of that of a worker a core."""
    saturation: float
    """The micro-batch at which half of the highest speed is reached."""
    lean: float = 0.6
    function: float = 1.0
    """The speed of our own function for LSTMs, as a share of nn.LSTM's."""
    known: Knowledge = field(default_factory=Knowledge)
    processes: list[str] = field(default_factory=list)
    """The allocators of the processes that were started."""
    looks: list[Look] = field(default_factory=list)
    disturbed: int | None = None
    """The look during which others took half of the machine."""
    traces: int = 0
    """Bytes that a process holds of its looks before."""

    def peak(self, setting: Setting, allocator: str, lstm_path: str = "torch") -> int:
        share = 1 - (1 - self.kept_when_recomputed) * setting.recomputed_layers / self.facts.layers
        share *= 0.5 if lstm_path == "function" else 1
        images = (
            setting.workers * setting.micro_batch * self.image_bytes * share * (0.75 if allocator == "lean" else 1)
        )
        shared = self.facts.libraries_bytes + 3 * self.facts.weights_bytes + 60 * MB
        return round(shared + setting.workers * self.facts.weights_bytes + images)

    def speed(self, setting: Setting, allocator: str, lstm_path: str = "torch") -> float:
        rounds = -(-BATCH // (setting.micro_batch * setting.workers))
        a_round = (setting.micro_batch + self.saturation) / 1000  # seconds
        slower = 1.0 if setting.workers > 1 else 2 * self.one_worker
        slower *= 1 - (1 - self.recomputing) * setting.recomputed_layers / self.facts.layers
        return (
            BATCH
            / (rounds * a_round / slower)
            * ((self.lean if allocator == "lean" else 1.0) * (self.function if lstm_path == "function" else 1.0))
        )

    def space(
        self,
        wanted: int | None = None,
        allocators: tuple[str, ...] = ("keep", "lean"),
        lstm_paths: tuple[str, ...] = ("torch",),
    ) -> Space:
        shares = (1 / self.facts.layers,) * self.facts.layers
        return Space(self.facts, BATCH, 2, wanted, allocators, shares, lstm_paths)

    def search(self, budget: int, space: Space, most_processes: int = 100) -> Measurement | None:
        """Measure what the search asks for, in processes that end as the real ones do; return the choice."""
        running = ""
        for _ in range(200):
            look = next_look(space, self.known, budget)
            needs_another = look is not None and (look.fresh or look.means.allocator != running)
            if look is None or (needs_another and len(self.processes) == most_processes):
                points = fitting(self.known, budget)
                return points[0] if points else None
            if needs_another:
                running = look.means.allocator
                self.processes.append(running)
            self.looks.append(look)
            peak = self.peak(look.setting, *astuple(look.means)) + (0 if needs_another else self.traces)
            if peak > budget:
                if needs_another:
                    self.known.unfit.append(Unfit(look.setting, look.means, budget))
                running = ""
                continue
            if not measures_on(space, peak, budget):
                running = ""
            point = Measurement(
                look.setting.micro_batch,
                look.setting.workers,
                look.setting.recomputed_layers,
                look.means.allocator,
                peak,
                peak + 50 * MB,
                self.speed(look.setting, *astuple(look.means)) * (0.55 if len(self.looks) == self.disturbed else 1),
                look.means.lstm_path,
            )
            (self.known.verified if needs_another else self.known.measured).append(point)
        raise AssertionError("the search goes on for ever")

    def best(self, budget: int, space: Space) -> float:
        """The speed that looking at everything would find."""
        layers = self.facts.layers
        means = list(product(space.allocators, space.lstm_paths))
        every = product(range(1, BATCH + 1), space.workers, range(layers + 1), means)
        rates = [
            self.speed(setting, *theirs)
            for size, workers, recomputed, theirs in every
            if self.peak(setting := Setting(size, workers, recomputed), *theirs) <= allowed_bytes(budget)
        ]
        return max(rates, default=0.0)


def small_one() -> Machine:
    """As Small at 32x32: an image takes little, and a micro-batch should be large."""
    return Machine(SMALL, 3 * MB, 0.3, 0.8, 0.7, saturation=24)


def large_one() -> Machine:
    """As sequencer2d_l at 224x224: an image takes much, and recomputing costs little."""
    return Machine(LARGE, 900 * MB, 0.12, 0.95, 0.8, saturation=0.3)


def test_with_plenty_of_memory_the_best_is_found_in_one_process() -> None:
    machine = small_one()
    choice = machine.search(20_000 * MB, machine.space())
    assert choice is not None
    assert choice.setting == Setting(64, 2)
    assert machine.processes == ["keep"]
    assert choice.peak_bytes < COMFORTABLE * 20_000 * MB
    assert not any(look.fresh for look in machine.looks)


def test_recomputation_is_looked_at_once_where_memory_is_plenty() -> None:
    machine = small_one()
    machine.search(20_000 * MB, machine.space())
    recomputed = {look.setting for look in machine.looks if look.setting.recomputed_layers}
    assert recomputed == {Setting(64, 2, 7)}


def test_recomputation_that_is_faster_is_taken_even_where_memory_is_plenty() -> None:
    machine = replace(large_one(), recomputing=1.2)
    choice = machine.search(200_000 * MB, machine.space())
    assert choice is not None
    assert choice.recomputed_layers == 36


@pytest.mark.parametrize("budget", [600, 700, 800, 1000, 2000])
@pytest.mark.parametrize("function", [0.9, 1.1])
def test_one_disturbed_look_decides_nothing(budget: int, function: float) -> None:
    calm = replace(small_one(), function=function)
    calm.search(budget * MB, calm.space(lstm_paths=PATHS))
    found = []
    for number in range(1, len(calm.looks) + 1):
        machine = replace(calm, known=Knowledge(facts=calm.known.facts), processes=[], looks=[], disturbed=number)
        choice = machine.search(budget * MB, machine.space(lstm_paths=PATHS))
        assert choice is not None
        found.append(machine.speed(choice.setting, *astuple(choice.means)))
    assert min(found) >= 0.95 * calm.best(budget * MB, calm.space(lstm_paths=PATHS)), found


@pytest.mark.parametrize("budget", [560, 600, 700, 800, 900])
@pytest.mark.parametrize("traces", [50, 130, 400])
def test_what_earlier_looks_left_behind_decides_nothing(budget: int, traces: int) -> None:
    machine = replace(small_one(), traces=traces * MB)
    choice = machine.search(budget * MB, machine.space())
    assert choice is not None
    assert machine.peak(choice.setting, choice.allocator) <= SHARE_OF_BUDGET * budget * MB
    assert choice.images_per_second >= 0.9 * machine.best(budget * MB, machine.space())


@pytest.mark.parametrize("budget", [560, 600, 650, 700, 800, 1000, 2000, 6000])
def test_under_any_cap_the_choice_is_nearly_as_fast_as_the_best_small(budget: int) -> None:
    machine = small_one()
    choice = machine.search(budget * MB, machine.space())
    assert choice is not None
    assert choice.peak_bytes <= SHARE_OF_BUDGET * budget * MB
    assert choice.images_per_second >= 0.9 * machine.best(budget * MB, machine.space())


@pytest.mark.parametrize("budget", [1600, 1900, 2500, 3900, 5900, 12000])
def test_under_any_cap_the_choice_is_nearly_as_fast_as_the_best_large(budget: int) -> None:
    machine = large_one()
    choice = machine.search(budget * MB, machine.space())
    assert choice is not None
    assert choice.peak_bytes <= SHARE_OF_BUDGET * budget * MB
    assert choice.images_per_second >= 0.9 * machine.best(budget * MB, machine.space())


@pytest.mark.parametrize("budget", [500, 520, 540, 562, 600, 650, 700, 762, 800, 1000])
def test_near_the_cap_few_processes_find_a_good_choice(budget: int) -> None:
    """Each takes some three of the 20 seconds."""
    machine = small_one()
    choice = machine.search(budget * MB, machine.space(), most_processes=6)
    assert choice is not None
    assert choice.images_per_second >= 0.87 * machine.best(budget * MB, machine.space())


@pytest.mark.parametrize(("machine", "budget"), [(small_one(), 600), (large_one(), 1900), (large_one(), 3900)])
def test_a_tight_choice_was_measured_in_a_fresh_process(machine: Machine, budget: int) -> None:
    choice = machine.search(budget * MB, machine.space())
    assert choice is not None
    assert choice in machine.known.verified


@pytest.mark.parametrize(
    ("machine", "budget", "share"),
    [
        *((small_one(), budget, 0.85) for budget in (560, 600, 650, 700, 800, 840)),
        *((small_one(), budget, 1.0) for budget in (1000, 6000)),
        *((large_one(), budget, 0.87) for budget in (1600, 1900, 2500)),
        *((large_one(), budget, 0.98) for budget in (3900, 5900, 8000)),
    ],
)
@pytest.mark.parametrize("function", [0.9, 1.0, 1.2])
def test_of_two_ways_to_compute_lstms_the_faster_one_under_the_cap_is_taken(
    machine: Machine, budget: int, share: float, function: float
) -> None:
    machine = replace(machine, function=function, known=Knowledge(), processes=[], looks=[])
    space = machine.space(lstm_paths=PATHS)
    choice = machine.search(budget * MB, space)
    assert choice is not None
    assert choice.images_per_second >= share * machine.best(budget * MB, space)
    if share > 0.97:
        assert choice.lstm_path == ("function" if function >= 1 else "torch")


@pytest.mark.parametrize(("one_worker", "wanted"), [(0.8, (64, 2, "native")), (1.2, (128, 1, "function"))])
def test_without_compiled_cells_lstms_are_looked_at_only_where_a_worker_has_several_threads(
    one_worker: float, wanted: tuple[int, int, str]
) -> None:
    machine = replace(small_one(), one_worker=one_worker, function=1.1)
    choice = machine.search(20_000 * MB, machine.space(lstm_paths=("native", "function", "torch")))
    assert choice is not None
    assert (choice.micro_batch, choice.workers, choice.lstm_path) == wanted
    seen = {look.means.lstm_path for look in machine.looks}
    assert seen == {"native", "torch", wanted[2]}


def test_nn_lstm_is_taken_at_a_smaller_size_where_it_doesn_t_fit_at_the_best() -> None:
    machine = replace(large_one(), function=0.8)
    choice = machine.search(3900 * MB, machine.space(lstm_paths=PATHS))
    assert choice is not None
    ours = [point for point in machine.known.points() if point.lstm_path == "function"]
    best = max(ours, key=lambda point: point.images_per_second)
    assert choice.lstm_path == "torch"
    assert choice.micro_batch < best.micro_batch
    assert machine.peak(best.setting, *astuple(best.means)) <= allowed_bytes(3900 * MB)
    assert machine.peak(best.setting, "keep", "torch") > allowed_bytes(3900 * MB)


def test_a_lucky_look_at_recomputed_layers_does_not_decide_for_small_images() -> None:
    machine = replace(small_one(), recomputing=1.03, function=0.8)
    machine.known.facts = SMALL
    choice = machine.search(6000 * MB, machine.space(lstm_paths=PATHS))
    assert choice is not None
    assert (choice.setting, choice.lstm_path) == (Setting(64, 2, 0), "torch")


def test_where_nothing_fits_the_least_setting_was_tried_with_each_allocator() -> None:
    machine = large_one()
    budget = 1200 * MB  # weights, gradients and optimizer alone take less
    assert machine.search(budget, machine.space()) is None
    least = Setting(1, 1, 36)
    tried = {(look.setting, look.means.allocator) for look in machine.looks}
    assert (least, "keep") in tried
    assert (least, "lean") in tried
    assert len(machine.looks) <= 3


def test_nothing_is_tried_where_the_weights_alone_don_t_fit() -> None:
    machine = large_one()
    assert machine.search(900 * MB, machine.space()) is None
    assert machine.looks == []


def test_the_lean_allocator_is_taken_where_only_it_fits() -> None:
    machine = large_one()
    least = machine.peak(Setting(1, 1, 36), "lean")
    budget = round(least / SHARE_OF_BUDGET) + MB
    assert machine.peak(Setting(1, 1, 36), "keep") > SHARE_OF_BUDGET * budget
    choice = machine.search(budget, machine.space())
    assert choice is not None
    assert (choice.setting, choice.allocator) == (Setting(1, 1, 36), "lean")


def test_with_one_allocator_no_other_is_asked_for() -> None:
    machine = large_one()
    machine.search(1300 * MB, machine.space(allocators=("default",)))
    assert {look.means.allocator for look in machine.looks} == {"default"}


@pytest.mark.parametrize("budget", [700, 6000])
def test_a_wanted_size_is_the_only_one_looked_at(budget: int) -> None:
    machine = small_one()
    choice = machine.search(budget * MB, machine.space(wanted=16))
    assert choice is not None
    assert {look.setting.micro_batch for look in machine.looks} == {16}


def test_what_is_known_is_never_measured_again() -> None:
    machine = small_one()
    first = machine.search(700 * MB, machine.space())
    count = len(machine.looks)
    assert machine.search(700 * MB, machine.space()) == first
    assert len(machine.looks) == count


def test_another_cap_asks_only_for_what_is_missing() -> None:
    machine = small_one()
    machine.search(20_000 * MB, machine.space())
    machine.looks.clear()
    machine.search(15_000 * MB, machine.space())
    assert machine.looks == []  # all fits there as well
    machine.search(700 * MB, machine.space())
    assert machine.looks
    choice = fitting(machine.known, 700 * MB)[0]
    assert choice.images_per_second >= 0.9 * machine.best(700 * MB, machine.space())


def test_in_a_hurry_only_the_choice_is_seen_to_be_sound() -> None:
    machine = small_one()
    space, budget = machine.space(), 600 * MB
    assert next_look(space, machine.known, budget, hurry=True) is None
    for size in (8, 16):
        setting = Setting(size, 1)
        rate = machine.speed(setting, "keep")
        machine.known.measured.append(Measurement(size, 1, 0, "keep", machine.peak(setting, "keep"), 0, rate))
    assert next_look(space, machine.known, budget, hurry=True) == Look(Setting(16, 1), Means("keep"), fresh=True)


@pytest.mark.parametrize(("facts", "recomputed"), [(SMALL, [0, 0, 3]), (LARGE, [7, 0, 0, 3])])
def test_small_images_are_not_recomputed_without_need(facts: Facts, recomputed: list[int]) -> None:
    known = Knowledge(
        facts=facts,
        measured=[
            Measurement(8, 1, 7, "keep", 400 * MB, 0, 10.0),  # a lucky moment
            Measurement(8, 1, 0, "keep", 500 * MB, 0, 9.0),
            Measurement(8, 1, 0, "lean", 450 * MB, 0, 6.0),
            Measurement(16, 1, 0, "keep", 700 * MB, 0, 12.0),
            Measurement(16, 1, 3, "keep", 480 * MB, 0, 5.0),
        ],
    )
    assert [point.recomputed_layers for point in fitting(known, 600 * MB)] == recomputed


def test_a_choice_that_does_not_fit_alone_gives_way_to_the_next() -> None:
    known = Knowledge(
        measured=[Measurement(8, 1, 0, "keep", 500 * MB, 0, 9.0), Measurement(4, 1, 0, "keep", 480 * MB, 0, 7.0)]
    )
    assert [point.micro_batch for point in fitting(known, 600 * MB)] == [8, 4]
    known.verified.append(Measurement(8, 1, 0, "keep", 590 * MB, 0, 9.0))
    assert [point.micro_batch for point in fitting(known, 600 * MB)] == [4]
    known.unfit.append(Unfit(Setting(4, 1), Means("keep"), 600 * MB))
    assert fitting(known, 600 * MB) == []
    assert [point.micro_batch for point in fitting(known, 700 * MB)] == [8, 4]  # with more to hold it may do


@given(
    st.integers(300, 9000),
    st.floats(0.1, 0.9),
    st.floats(0.5, 1.1),
    st.floats(0.5, 2.0),
    st.floats(0.1, 64),
    st.booleans(),
)
def test_the_search_ends_and_takes_only_what_was_measured_and_fits(
    budget: int, kept: float, recomputing: float, one_worker: float, saturation: float, is_small: bool
) -> None:
    facts, image_bytes = (SMALL, 3 * MB) if is_small else (LARGE, 700 * MB)
    machine = Machine(facts, image_bytes, kept, recomputing, one_worker, saturation)
    choice = machine.search(budget * MB, machine.space())
    assert len(machine.looks) < 80
    if choice is not None:
        assert choice.peak_bytes == machine.peak(choice.setting, choice.allocator) <= SHARE_OF_BUDGET * budget * MB
    # little is tried that does not fit, since each try costs a process
    assert len(machine.known.unfit) <= 8


def count_tries(machine: Machine, budget: int, is_refused: Callable[[int], bool]) -> int:
    machine.search(budget, machine.space())
    return sum(is_refused(machine.peak(look.setting, *astuple(look.means))) for look in machine.looks)


@pytest.mark.parametrize("budget", [560, 600, 700, 800])
def test_where_memory_is_affine_hardly_anything_is_tried_in_vain(budget: int) -> None:
    assert count_tries(small_one(), budget * MB, lambda peak: peak > budget * MB) <= 1


@given(st.integers(1, 5000), st.integers(1, 8))
def test_candidates_are_powers_of_two_that_end_with_a_workers_share(batch: int, workers: int) -> None:
    sizes = candidate_sizes(batch, workers, None, smallest=8)
    assert (sizes[-1] - 1) * workers < batch <= sizes[-1] * workers
    assert sizes == sorted(set(sizes))
    assert all(size & (size - 1) == 0 and size >= 8 for size in sizes[:-1])
    assert all(larger <= 2 * smaller for smaller, larger in pairwise(sizes))
    assert sizes[0] <= 8


@pytest.mark.parametrize(
    ("batch", "workers", "sizes"),
    [(1, 1, [1]), (8, 1, [8]), (9, 1, [8, 9]), (64, 1, [8, 16, 32, 64]), (64, 2, [8, 16, 32]), (9, 4, [3])],
)
def test_candidates_of_some_batches(batch: int, workers: int, sizes: list[int]) -> None:
    assert candidate_sizes(batch, workers, None, smallest=8) == sizes


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_wanted_size_is_the_only_candidate_and_never_passes_the_batch(batch: int, wanted: int) -> None:
    assert candidate_sizes(batch, 2, wanted, smallest=8) == [min(batch, wanted)]


def test_even_sizes_cut_a_step_into_rounds_of_equal_work() -> None:
    assert even_sizes(128, 2)[-6:] == [12, 14, 16, 22, 32, 64]
    assert even_sizes(128, 1)[-5:] == [26, 32, 44, 64, 128]
    assert even_sizes(5, 1) == [1, 2, 3, 5]


@given(st.integers(1, 2000), st.integers(1, 4))
def test_even_sizes_pass_no_batch_and_leave_no_worker_idle(batch: int, workers: int) -> None:
    sizes = even_sizes(batch, workers)
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1
    assert sizes[-1] <= batch
    assert all(size % 2 == 0 or size < 4 or size == batch for size in sizes)


@pytest.mark.parametrize(
    ("cores", "batch", "wanted", "on_cpu", "counts"),
    [
        (2, 128, None, True, [2, 1]),
        (1, 128, None, True, [1]),
        (16, 128, None, True, [4, 1]),
        (6, 128, None, True, [3, 1]),
        (5, 128, None, True, [1]),
        (4, 128, 64, True, [2, 1]),
        (4, 128, 128, True, [1]),
        (4, 128, None, False, [1]),
    ],
)
def test_there_is_a_worker_a_core_where_a_step_has_enough_for_it(
    cores: int, batch: int, wanted: int | None, on_cpu: bool, counts: list[int]
) -> None:
    assert worker_counts(cores, batch, wanted, on_cpu) == counts
    assert [threads_each(count, cores) for count in counts][-1] == cores
