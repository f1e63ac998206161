"""Which settings to measure, in which order, and which of them to take.

The search is a recipe that asks for one look after the other and hears what each gave. It is told anew from its
beginning each time, with the answers that are known: so it goes on in another process, with another allocator,
after a process that met its limit, or from what was remembered, and never measures twice. Memory decides what may
be looked at, measured speed what is taken.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace

from lowmem_seq.memory.expected import Expectation
from lowmem_seq.memory.footprint import held_without_images
from lowmem_seq.memory.plan import Means, Measurement, Setting
from lowmem_seq.memory.prediction import predict_recomputed, with_margin
from lowmem_seq.memory.remembered import Knowledge, Look
from lowmem_seq.memory.space import SMALL_IMAGE, SMALLEST_OF_SMALL, Space, candidate_sizes, even_sizes

SHARE_OF_BUDGET = 0.95
"""Share of what the trainer may hold that a measured peak may fill: measurements repeat within 2 to 3 %."""
WELL_USED = 0.85
"""Share from which looking for a size in between brings little more."""
COMFORTABLE = 0.6
"""Share up to which a peak needs no second look in a fresh process."""
MEASURES_ON = 0.75
"""Share up to which a process measures on: it keeps 20 MB of a look at Small and hundreds of others, and what comes
next is measured right by another one. Of large images it is COMFORTABLE, for they leave more."""
SLOWER = 0.9
"""Share of the speed before at which a larger micro-batch ends the looking; less may be noise."""
CLOSE = 0.8
"""Share of the best speed from which a way to compute is worth more looks."""
STEEP = 1.5
"""What doubling the micro-batch must bring for the lean allocator, which costs up to 42 % of the speed, to pay."""
POINTS_OF_A_LINE = 2
FEW = 3
ROUNDS_AGAIN = 2
"""Times that the FEW fastest settings are measured again, in turn: one slow second decides nothing."""


def allowed_bytes(budget_bytes: int) -> int:
    """Return the peak that a setting may have to be taken."""
    return int(budget_bytes * SHARE_OF_BUDGET)


def fitting(known: Knowledge, budget_bytes: int) -> list[Measurement]:
    """Return what was measured and may be taken, the fastest first: one entry a setting and means.

    Small images lose by recomputation whatever a measurement says, so none is taken that isn't needed.
    """
    points = [
        point
        for point in known.points()
        if point.peak_bytes <= allowed_bytes(budget_bytes) and not known.failed(point, budget_bytes)
    ]
    if known.facts is not None and known.facts.image_size <= SMALL_IMAGE:
        least: dict[tuple[int, int, Means], int] = {}
        for point in points:
            way = (point.micro_batch, point.workers, point.means)
            least[way] = min(point.recomputed_layers, least.get(way, point.recomputed_layers))
        points = [
            point
            for point in points
            if point.recomputed_layers == least[point.micro_batch, point.workers, point.means]
        ]
    return sorted(points, key=lambda point: point.images_per_second, reverse=True)


def next_look(space: Space, known: Knowledge, budget_bytes: int, hurry: bool = False) -> Look | None:
    """Return what to measure next, or None where the search is at its end.

    Args:
        space: what there is to choose from.
        known: what was measured, and what did not fit.
        budget_bytes: what the trainer may hold.
        hurry: only see that the choice is sound; what else is not known yet counts as not fitting.
    """
    recipe = _Recipe(space, known, budget_bytes).looks()
    try:
        look = next(recipe)
        while True:
            is_known, answer = known.answer(look, budget_bytes)
            if not is_known and not (hurry and not look.fresh):
                return look
            look = recipe.send(answer)
    except StopIteration:
        return None


def measures_on(space: Space, peak_bytes: int, budget_bytes: int) -> bool:
    """Whether a process that came to hold so much can measure on."""
    return peak_bytes <= (MEASURES_ON if space.is_small else COMFORTABLE) * budget_bytes


Answer = Measurement | None
Looks = Generator[Look, Answer, None]


class _Recipe:
    """One telling of the search."""

    def __init__(self, space: Space, known: Knowledge, budget_bytes: int) -> None:
        self._space, self._known, self._budget_bytes = space, known, budget_bytes
        self._allowed_bytes = allowed_bytes(budget_bytes)
        self._seen: dict[tuple[Setting, Means], Answer] = {}
        self._is_tight = False

    def looks(self) -> Looks:
        """Ask for one look after the other."""
        fast = Means(self._space.allocators[0], self._space.lstm_paths[0])
        yield from self._widen(fast)
        if self._best() is None:
            yield from self._squeeze(fast)
        else:
            yield from self._recompute(fast)
        if self._is_tight:
            yield from self._look_between(fast)
        yield from self._take_other_path(fast)
        yield from self._look_again(fast.allocator)
        best = self._best()
        lean = Means(self._space.allocators[-1], fast.lstm_path if best is None else best.lstm_path)
        if lean.allocator != fast.allocator and self._is_tight:
            if best is None:
                yield from self._squeeze(lean)
            elif self._is_steep(best.means):
                yield from self._lean_out(lean)
            yield from self._look_between(lean)
            yield from self._look_again(lean.allocator)
        yield from self._see_that_it_is_sound()

    def _widen(self, means: Means) -> Looks:
        """From one small micro-batch, grow it, first with a worker a core, then with one worker on all cores."""
        smallest = SMALLEST_OF_SMALL if self._space.is_small else 1
        sizes = candidate_sizes(self._space.effective_batch, 1, self._space.wanted, smallest)
        yield from self._sweep([Setting(sizes[0], 1)], means)
        if self._is_cramped(means):
            yield from self._look_below(Setting(sizes[0], 1), means)
        recomputed = yield from self._layers_from_the_start(Setting(sizes[0], 1), means)
        for workers in self._workers(means) if self._best() is not None else ():
            sizes = candidate_sizes(self._space.effective_batch, workers, self._space.wanted, smallest)
            best = self._best()
            if best is not None and self._space.wanted is None:
                sizes = [size for size in sizes if size * workers >= best.micro_batch * best.workers]
            yield from self._sweep([Setting(size, workers, recomputed) for size in sizes], means)
        best = self._best()
        if recomputed and best is not None:
            yield from self._sweep([replace(best.setting, recomputed_layers=0)], means)

    def _layers_from_the_start(self, setting: Setting, means: Means) -> Generator[Look, Answer, int]:
        """Return how many layers to recompute while the micro-batch grows: all, if large images lose nothing by it.

        Large images keep so much for backward that the memory traffic saved may pay for computing it twice.
        """
        kept, layers = self._seen.get((setting, means)), self._space.facts.layers
        if self._space.is_small or not layers or kept is None or kept.peak_bytes > self._allowed_bytes:
            return 0
        point = yield from self._look(replace(setting, recomputed_layers=layers), means)
        return layers if point is not None and point.images_per_second >= SLOWER * kept.images_per_second else 0

    def _squeeze(self, means: Means) -> Looks:
        """Start from the setting that needs least, and give it more of each kind while it fits."""
        point = None
        for least in self._space.least:
            if point is None and self._is_expected_to_fit(least, means):
                point = yield from self._look(least, means)
        if point is None:
            return
        least = point.setting
        if self._space.wanted is None:
            sizes = candidate_sizes(self._space.effective_batch, 1, None, least.micro_batch)
            yield from self._sweep([replace(least, micro_batch=size) for size in sizes], means)
        for workers, recomputed in ((1, 0), (self._space.workers[0], self._space.facts.layers)):
            best = self._best()
            assert best is not None
            smaller = Setting(max(1, best.micro_batch // 2), workers, recomputed)
            wanted = Setting(best.micro_batch, workers, recomputed)
            yield from self._sweep([wanted] if self._space.wanted is not None else [smaller, wanted], means)

    def _recompute(self, means: Means) -> Looks:
        """Look at recomputation: of all layers at the best size and above, and of some where all kept don't fit."""
        best, layers = self._best(), self._space.facts.layers
        if best is None or not layers:
            return
        if not self._is_cramped(means):
            point = yield from self._look(replace(best.setting, recomputed_layers=layers), means)
            if point is None:
                return
            if not self._is_tight and point.images_per_second < SLOWER * best.images_per_second:
                return
        for workers in self._space.workers if self._is_tight else [best.workers]:
            sizes = candidate_sizes(self._space.effective_batch, workers, self._space.wanted, 1)
            if self._space.wanted is None:
                sizes = [size for size in sizes if size * workers >= best.micro_batch * best.workers]
            yield from self._sweep([Setting(size, workers, layers) for size in sizes], means)
        for size in self._sizes_above(best)[:1] if self._is_tight else ():
            some = self._fewest_layers(Setting(size, best.workers), means)
            if some is not None:
                yield from self._look(some, means)

    def _sizes_above(self, point: Measurement) -> list[int]:
        if self._space.wanted is not None:
            return []
        sizes = candidate_sizes(self._space.effective_batch, point.workers, None, 1)
        return [size for size in sizes if size > point.micro_batch]

    def _fewest_layers(self, setting: Setting, means: Means) -> Setting | None:
        """Return the setting with as few layers recomputed as are expected to fit."""
        expectation = self._expectation(means)
        whole = expectation.bytes_of(setting)
        least = expectation.bytes_of(replace(setting, recomputed_layers=self._space.facts.layers))
        if whole is None or least is None:
            return None
        for count in range(1, self._space.facts.layers):
            if with_margin(predict_recomputed(whole, least, self._space.shares, count)) <= self._budget_bytes:
                return replace(setting, recomputed_layers=count)
        return None

    def _look_between(self, means: Means) -> Looks:
        """Look at the largest even size that is expected to fit, for each way to compute that comes close."""
        if self._space.wanted is not None:
            return
        ways = {(setting.workers, setting.recomputed_layers) for setting, name in self._seen if name == means}
        for workers, recomputed in sorted(ways, reverse=True):
            best, way = self._best(), self._way(Setting(0, workers, recomputed), means)
            if best is None or not way:
                continue
            fastest = max(way, key=lambda point: point.images_per_second)
            if (
                fastest.images_per_second < CLOSE * best.images_per_second
                or fastest.peak_bytes > self._allowed_bytes
            ):
                continue
            if fastest.peak_bytes >= WELL_USED * self._budget_bytes:
                continue
            sizes = [
                size
                for size in even_sizes(self._space.effective_batch, workers)
                if size > fastest.micro_batch
                and self._is_expected_to_fit(Setting(size, workers, recomputed), means)
            ]
            if sizes:
                yield from self._look(Setting(sizes[-1], workers, recomputed), means)

    def _is_steep(self, means: Means) -> bool:
        """Whether a larger micro-batch would still bring much."""
        best = self._best()
        assert best is not None
        way = sorted(self._way(best.setting, means), key=lambda point: point.micro_batch)
        before = [point for point in way if 2 * point.micro_batch <= best.micro_batch]
        if not before:
            return best.micro_batch < math.ceil(self._space.effective_batch / best.workers)
        doublings = math.log2(best.micro_batch / before[-1].micro_batch)
        return best.images_per_second > float(STEEP**doublings) * before[-1].images_per_second

    def _lean_out(self, means: Means) -> Looks:
        """See whether a larger micro-batch under the lean allocator is worth what that one costs."""
        best = self._best()
        assert best is not None
        settings = [
            replace(best.setting, micro_batch=size) for size in (best.micro_batch, *self._sizes_above(best))
        ]
        yield from self._sweep(settings, means)

    def _take_other_path(self, means: Means) -> Looks:
        """See whether LSTMs that are computed in another way are faster at the best size, and above it then."""
        for path in self._space.lstm_paths[1:]:
            best, other = self._best(), replace(means, lstm_path=path)
            if best is None:
                return
            point = yield from self._look(best.setting, other)
            if point is not None and point.images_per_second > best.images_per_second:
                larger = [replace(best.setting, micro_batch=size) for size in self._sizes_above(best)]
                yield from self._sweep(larger, other)

    def _look_again(self, allocator: str) -> Looks:
        """Measure the fastest again, in turn; others only ever slow a measurement down, for seconds at a time."""
        points = [point for point in fitting(self._known, self._budget_bytes) if point.allocator == allocator]
        points = [point for point in points if (point.setting, point.means) in self._seen]
        fast = [point for point in points if point.images_per_second >= CLOSE * points[0].images_per_second][:FEW]
        # large images are timed over seconds already; and near the cap each look takes a process
        rounds = ROUNDS_AGAIN if self._space.is_small and not self._is_tight else 1
        for turn in range(1, rounds + 1) if len(fast) > 1 else ():
            for point in fast:
                yield Look(point.setting, point.means, again=turn)

    def _see_that_it_is_sound(self) -> Looks:
        """Measure the choice in a fresh process, like the trainer's: earlier measurements leave traces."""
        points = fitting(self._known, self._budget_bytes)
        if points and points[0].peak_bytes > COMFORTABLE * self._budget_bytes:
            yield Look(points[0].setting, points[0].means, fresh=True)

    def _sweep(self, settings: Sequence[Setting], means: Means) -> Looks:
        """Look at settings that need ever more, until one isn't expected to fit, doesn't, or is slower.

        Where each look takes a process, go straight to the last one that is expected to fit, and back from there.
        """
        before: Answer = None
        left = list(settings)
        while left:
            setting, skipped = left.pop(0), []
            if not self._is_expected_to_fit(setting, means):
                self._is_tight = True
                yield from self._look_below(setting, means)
                if not self._is_expected_to_fit(setting, means):
                    return
            while left and self._is_cramped(means) and self._is_expected_to_fit(left[0], means):
                skipped.append(setting)
                setting = left.pop(0)
            point = yield from self._look(setting, means)
            if point is None:
                self._is_tight = True
                left = skipped[-1:]
            elif before is not None and point.images_per_second < SLOWER * before.images_per_second:
                return
            else:
                before = point

    def _look_below(self, setting: Setting, means: Means) -> Looks:
        """Where little was seen of this way to compute, look at half a size: so it is known what an image takes."""
        for _ in range(POINTS_OF_A_LINE):
            way = self._way(setting, means)
            if len(way) > 1 or self._space.wanted is not None:
                return
            half = replace(setting, micro_batch=(way[0] if way else setting).micro_batch // 2)
            worth_a_look = SMALLEST_OF_SMALL // 2 if self._space.is_small else 1
            if half.micro_batch < worth_a_look or not self._is_expected_to_fit(half, means):
                return
            if self._is_cramped(means) and self._expectation(means).knows_an_image(setting):
                return
            yield from self._look(half, means)
            if self._is_expected_to_fit(setting, means):
                return

    def _look(self, setting: Setting, means: Means) -> Generator[Look, Answer, Answer]:
        """Ask for one look; return what was measured, if it may be taken."""
        if (setting, means) not in self._seen:
            self._seen[setting, means] = yield Look(setting, means)
        point = self._seen[setting, means]
        return point if point is not None and point.peak_bytes <= self._allowed_bytes else None

    def _best(self) -> Answer:
        """The fastest of what was seen so far and may be taken."""
        points = [point for point in self._seen.values() if point is not None]
        points = [point for point in points if point.peak_bytes <= self._allowed_bytes]
        return max(points, key=lambda point: point.images_per_second, default=None)

    def _way(self, setting: Setting, means: Means) -> list[Measurement]:
        """What was seen of the same workers, recomputed layers and means."""
        return [
            point
            for (seen, name), point in self._seen.items()
            if point is not None
            and name == means
            and (seen.workers, seen.recomputed_layers) == (setting.workers, setting.recomputed_layers)
        ]

    def _is_cramped(self, means: Means) -> bool:
        """Whether what was seen leaves so little that each look takes a process."""
        return not all(
            measures_on(self._space, point.peak_bytes, self._budget_bytes)
            for (_, name), point in self._seen.items()
            if point is not None and name == means
        )

    def _workers(self, means: Means) -> list[int]:
        """The numbers of workers to try; where memory is short, that which needs least first."""
        return sorted(self._space.workers) if self._is_cramped(means) else self._space.workers

    def _expectation(self, means: Means) -> Expectation:
        seen = {
            setting: point.peak_bytes
            for (setting, name), point in self._seen.items()
            if point is not None and name == means
        }
        return Expectation(self._space.facts, self._space.shares, seen)

    def _is_expected_to_fit(self, setting: Setting, means: Means) -> bool:
        expected = self._expectation(means).bytes_of(setting)
        if expected is None:
            return held_without_images(self._space.facts, setting.workers) <= self._budget_bytes
        is_seen = (setting, means) in self._seen
        return (expected if is_seen else with_margin(expected)) <= self._budget_bytes
