"""How far apart saves are, where `checkpoint.every` is `auto`."""

from __future__ import annotations

import math

LARGEST_SHARE = 0.01
"""`auto` spends at most this share of the time on saving."""
SECONDS_BETWEEN_CRASHES = 6 * 3600.0
"""What `auto` expects of a laptop: a flat battery or a closed lid some times a day."""
SHORTEST_SECONDS = 30.0


def seconds_between_saves(cost_seconds: float) -> float:
    """Return the time from one save to the next, where the last one took `cost_seconds`.

    It is sqrt(2 * cost * time between crashes) (Young, CACM 1974), but never so little that saving takes more than
    1 % of the time.
    """
    best = math.sqrt(2 * cost_seconds * SECONDS_BETWEEN_CRASHES)
    return max(SHORTEST_SECONDS, best, cost_seconds / LARGEST_SHARE)
