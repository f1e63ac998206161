"""Whether the system keeps a process under its bound, tried: `python -m lowmem_seq.memory.canary cap`.

A process bounds itself to a little more than it has, and asks for much more than that.
"""

from __future__ import annotations

import os
import sys

from lowmem_seq.channel import Channel
from lowmem_seq.memory.limit import Limit, system_limit
from lowmem_seq.memory.readings import MemoryReader, system_reader

ROOM_BYTES = 32 * 2**20
WANTED_BYTES = 4 * ROOM_BYTES


def is_refused(limit: Limit, reader: MemoryReader) -> bool | None:
    """Whether memory beyond the bound is refused; None where the system bounds nothing."""
    has_bytes = reader.data_bytes(os.getpid()) or reader.held_bytes(os.getpid())
    if not limit.set(has_bytes + ROOM_BYTES):
        return None
    try:
        bytearray(WANTED_BYTES)
    except MemoryError:
        return True
    return False


def main() -> int:
    """Try it, and say what came of it, in the words of doctor/canaries.py."""
    channel = Channel(saves=False)
    for name in sys.argv[1:]:
        channel.say({"event": "began", "canary": name})
        limit = system_limit()
        facts = {"refused": is_refused(limit, system_reader()), "enforced_by": limit.name}
        channel.say({"event": "facts", "canary": name, "facts": facts})
    return 0


if __name__ == "__main__":
    sys.exit(main())
