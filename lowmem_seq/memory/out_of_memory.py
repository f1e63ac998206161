"""How each system says that memory ran out. A message is the only sign that libraries give, and all word it anew.

Accelerate knows no word of Windows' allocator, Lightning neither; so the table is our own. Each line names who
says it.
"""

from __future__ import annotations

import errno
import signal
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """What one speaker says."""

    speaker: str
    text: str
    """In lower case; a part of the message."""
    only_under_a_limit: bool = False
    """Whether it means other things as well, where no limit is set."""


TABLE = (
    Words("torch on Linux and macOS, CPU", "can't allocate memory"),
    Words("torch on Windows, CPU", "not enough memory: you tried to allocate"),
    Words("torch, MPS", "mps backend out of memory"),
    Words("torch, CUDA's allocator", "cuda out of memory"),
    Words("CUDA itself", "cuda error: out of memory"),
    Words("cuBLAS", "cublas_status_alloc_failed"),
    Words("cuDNN", "cudnn_status_alloc_failed"),
    Words("C++", "bad_alloc"),
    Words("Python", "memoryerror"),
    Words("numpy", "unable to allocate"),
    Words("OpenBLAS, while it is loaded", "openblas error: memory allocation"),
    Words("Linux and macOS (ENOMEM)", "cannot allocate memory"),
    Words("Windows (error 8)", "not enough memory resources are available"),
    Words("Windows (error 14)", "not enough storage is available to complete this operation"),
    Words("Windows (error 1455)", "the paging file is too small"),
    Words("Windows (error 1450)", "insufficient system resources exist"),
    Words("Metal", "insufficient memory"),
    Words("Python, a thread without room for its stack", "can't start new thread"),
    Words("OpenMP, a thread without room for its stack", "thread creation failed"),
    Words("others, in plain words", "out of memory"),
    Words("oneDNN", "could not create a primitive", only_under_a_limit=True),
    Words("oneDNN", "could not create a memory", only_under_a_limit=True),
    Words("oneDNN", "could not execute a primitive", only_under_a_limit=True),
    Words("oneDNN", "could not create a primitive descriptor", only_under_a_limit=True),
)

DIED_UNDER_A_LIMIT = frozenset(
    -getattr(signal, name) for name in ("SIGSEGV", "SIGABRT", "SIGBUS") if hasattr(signal, name)
)
"""Exit codes of a library that didn't look at what an allocation gave it (4 of 19 such failures in oneDNN)."""
WINDOWS_DIED_UNDER_A_LIMIT = frozenset({0xC0000005, 0xC0000017, 0xC0000409})
"""Access violation, no memory, fail-fast (what abort is there)."""


def tells_of_memory(text: str, limited: bool = False) -> bool:
    """Whether a message says that memory ran out.

    Args:
        text: the message, or the last lines of a log.
        limited: whether the process had a limit, which makes some words plain.
    """
    lower = text.lower()
    return any(words.text in lower for words in TABLE if limited or not words.only_under_a_limit)


def is_out_of_memory(error: BaseException, limited: bool = False) -> bool:
    """Whether an exception means that memory ran out; `limited` as for `tells_of_memory`."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and tells_of_memory(str(error), limited)


def died_for_memory(code: int, limited: bool, platform: str = sys.platform) -> bool:
    """Whether an exit code is that of a process which died at its limit without a word."""
    died = WINDOWS_DIED_UNDER_A_LIMIT if platform == "win32" else DIED_UNDER_A_LIMIT
    return limited and code in died
