"""Which settings to measure, in which order, and which of them to take.

The search is a recipe that asks for one look after the other and hears what each gave. It is told anew from its
beginning each time, with the answers that are known: so it goes on in another process, with another allocator,
after a process that met its limit, or from what was remembered, and never measures twice. Memory decides what may
be looked at, measured speed what is taken.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from lowmem_seq.memory.plan import TORCH_LSTM, Means, Measurement, Setting, threads_each
from lowmem_seq.memory.remembered import Knowledge, Look
from lowmem_seq.memory.seen import COMFORTABLE, SLOWER, Seen, allowed_bytes, without_needless
from lowmem_seq.memory.space import SMALL_IMAGE, SMALLEST_OF_SMALL, Space, candidate_sizes, even_sizes

WELL_USED = 0.85
"""Share from which looking for a size in between brings little more."""
MOST_GAIN = 1.25
"""What nn.LSTM is taken to bring at the most over our function (docs/results.md: 1.23 for a single large image)."""
CLOSE = 0.8
"""Share of the best speed from which a way to compute is worth more looks."""
POINTS_OF_A_LINE = 2
TRIES_OF_SOME = 2
"""How often some layers are recomputed that should do, before the looking ends."""
FEW = 3
ROUNDS_AGAIN = 2
"""Times that the FEW fastest settings are measured again, in turn: one slow second decides nothing."""


def fitting(known: Knowledge, budget_bytes: int) -> list[Measurement]:
    """Return what was measured and may be taken, the fastest first: one entry a setting and means."""
    points = [
        point
        for point in known.points()
        if point.peak_bytes <= allowed_bytes(budget_bytes) and not known.failed(point, budget_bytes)
    ]
    if known.facts is not None and known.facts.image_size <= SMALL_IMAGE:
        points = without_needless(points)
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


Answer = Measurement | None
Looks = Generator[Look, Answer, None]


class _Recipe:
    """One telling of the search."""

    def __init__(self, space: Space, known: Knowledge, budget_bytes: int) -> None:
        self._space, self._known, self._budget_bytes = space, known, budget_bytes
        self._seen = Seen(space, budget_bytes)
        self._is_tight = False

    def looks(self) -> Looks:
        """Ask for one look after the other."""
        fast = Means(self._space.allocators[0], self._space.lstm_paths[0])
        yield from self._widen(fast)
        if self._seen.best() is None:
            yield from self._squeeze(fast)
        else:
            yield from self._recompute(fast)
        if self._is_tight:
            yield from self._look_between(fast)
        yield from self._take_other_path(fast)
        yield from self._look_again(fast.allocator)
        best = self._seen.best()
        lean = Means(self._space.allocators[-1], fast.lstm_path if best is None else best.lstm_path)
        if lean.allocator != fast.allocator and self._is_tight:
            if best is None:
                yield from self._squeeze(lean)
            elif self._seen.is_steep(best.means):
                yield from self._lean_out(lean)
            yield from self._look_between(lean)
            yield from self._look_again(lean.allocator)
        yield from self._see_that_it_is_sound()

    def _widen(self, means: Means) -> Looks:
        """From one small micro-batch, grow it, first with a worker a core, then with one worker on all cores."""
        smallest = SMALLEST_OF_SMALL if self._space.is_small else 1
        sizes = candidate_sizes(self._space.effective_batch, 1, self._space.wanted, smallest)
        yield from self._sweep([Setting(sizes[0], 1)], means)
        if self._seen.is_cramped(means):
            yield from self._look_below(Setting(sizes[0], 1), means)
        recomputed = yield from self._layers_from_the_start(Setting(sizes[0], 1), means)
        for workers in self._workers(means) if self._seen.best() is not None else ():
            sizes = candidate_sizes(self._space.effective_batch, workers, self._space.wanted, smallest)
            best = self._seen.best()
            if best is not None and self._space.wanted is None:
                sizes = [size for size in sizes if size * workers >= best.micro_batch * best.workers]
            yield from self._sweep([Setting(size, workers, recomputed) for size in sizes], means)
        best = self._seen.best()
        if recomputed and best is not None:
            yield from self._sweep([replace(best.setting, recomputed_layers=0)], means)

    def _workers(self, means: Means) -> list[int]:
        """The numbers of workers to try; where memory is short, that which needs least first."""
        return sorted(self._space.workers) if self._seen.is_cramped(means) else self._space.workers

    def _layers_from_the_start(self, setting: Setting, means: Means) -> Generator[Look, Answer, int]:
        """Return how many layers to recompute while the micro-batch grows: all, if large images lose nothing by it.

        Large images keep so much for backward that the memory traffic saved may pay for computing it twice.
        """
        kept, layers = self._seen.points.get((setting, means)), self._space.facts.layers
        if self._space.is_small or not layers or kept is None or not self._seen.may_be_taken(kept):
            return 0
        point = yield from self._look(replace(setting, recomputed_layers=layers), means)
        return layers if point is not None and point.images_per_second >= SLOWER * kept.images_per_second else 0

    def _squeeze(self, means: Means) -> Looks:
        """Start from the setting that needs least, and give it more of each kind while it fits."""
        point = None
        for least in self._space.least:
            if point is None and self._seen.is_expected_to_fit(least, means):
                point = yield from self._look(least, means)
        if point is None:
            return
        least = point.setting
        if self._space.wanted is None:
            sizes = candidate_sizes(self._space.effective_batch, 1, None, least.micro_batch)
            yield from self._sweep([replace(least, micro_batch=size) for size in sizes], means)
        for workers, recomputed in ((1, 0), (self._space.workers[0], self._space.facts.layers)):
            best = self._seen.best()
            assert best is not None
            smaller = Setting(max(1, best.micro_batch // 2), workers, recomputed)
            wanted = Setting(best.micro_batch, workers, recomputed)
            yield from self._sweep([wanted] if self._space.wanted is not None else [smaller, wanted], means)

    def _recompute(self, means: Means) -> Looks:
        """Look at recomputation: of all layers at the best size and above, and of some where all kept don't fit."""
        best, layers = self._seen.best(), self._space.facts.layers
        if best is None or not layers:
            return
        if not self._seen.is_cramped(means):
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
        for size in self._seen.sizes_above(best)[:1] if self._is_tight else ():
            for _ in range(TRIES_OF_SOME):
                count = self._seen.fewest_layers(Setting(size, best.workers), means)
                if count is None or (yield from self._look(Setting(size, best.workers, count), means)) is not None:
                    break

    def _look_between(self, means: Means) -> Looks:
        """Look at the largest even size that is expected to fit, for each way to compute that comes close."""
        if self._space.wanted is not None:
            return
        ways = {
            (setting.workers, setting.recomputed_layers) for setting, name in self._seen.points if name == means
        }
        for workers, recomputed in sorted(ways, reverse=True):
            best, way = self._seen.best(), self._seen.way(Setting(0, workers, recomputed), means)
            if best is None or not way:
                continue
            fastest = max(way, key=lambda point: point.images_per_second)
            if fastest.images_per_second < CLOSE * best.images_per_second or not self._seen.may_be_taken(fastest):
                continue
            if fastest.peak_bytes >= WELL_USED * self._budget_bytes:
                continue
            sizes = [
                size
                for size in even_sizes(self._space.effective_batch, workers)
                if size > fastest.micro_batch
                and self._seen.is_expected_to_fit(Setting(size, workers, recomputed), means)
            ]
            if sizes:
                yield from self._look(Setting(sizes[-1], workers, recomputed), means)

    def _lean_out(self, means: Means) -> Looks:
        """See whether a larger micro-batch under the lean allocator is worth what that one costs."""
        best = self._seen.best()
        assert best is not None
        settings = [
            replace(best.setting, micro_batch=size) for size in (best.micro_batch, *self._seen.sizes_above(best))
        ]
        yield from self._sweep(settings, means)

    def _take_other_path(self, means: Means) -> Looks:
        """See whether LSTMs are faster otherwise: at the best size or the largest below that fits, and above.

        Compiled cells are computed by one thread: only where a worker has several may torch's be faster.
        """
        for path in self._space.lstm_paths[1:]:
            best, other, point = self._seen.best(), replace(means, lstm_path=path), None
            if best is None:
                return
            if path != TORCH_LSTM and threads_each(best.workers, self._space.cores) == 1:
                continue
            rates = {one.micro_batch: one.images_per_second for one in self._seen.way(best.setting, means)}
            for size in self._seen.sizes_down_from(best):
                setting = replace(best.setting, micro_batch=size)
                if rates.get(size, 0.0) * MOST_GAIN < best.images_per_second:
                    break
                if point is None and self._seen.may_fit_with_torch(setting, means):
                    point = yield from self._look(setting, other)
            if point is None or point.images_per_second <= best.images_per_second:
                continue
            larger = [replace(point.setting, micro_batch=size) for size in self._seen.sizes_above(point)]
            yield from self._sweep(larger, other)
            if self._is_tight:
                yield from self._look_between(other)

    def _look_again(self, allocator: str) -> Looks:
        """Measure the fastest again, in turn; others only ever slow a measurement down, for seconds at a time."""
        points = [point for point in fitting(self._known, self._budget_bytes) if point.allocator == allocator]
        points = [point for point in points if (point.setting, point.means) in self._seen.points]
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
            if not self._seen.is_expected_to_fit(setting, means):
                self._is_tight = True
                yield from self._look_alone(setting, means)
                yield from self._look_below(setting, means)
                if not self._seen.is_expected_to_fit(setting, means):
                    return
            while left and self._seen.is_cramped(means) and self._seen.is_expected_to_fit(left[0], means):
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

    def _look_alone(self, setting: Setting, means: Means) -> Looks:
        """Measure the largest of this way to compute in a fresh process: traces may have made it seem larger."""
        way = self._seen.way(setting, means)
        if way:
            largest = max(way, key=lambda point: point.micro_batch)
            self._seen.points[largest.setting, means] = yield Look(largest.setting, means, fresh=True)

    def _look_below(self, setting: Setting, means: Means) -> Looks:
        """Where little was seen of this way to compute, look at half a size: so it is known what an image takes."""
        for _ in range(POINTS_OF_A_LINE):
            way = self._seen.way(setting, means)
            if len(way) > 1 or self._space.wanted is not None:
                return
            half = replace(setting, micro_batch=(way[0] if way else setting).micro_batch // 2)
            worth_a_look = SMALLEST_OF_SMALL // 2 if self._space.is_small else 1
            if half.micro_batch < worth_a_look or not self._seen.is_expected_to_fit(half, means):
                return
            if self._seen.is_cramped(means) and self._seen.expectation(means).knows_an_image(setting):
                return
            yield from self._look(half, means)
            if self._seen.is_expected_to_fit(setting, means):
                return

    def _look(self, setting: Setting, means: Means) -> Generator[Look, Answer, Answer]:
        """Ask for one look, and for another where it seems disturbed; return the better, if it may be taken."""
        points = self._seen.points
        if (setting, means) not in points:
            points[setting, means] = yield Look(setting, means)
            if self._seen.looks_disturbed(setting, means):
                points[setting, means] = (yield Look(setting, means, again=1)) or points[setting, means]
        point = points[setting, means]
        return point if self._seen.may_be_taken(point) else None
