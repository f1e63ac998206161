"""`python -m lowmem_seq.data SOURCE IMAGE_SIZE`: prepare a pack in a process of its own, which is then gone.

It speaks JSON lines (see channel.py): `packing`, at most ten a second, then one `packed` or one `error`. What
decoding took of memory, torchvision among it, leaves with the process.
"""

from __future__ import annotations

import sys
import time

from lowmem_seq.channel import Channel
from lowmem_seq.errors import LowmemSeqError, UsageError

SECONDS_BETWEEN_MESSAGES = 0.1


class PackingProgress:
    """Says what is being done; the same kind of thing not more often than ten times a second."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._what = ""
        self._said_at = 0.0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Take in how much of `what` is done."""
        now = time.monotonic()
        if what != self._what or done == total or now - self._said_at >= SECONDS_BETWEEN_MESSAGES:
            self._what, self._said_at = what, now
            self._channel.say({"event": "packing", "what": what, "done": done, "total": total})


def main() -> int:
    """Prepare the pack that the command line names, and return the exit code."""
    channel = Channel(saves=False)
    try:
        from lowmem_seq.data.prepare import prepare

        arguments = sys.argv[1:]
        if len(arguments) != 2 or not arguments[1].isdecimal():
            raise UsageError("it takes a source and an image size.", "python -m lowmem_seq.data cifar10 32")
        pack = prepare(arguments[0], int(arguments[1]), PackingProgress(channel))
    except LowmemSeqError as error:
        channel.say_error(error)
        return error.exit_code
    channel.say({"event": "packed", "pack": str(pack.folder), "fingerprint": pack.fingerprint})
    return 0


if __name__ == "__main__":
    sys.exit(main())
