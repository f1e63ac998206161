"""What one telling of the search has seen, and what follows from that: the best so far, and what should fit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from lowmem_seq.memory.expected import Expectation
from lowmem_seq.memory.footprint import held_without_images
from lowmem_seq.memory.plan import Means, Measurement, Setting
from lowmem_seq.memory.prediction import predict_recomputed, with_margin
from lowmem_seq.memory.space import Space, candidate_sizes

SHARE_OF_BUDGET = 0.95
"""Share of what the trainer may hold that a measured peak may fill: measurements repeat within 2 to 3 %."""
COMFORTABLE = 0.6
"""Share up to which a peak needs no second look in a fresh process."""
MEASURES_ON = 0.75
"""Share up to which a process measures on: it keeps 20 MB of a look at Small and hundreds of others, and what comes
next is measured right by another one. Of large images it is COMFORTABLE, for they leave more."""
STEEP = 1.5
"""What doubling the micro-batch must bring for the lean allocator to pay, which costs a third of the speed of large
images and half of that of small ones."""
SLOWER = 0.9
"""Share of the speed before at which a larger micro-batch ends the looking; less may be noise."""
DISTURBED = 0.7
"""Share of another path's speed under which a measurement is not believed at once. Others take one of two cores for
seconds at a time: one look of Small in ten was so disturbed (docs/log.md, 2026-11-23)."""
TORCH_KEEPS = 1.2
"""What a model keeps for an image under nn.LSTM at the least, beside our function. docs/results.md: the layers with
LSTMs 2 to 8 times as much where there is oneDNN, 1.7 times where not; the others keep the same."""


def allowed_bytes(budget_bytes: int) -> int:
    """Return the peak that a setting may have to be taken."""
    return int(budget_bytes * SHARE_OF_BUDGET)


def measures_on(space: Space, peak_bytes: int, budget_bytes: int) -> bool:
    """Whether a process that came to hold so much can measure on."""
    return peak_bytes <= (MEASURES_ON if space.is_small else COMFORTABLE) * budget_bytes


def without_needless(points: Iterable[Measurement]) -> list[Measurement]:
    """Return points, without those that recompute layers where the same size did with fewer: for small images.

    They lose by recomputation, whatever a lucky measurement says.
    """
    kept = list(points)
    least: dict[tuple[int, int, Means], int] = {}
    for point in kept:
        way = (point.micro_batch, point.workers, point.means)
        least[way] = min(point.recomputed_layers, least.get(way, point.recomputed_layers))
    return [
        point for point in kept if point.recomputed_layers == least[point.micro_batch, point.workers, point.means]
    ]


class Seen:
    """The answers that a search was given.

    Args:
        space: what there is to choose from.
        budget_bytes: what the trainer may hold.
    """

    def __init__(self, space: Space, budget_bytes: int) -> None:
        self._space, self._budget_bytes = space, budget_bytes
        self.points: dict[tuple[Setting, Means], Measurement | None] = {}
        """What each look brought; None where it did not fit."""

    def may_be_taken(self, point: Measurement | None) -> bool:
        """Whether there is a measurement, with a peak that a choice may have."""
        return point is not None and point.peak_bytes <= allowed_bytes(self._budget_bytes)

    def best(self) -> Measurement | None:
        """Return the fastest that may be taken."""
        points = [point for point in self.points.values() if point is not None and self.may_be_taken(point)]
        if self._space.is_small:
            points = without_needless(points)
        return max(points, key=lambda point: point.images_per_second, default=None)

    def of_means(self, means: Means) -> list[Measurement]:
        """Return what was measured with these means."""
        return [point for (_, seen), point in self.points.items() if point is not None and seen == means]

    def way(self, setting: Setting, means: Means) -> list[Measurement]:
        """Return what was measured of the same workers, recomputed layers and means."""
        return [
            point
            for point in self.of_means(means)
            if (point.workers, point.recomputed_layers) == (setting.workers, setting.recomputed_layers)
        ]

    def is_cramped(self, means: Means) -> bool:
        """Whether what was measured leaves so little that each look takes a process."""
        peaks = [point.peak_bytes for point in self.of_means(means)]
        return not all(measures_on(self._space, peak, self._budget_bytes) for peak in peaks)

    def is_steep(self, means: Means) -> bool:
        """Whether a larger micro-batch than the best one would still bring much."""
        best = self.best()
        assert best is not None
        way = sorted(self.way(best.setting, means), key=lambda point: point.micro_batch)
        before = [point for point in way if 2 * point.micro_batch <= best.micro_batch]
        if not before:
            return best.micro_batch < math.ceil(self._space.effective_batch / best.workers)
        doublings = math.log2(best.micro_batch / before[-1].micro_batch)
        return best.images_per_second > float(STEEP**doublings) * before[-1].images_per_second

    def looks_disturbed(self, setting: Setting, means: Means) -> bool:
        """Whether small images were measured to be clearly slower at a setting than they should be.

        They seldom are slower than in smaller micro-batches or with more layers recomputed, and no way to compute
        LSTMs takes half as long again as another.
        """
        point = self.points[setting, means]
        if point is None or not self._space.is_small:
            return False
        return any(
            point.images_per_second < (SLOWER if other.means == means else DISTURBED) * other.images_per_second
            for other in self.points.values()
            if other is not None
            and (other.workers, other.allocator) == (setting.workers, means.allocator)
            and other.micro_batch <= setting.micro_batch
            and other.recomputed_layers >= setting.recomputed_layers
        )

    def expectation(self, means: Means) -> Expectation:
        """Return what settings are expected to hold with these means."""
        peaks = {point.setting: point.peak_bytes for point in self.of_means(means)}
        return Expectation(self._space.facts, self._space.shares, peaks)

    def is_expected_to_fit(self, setting: Setting, means: Means) -> bool:
        """Whether a look at a setting should go well."""
        expected = self.expectation(means).bytes_of(setting)
        if expected is None:
            return held_without_images(self._space.facts, setting.workers) <= self._budget_bytes
        return (expected if (setting, means) in self.points else with_margin(expected)) <= self._budget_bytes

    def may_fit_with_torch(self, setting: Setting, means: Means) -> bool:
        """Whether a setting may fit under nn.LSTM, by what our function holds."""
        expected = self.expectation(means).bytes_of(setting)
        floor = held_without_images(self._space.facts, setting.workers)
        return expected is None or floor + TORCH_KEEPS * max(0, expected - floor) <= self._budget_bytes

    def fewest_layers(self, setting: Setting, means: Means) -> int | None:
        """Return how many layers must be recomputed at the least so that it should fit, of counts not tried."""
        expectation, layers = self.expectation(means), self._space.facts.layers
        whole = expectation.bytes_of(setting)
        least = expectation.bytes_of(Setting(setting.micro_batch, setting.workers, layers))
        if whole is None or least is None:
            return None
        for count in range(1, layers):
            expected = predict_recomputed(whole, least, self._space.shares, count)
            is_known = (replace(setting, recomputed_layers=count), means) in self.points
            if not is_known and with_margin(expected) <= self._budget_bytes:
                return count
        return None

    def sizes_above(self, point: Measurement) -> list[int]:
        """Return the micro-batches that may be looked at and are larger than that of a point, smallest first."""
        return [size for size in self._sizes(point) if size > point.micro_batch]

    def sizes_down_from(self, point: Measurement) -> list[int]:
        """Return the micro-batch of a point, and the smaller ones that may be looked at, largest first."""
        smaller = [size for size in self._sizes(point) if size < point.micro_batch]
        return [point.micro_batch, *reversed(smaller)]

    def _sizes(self, point: Measurement) -> list[int]:
        if self._space.wanted is not None:
            return []
        return candidate_sizes(self._space.effective_batch, point.workers, None, 1)
