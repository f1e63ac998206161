"""A child process that speaks JSON lines: started by command line, watched, told, ended.

Children stand in a process group of their own, so that a Ctrl-C in the terminal reaches the supervisor alone; it
passes the wish on as a word through the child's standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import psutil

from lowmem_seq.errors import ERRORS_BY_EXIT_CODE, LowmemSeqError
from lowmem_seq.files import append_line, rename
from lowmem_seq.memory.out_of_memory import tells_of_memory
from lowmem_seq.memory.readings import system_reader

Message = dict[str, Any]
LAST_LINES = 12
LARGEST_LOG = 10**6
"""Characters that one child may add to the log, and that it may hold when a child begins to add to it."""
TRACEBACK = "Traceback (most recent call last)"
LONGEST_PREFIX = 60
"""Characters of a line in which it is looked for: torch.distributed puts `[rank0]: ` before it."""
LARGEST_EXIT_CODE = 255
"""Larger ones are Windows' own, for a process that an exception of the system ended."""
TRY_AGAIN_HINT = "try it again; if it ends so each time, it is a defect: its last words say where"
RUN_MODULE = """
import runpy, sys
root, module, limit_bytes = sys.argv[1:4]
sys.path = [entry for entry in sys.path if entry]
if root not in sys.path:
    sys.path.insert(0, root)
if limit_bytes:
    from lowmem_seq.memory.limit import system_limit
    system_limit().set(int(limit_bytes))
sys.argv = [module, *sys.argv[4:]]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""`python -m` would import from the current folder first, which may be somebody else's run (Python 3.11 has -P).
The limit is there before a library is loaded: torch alone fills most of a small cap."""
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class Child:
    """One running child: `python -m MODULE ARGUMENTS...`, without the current folder among its imports.

    Args:
        module: what is run.
        arguments: its command line.
        environment: laid over this process's own.
        log: takes what it writes on stderr.
        limit_bytes: what it bounds itself to from its first moment (limit.py), if anything; the bound makes some of
            its last words plain.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        limit_bytes: int | None = None,
    ) -> None:
        self._limited = limit_bytes is not None
        self._messages: queue.Queue[Message | None] = queue.Queue()
        self._error: Message | None = None
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._told_traceback = False
        own_group: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUN_MODULE, str(PACKAGE_ROOT), module, str(limit_bytes or ""), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**_own_environment(), "PYTHONUTF8": "1", **(environment or {})},
            **own_group,
        )
        self.process = psutil.Process(self._process.pid)
        self._readers = [
            threading.Thread(target=self._read_messages, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_log, args=(self._process.stderr, log), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_messages(self, stream: IO[str]) -> None:
        for line in stream:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    if message.get("event") == "error":
                        self._error = message
                    self._messages.put(message)
        self._messages.put(None)

    def _read_log(self, stream: IO[str], log: Path | None) -> None:
        written = 0
        if log is not None:
            _start_anew_if_large(log)
        for line in stream:  # to its end, whatever the disk says: a full pipe would hold the child up
            self._last_lines.append(line.rstrip())
            self._told_traceback = self._told_traceback or TRACEBACK in line[:LONGEST_PREFIX]
            written += len(line)
            if log is not None and written < LARGEST_LOG:
                with contextlib.suppress(OSError):
                    append_line(log, line.rstrip("\n").encode("utf-8"))

    def messages(self, wait_seconds: float) -> Iterator[Message | None]:
        """Yield what the child says until it has ended; None whenever it was silent for so long."""
        while True:
            try:
                message = self._messages.get(timeout=wait_seconds)
            except queue.Empty:
                yield None
                continue
            if message is None:
                return
            yield message

    def said(self) -> tuple[list[Message], bool]:
        """Return what the child said that was not read yet, at once, and whether it has said its last."""
        messages: list[Message] = []
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._messages.get_nowait()
                if message is None:
                    return messages, True
                messages.append(message)
        return messages, False

    def tell(self, word: str) -> None:
        """Say a word to the child; one that has ended hears nothing."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End the child at once, and what it started.

        The python.exe of a virtual environment on Windows only starts the interpreter. It has that end with itself
        (a job object, see venvlauncher.c of CPython), but for the moment before it has put it there; and one that
        lived on would keep the pipes open, which `wait` waits for.
        """
        started = system_reader().descendants(self.process.pid)
        with contextlib.suppress(OSError):
            self._process.kill()
        for pid in started:
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()

    def wait(self) -> int:
        """Return the exit code; negative is the number of the signal that ended it."""
        code = self._process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()
        return code

    @property
    def told_an_error(self) -> bool:
        """Whether it said itself what was wrong."""
        return self._error is not None

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether the child's last words are those of a system that had no memory left."""
        return self._error is None and tells_of_memory("\n".join(self._last_lines), self._limited)

    @staticmethod
    def was_killed(code: int) -> bool:
        """Whether it ended as the kernel ends what takes too much memory."""
        return code == -signal.SIGKILL if sys.platform != "win32" else False

    def died(self, code: int) -> bool:
        """Whether it was ended from outside: it told no error, and Python none.

        A signal shows in the code (negative), whatever was logged before; but Windows ends processes with code 1
        as well.
        """
        return code != 0 and self._error is None and (code < 0 or not self._told_traceback)

    def describe_end(self, code: int) -> str:
        """Return how the child ended, for people: what it said, or the signal, or the code."""
        if self._error is not None:
            return f"said: {self._error['message']}"
        if code < 0:
            try:
                return f"was ended by {signal.Signals(-code).name}"
            except ValueError:
                return f"was ended by signal {-code}"
        return f"ended with code {code:#x}" if code > LARGEST_EXIT_CODE else f"ended with code {code}"

    def failure(self, code: int, what: str, hint: str = TRY_AGAIN_HINT) -> LowmemSeqError:
        """Return the error that a child which ended with `code` told, or else its last words, with this hint."""
        if self._error is not None:
            kind = ERRORS_BY_EXIT_CODE.get(int(self._error["exit_code"]), LowmemSeqError)
            return kind(str(self._error["message"]), str(self._error["hint"]) or hint)
        words = "\n".join(self._last_lines)
        return LowmemSeqError(
            f"the {what} {self.describe_end(code)}." + (f" Its last words:\n{words}" if words else ""),
            hint,
        )


def _own_environment() -> dict[str, str]:
    """Return this process's environment without what would set Accelerate up: the plan alone does."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}


def _start_anew_if_large(log: Path) -> None:
    """Put a log that has grown over many children aside, in the place of the one before it."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > LARGEST_LOG:
            rename(log, log.with_name(f"{log.name}.old"))
