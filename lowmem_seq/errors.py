"""Every error that a user can meet, with the exit code it ends the program with.

    LowmemSeqError            1  a defect, when raised as itself
    ├── UsageError            2  a wrong flag, key, value or combination
    ├── CapTooSmallError      3  the model does not fit under the memory cap
    ├── StoppedError          4  stopped on request, with the last complete step saved
    ├── DataError             5  a dataset is missing, unreachable, broken or not the expected one
    ├── NoCheckpointError     6  a run has no checkpoint that verifies
    ├── ClusterError          7  machines can't train together: what differs, or what is in the way
    ├── DiskError             8  the disk is full or fails, and waiting did not help
    ├── RunLockedError        9  another process is writing this run
    ├── RestartsExhaustedError 10  the trainer died again and again
    └── UnfitError           11  `doctor` found something of this machine that has to be mended

The command line prints the message, an empty line, and `hint: ...`.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import ClassVar


class LowmemSeqError(Exception):
    """An error with a message for people, a hint that says what to do, and an exit code."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LowmemSeqError):
    """A wrong flag, key, value or combination of them."""

    exit_code = 2


class CapTooSmallError(LowmemSeqError):
    """The model does not fit under the memory cap, even at a micro-batch of one."""

    exit_code = 3


class StoppedError(LowmemSeqError):
    """The run was stopped on request; its last complete step is saved."""

    exit_code = 4


class DataError(LowmemSeqError):
    """A dataset is missing, unreachable, broken, or not the one that the run was started with."""

    exit_code = 5


class NoCheckpointError(LowmemSeqError):
    """A run that should have a checkpoint has none that verifies; of `verify`: one does not."""

    exit_code = 6


class ClusterError(LowmemSeqError):
    """Machines that should train one run can't: no connection, another token, other settings, data or version."""

    exit_code = 7


class DiskError(LowmemSeqError):
    """The disk is full or fails, and waiting did not help; what was saved before stands."""

    exit_code = 8


class RunLockedError(LowmemSeqError):
    """Another process is writing this run."""

    exit_code = 9


class RestartsExhaustedError(LowmemSeqError):
    """The trainer died more often in a row than `--max-restarts` allows, without saving in between."""

    exit_code = 10


class UnfitError(LowmemSeqError):
    """`doctor` found something of this machine that has to be mended before it trains, or trains well."""

    exit_code = 11


ERRORS_BY_EXIT_CODE: dict[int, type[LowmemSeqError]] = {
    kind.exit_code: kind
    for kind in (
        UsageError,
        CapTooSmallError,
        StoppedError,
        DataError,
        NoCheckpointError,
        ClusterError,
        DiskError,
        RunLockedError,
        RestartsExhaustedError,
        UnfitError,
    )
}


def nearest(word: str, known: list[str]) -> str:
    """Return `did you mean 'x'?` for the known word that is closest to `word`, or an empty string."""
    found = closest(word, known)
    return f"did you mean '{found}'?" if found else ""


def closest(word: str, known: list[str]) -> str:
    """Return the known word that is closest to `word`, or an empty string where none is close."""
    lowered = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    return lowered[found[0]] if found else ""
