from __future__ import annotations

import re

import pytest

from lowmem_seq import errors
from lowmem_seq.errors import ERRORS_BY_EXIT_CODE, LowmemSeqError, nearest

KINDS: list[type[LowmemSeqError]] = LowmemSeqError.__subclasses__()


def test_exit_codes_are_those_of_the_tree_in_the_docstring() -> None:
    drawn = dict(re.findall(r"(\w+Error)\s+(\d+)", errors.__doc__ or ""))
    kinds: list[type[LowmemSeqError]] = [LowmemSeqError, *KINDS]
    assert {kind.__name__: str(kind.exit_code) for kind in kinds} == drawn


def test_exit_codes_are_those_that_scripts_rely_on() -> None:
    assert {kind.exit_code: kind.__name__ for kind in KINDS} == {
        2: "UsageError",
        3: "CapTooSmallError",
        4: "StoppedError",
        5: "DataError",
        6: "NoCheckpointError",
        7: "ClusterError",
        8: "DiskError",
        9: "RunLockedError",
        10: "RestartsExhaustedError",
        11: "UnfitError",
    }


def test_exit_codes_are_unique_and_found_again() -> None:
    assert {kind.exit_code: kind for kind in KINDS} == ERRORS_BY_EXIT_CODE
    assert len(ERRORS_BY_EXIT_CODE) == len(KINDS)
    assert not {0, 1, 130} & ERRORS_BY_EXIT_CODE.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_carries_message_and_hint(kind: type[LowmemSeqError]) -> None:
    error = kind("what happened", "what to do")
    assert (error.message, error.hint, str(error)) == ("what happened", "what to do", "what happened")
    with pytest.raises(TypeError, match="hint"):
        kind("alone")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("word", "answer"),
    [("smal", "did you mean 'small'?"), ("SMALL", "did you mean 'small'?"), ("xyzzy", ""), ("", "")],
)
def test_nearest_suggests_only_what_is_close(word: str, answer: str) -> None:
    assert nearest(word, ["small", "medium", "Vanilla"]) == answer


def test_nearest_keeps_the_writing_of_the_known_word() -> None:
    assert nearest("vanila", ["small", "Vanilla"]) == "did you mean 'Vanilla'?"
