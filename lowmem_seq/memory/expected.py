"""What a setting is expected to hold, from what was seen of it, and of others, with the same means.

Two measurements of the same way to compute (workers and recomputed layers) say most. Until there are two, another
way says what an image takes, and one measurement what all the rest takes: near the cap each look costs a process
and seconds, so a size should be right at the first try.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lowmem_seq.memory.footprint import Facts, held_without_images
from lowmem_seq.memory.plan import Setting
from lowmem_seq.memory.prediction import bytes_an_image, kept_share, predict_bytes

HEAP_BYTES = 30 * 10**6
"""What a worker beside the first one holds apart from gradients and images, its heap and its stack: 9 to 34 MB for
Small."""
COMPUTED_AT_ONCE = 1.6
"""Largest layers that a worker is taken to keep where all are recomputed: one in backward, and the inputs of all
(0.26 of what is kept without for Small, where each of the largest layers has 0.18)."""


class Expectation:
    """What settings are expected to hold.

    Args:
        facts: of the run.
        shares: of the kept activations, by layer.
        seen: peaks in bytes, of one means to compute.
    """

    def __init__(self, facts: Facts, shares: Sequence[float], seen: Mapping[Setting, int]) -> None:
        self._facts, self._shares, self._seen = facts, shares, seen
        self._image_bytes: dict[int, float] = {}
        for setting in sorted(seen, key=self._span):  # of several ways to compute, the one with the widest range
            way = self._way(setting)
            if len(way) > 1:
                self._image_bytes[setting.recomputed_layers] = bytes_an_image(way) / setting.workers

    def bytes_of(self, setting: Setting) -> int | None:
        """Return the peak to expect; None where nothing was seen that tells of it."""
        if setting in self._seen:
            return self._seen[setting]
        way = self._way(setting)
        if len(way) > 1:
            expected: int | None = predict_bytes(way, setting.micro_batch, self._floor(setting.workers))
        else:
            expected = self._from_others(setting)
            if expected is None and way:
                expected = predict_bytes(way, setting.micro_batch, self._floor(setting.workers))
            if expected is None and setting.workers > 1:
                expected = self._from_one_worker(setting)
        larger = [peak for seen, peak in self._seen.items() if _needs_more(seen, setting)]
        return expected if expected is None else min([expected, *larger])

    def knows_an_image(self, setting: Setting) -> bool:
        """Whether what was seen tells what an image takes where so many layers are recomputed."""
        return self._an_image(setting.recomputed_layers) is not None

    def _way(self, setting: Setting) -> dict[int, int]:
        """Return the peaks by micro-batch of what computes in the same way."""
        same = (setting.workers, setting.recomputed_layers)
        return {
            seen.micro_batch: peak
            for seen, peak in self._seen.items()
            if (seen.workers, seen.recomputed_layers) == same
        }

    def _span(self, setting: Setting) -> int:
        """Return by how many images the smallest and the largest setting of a way to compute differ."""
        way = self._way(setting)
        return (max(way) - min(way)) * setting.workers

    def _floor(self, workers: int) -> int:
        return held_without_images(self._facts, workers)

    def _an_image(self, recomputed_layers: int) -> float | None:
        """Return what an image takes; where it was not seen with layers recomputed, what their shares say."""
        if recomputed_layers in self._image_bytes:
            return self._image_bytes[recomputed_layers]
        kept = self._image_bytes.get(0)
        if kept is None:
            return None
        at_once = min(1.0, COMPUTED_AT_ONCE * max(self._shares[:recomputed_layers]))
        return kept * min(1.0, kept_share(self._shares, recomputed_layers) + at_once)

    def _from_others(self, setting: Setting) -> int | None:
        """Return the peak of the setting most like this one, with the images and workers that this one has."""
        image = self._an_image(setting.recomputed_layers)
        if image is None:
            return None

        def unlike(seen: Setting) -> tuple[bool, bool, int]:
            return (
                seen.recomputed_layers != setting.recomputed_layers,
                seen.workers != setting.workers,
                abs(seen.micro_batch - setting.micro_batch),
            )

        like = min((seen for seen in self._seen if self._an_image(seen.recomputed_layers) is not None), key=unlike)
        rest = self._seen[like] - like.micro_batch * like.workers * (self._an_image(like.recomputed_layers) or 0.0)
        more = setting.workers - like.workers
        rest += more * (self._facts.weights_bytes + (HEAP_BYTES if more > 0 else 0))
        return round(max(rest, self._floor(setting.workers)) + setting.micro_batch * setting.workers * image)

    def _from_one_worker(self, setting: Setting) -> int | None:
        """Return the peak where each worker needs what one alone does, weights and optimizer apart."""
        alone = self.bytes_of(Setting(setting.micro_batch, 1, setting.recomputed_layers))
        shared = self._floor(0)
        return None if alone is None else shared + setting.workers * max(0, alone - shared)


def _needs_more(one: Setting, than: Setting) -> bool:
    """Whether a setting holds all that another one does: no fewer images at once, by no fewer workers."""
    return (
        one.recomputed_layers == than.recomputed_layers
        and one.micro_batch >= than.micro_batch
        and one.workers >= than.workers
    )
