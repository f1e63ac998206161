"""The line between a child process and its supervisor: JSON lines out, words in.

A child says what it does on its standard output, one JSON object a line, and hears `stop` on its standard input.
When the supervisor dies the input ends, which counts as `stop`: nothing trains on unseen. Pipes work alike on every
system; signals don't. A signal that reaches the child all the same (a system that shuts down sends one to every
process) counts as `stop` too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from typing import IO, Any

from lowmem_seq.disk import as_disk_error
from lowmem_seq.errors import LowmemSeqError, StoppedError

SECONDS_TO_SAVE = 60.0
"""How long a child whose supervisor died may take to save and end by itself."""
ENDED_WITH_SUPERVISOR = StoppedError.exit_code
START_ANEW = 75
"""Exit code, between trainer and supervisor only, of a trainer that ends so that another one may go on in its place
(EX_TEMPFAIL of sysexits.h). A `leaving` message says why, and whether memory ran out."""
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)


class Channel:
    """A child's end of the line.

    Args:
        listen: whether there is a supervisor.
        saves: whether the child has something to save. Then a stop is a wish that it fulfils between two
            micro-batches; otherwise it just ends.
    """

    def __init__(self, listen: bool = True, saves: bool = True) -> None:
        self._saves = saves
        self._out: IO[str] | None = None
        self._stop = threading.Event()
        self._mutex = threading.Lock()
        if listen:
            self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library's print must not garble the line
            threading.Thread(target=self._listen, name="supervisor", daemon=True).start()
            for number in STOP_SIGNALS if saves else ():
                signal.signal(number, lambda _number, _frame: self._stop.set())

    def _listen(self) -> None:
        for line in sys.stdin:
            if line.strip() == "stop":
                self._stop.set()
        if not self._saves:
            os._exit(ENDED_WITH_SUPERVISOR)
        self._stop.set()
        deadline = threading.Timer(SECONDS_TO_SAVE, os._exit, args=(ENDED_WITH_SUPERVISOR,))
        deadline.daemon = True
        deadline.start()

    @property
    def stop_requested(self) -> bool:
        """Whether this process shall save its last complete step and end."""
        return self._stop.is_set()

    def say(self, message: dict[str, Any]) -> None:
        """Send one message; a supervisor that is gone hears nothing."""
        if self._out is None:
            return
        with contextlib.suppress(OSError), self._mutex:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()

    def say_failure(self, error: LowmemSeqError | OSError) -> int:
        """Send what ended this process, a disk's trouble in words, and return the exit code for it.

        Raises:
            OSError: the error, where it is neither one for people nor a disk's trouble.
        """
        told = error if isinstance(error, LowmemSeqError) else as_disk_error(error)
        if told is None:
            raise error
        self.say_error(told)
        return told.exit_code

    def say_error(self, error: LowmemSeqError) -> None:
        """Send an error, for the supervisor to raise again."""
        self.say({"event": "error", "exit_code": error.exit_code, "message": error.message, "hint": error.hint})
