"""What can be measured at a hub: round trip, speed both ways, clock, versions; by probes alone.

The hub of a running host answers whoever has the token (cluster/probes.py), and hears of nothing else: this machine
does not join. A few probes are on their way at once, so that the line is full while its speed is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from lowmem_seq.cluster.client_end import ClientEnd, Line
from lowmem_seq.cluster.frames import Received
from lowmem_seq.cluster.messages import GoAway, Probe, Probed
from lowmem_seq.errors import ClusterError

ROUND_TRIPS = 15
AT_ONCE = 4
PIECE_BYTES = 2**17
"""That a probe or its answer carries; so much at once fills a line of 400 Mbit/s at a round trip of 10 ms."""
SPEED_SECONDS = 1.5
SPEED_BYTES = 6 * 2**20
"""Each way is measured for so long, or until so much went over it."""
ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class Measured:
    """What probes tell."""

    round_trip_seconds: float
    """Median."""
    longest_round_trip_seconds: float
    clock_ahead_seconds: float
    """By how much the hub's clock is ahead of this machine's, to half a round trip."""
    up_bytes_per_second: float | None
    """From this machine to the hub; None: not measured."""
    down_bytes_per_second: float | None
    """None where the hub had no share of its line left."""
    program: str
    torch: str
    python: str
    system: str


class Surveyor:
    """Measures the line to a hub by probes.

    Args:
        end: this machine's end of the line, which is up.
        now: seconds since 1970.
    """

    def __init__(self, end: ClientEnd, now: Callable[[], float] = time.time) -> None:
        self._end, self._now = end, now
        self._request = 0

    def measure(self) -> Measured:
        """Return what there is to know of the line.

        Raises:
            ClusterError: the hub does not answer probes, or the line was lost.
        """
        trips: list[tuple[float, float]] = []
        for _ in range(ROUND_TRIPS):
            sent_at, began = self._now(), time.monotonic()
            self._send(0, b"")
            answer, _ = self._hear()
            seconds = time.monotonic() - began
            trips.append((seconds, answer.unix_seconds - (sent_at + seconds / 2)))
        _, ahead = min(trips)  # the fastest answer says best what the hub's clock was meanwhile
        return Measured(
            statistics.median(seconds for seconds, _ in trips),
            max(seconds for seconds, _ in trips),
            ahead,
            self._speed(up=True),
            self._speed(up=False),
            answer.program,
            answer.torch,
            answer.python,
            answer.system,
        )

    def _speed(self, up: bool) -> float | None:
        """Return the bytes a second of one way; None where the hub carries none."""
        payload, wanted = (bytes(PIECE_BYTES), 0) if up else (b"", PIECE_BYTES)
        began = time.monotonic()
        left, waiting, carried_bytes = SPEED_BYTES // PIECE_BYTES, 0, 0
        while left or waiting:
            while left and waiting < AT_ONCE:
                self._send(wanted, payload)
                left, waiting = left - 1, waiting + 1
            _, came_bytes = self._hear()
            waiting -= 1
            carried_bytes += PIECE_BYTES if up else came_bytes
            if time.monotonic() - began >= SPEED_SECONDS or not (up or came_bytes):
                left = 0
        return carried_bytes / (time.monotonic() - began) if carried_bytes else None

    def _send(self, wanted: int, payload: bytes) -> None:
        self._request += 1
        self._end.send(Probe(self._request, wanted), [payload] if payload else [])

    def _hear(self) -> tuple[Probed, int]:
        """Return the next answer, and how much it carried.

        Raises:
            ClusterError: none came in time, or the hub does not know probes.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            heard = self._end.receive(left)
            if heard is Line.DOWN:
                raise ClusterError(
                    "the line was lost while it was measured", "try again, nearer to the Wi-Fi's router"
                )
            if not isinstance(heard, Received):
                continue
            if isinstance(heard.message, Probed):
                return heard.message, sum(map(len, heard.payloads))
            if isinstance(heard.message, GoAway):
                raise ClusterError(
                    "the host's lowmem-seq knows no probes, so it is an older release",
                    "install the same version of lowmem-seq on every machine",
                )
        raise ClusterError(
            f"the hub let this machine in, and answered nothing for {ANSWER_SECONDS:.0f} s",
            "is the host's machine busy, asleep, or at the edge of its Wi-Fi?",
        )
