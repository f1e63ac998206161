"""What the hub answers to who only measures the line to it: `lowmem-seq doctor --peer`.

Whoever probes has proved the token, and is no machine of the run: it gets no lease and no weights, and is counted
nowhere. The line is the run's first of all, so that all probes of a minute together move a bounded number of bytes;
beyond it they are still answered, by messages that carry nothing.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence

from lowmem_seq import __version__
from lowmem_seq.cluster.frames import Payload
from lowmem_seq.cluster.messages import Probe, Probed
from lowmem_seq.runs.environment import installed_version

MOST_BYTES = 2**25
SECONDS = 60.0
"""So much may be carried in so long: under five megabits a second, a fifth of a slow Wi-Fi."""


class ProbeAnswers:
    """Answers probes, for all machines together.

    Args:
        clock: seconds that only grow.
        now: seconds since 1970, as this machine believes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time) -> None:
        self._clock, self._now = clock, now
        self._began = clock()
        self._carried_bytes = 0

    def answer(self, probe: Probe, came: Sequence[bytes]) -> tuple[Probed, Sequence[Payload]]:
        """Return what to say to a probe.

        Args:
            probe: what was asked.
            came: what it carried.
        """
        if self._clock() - self._began >= SECONDS:
            self._began, self._carried_bytes = self._clock(), 0
        self._carried_bytes += sum(map(len, came))
        carried = min(probe.want_bytes, max(0, MOST_BYTES - self._carried_bytes))
        self._carried_bytes += carried
        said = Probed(
            probe.request,
            max(0.0, self._now()),
            __version__,
            installed_version("torch") or "",
            platform.python_version(),
            f"{platform.system()} {platform.machine()}",
        )
        return said, (bytes(carried),) if carried else ()
