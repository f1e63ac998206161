"""Canaries that end badly, each in its own way: `python -m tests.doctor.dying NAME...`."""

from __future__ import annotations

import os
import signal
import sys
import time

from lowmem_seq.channel import Channel


def main() -> None:
    channel = Channel(saves=False)
    for name in sys.argv[1:]:
        channel.say({"event": "began", "canary": name})
        if name == "crashes":
            os.kill(os.getpid(), signal.SIGTERM if sys.platform == "win32" else signal.SIGSEGV)
        if name == "hangs":
            time.sleep(60)
        if name == "raises":
            channel.say({"event": "failed", "canary": name, "error": "RuntimeError: wrong shape"})
        else:
            channel.say({"event": "facts", "canary": name, "facts": {"pid": os.getpid()}})


if __name__ == "__main__":
    main()
